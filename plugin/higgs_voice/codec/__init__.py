"""Sound from codes and codes from sound: an exact streaming decoder, and the encoder of reference clips."""

from .encode import Encoder
from .stream import Decoder, DecodeStream, StreamSettings

__all__ = ["DecodeStream", "Decoder", "Encoder", "StreamSettings"]
