"""One voice for a whole conversation: Higgs Audio v2 for self-hosted voice agents."""

from __future__ import annotations

from ._version import __version__
from .audio import PcmChunk
from .backends import create_backend
from .config import Pauses, Sampling, Window
from .conversation.session import SessionSettings, SessionStats, VoiceSession
from .conversation.speech import ChunkReport, Speech
from .conversation.synthesizer import Synthesizer
from .conversation.timing import Word
from .conversation.voice import Reference, Voice
from .errors import HiggsVoiceError
from .text import ChunkerSettings, Lexicon

__all__ = [
    "ChunkReport",
    "ChunkerSettings",
    "HiggsVoiceError",
    "Lexicon",
    "Pauses",
    "PcmChunk",
    "Reference",
    "Sampling",
    "SessionSettings",
    "SessionStats",
    "Speech",
    "Synthesizer",
    "Voice",
    "VoiceSession",
    "Window",
    "Word",
    "__version__",
    "create_backend",
]
