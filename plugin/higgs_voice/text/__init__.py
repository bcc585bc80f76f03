"""What to say, and when: streamed text into chunks, written text into spoken text. No torch, no I/O."""

from .chunker import Chunker, ChunkerSettings, TextChunk

__all__ = ["Chunker", "ChunkerSettings", "TextChunk"]
