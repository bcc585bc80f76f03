"""What to say, and when: streamed text into chunks, written text into spoken text. No torch, no I/O."""

from .chunker import Chunker, ChunkerSettings, TextChunk
from .lexicon import Lexicon
from .normalize import SpokenText, is_speakable, normalize

__all__ = ["Chunker", "ChunkerSettings", "Lexicon", "SpokenText", "TextChunk", "is_speakable", "normalize"]
