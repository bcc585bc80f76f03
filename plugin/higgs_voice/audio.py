"""Sound as plain data: chunks of PCM on their way out, and reference clips on their way in. No torch."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .errors import ClipError

SAMPLE_RATE = 24000
"""Samples a second of everything that leaves this package."""
FRAME_RATE = 25
"""Audio-code frames a second."""
HOP = SAMPLE_RATE // FRAME_RATE
"""Samples a frame (960)."""
MAX_CLIP_S = 30.0
"""Longest reference clip; what is longer costs context and adds nothing to the voice."""
MIN_CLIP_S = 0.5


@dataclass(frozen=True, slots=True)
class PcmChunk:
    """A stretch of speech, ready to be played."""

    pcm: bytes
    """int16 little-endian mono."""
    start: int
    """Position of the first sample in the speech, in samples."""
    chunk: int
    """Which text chunk of the speech it belongs to, from 0."""
    sample_rate: int = SAMPLE_RATE

    @property
    def samples(self) -> int:
        return len(self.pcm) // 2

    @property
    def start_s(self) -> float:
        return self.start / self.sample_rate

    @property
    def duration_s(self) -> float:
        return self.samples / self.sample_rate

    def to_array(self) -> NDArray[np.int16]:
        """int16 [n]."""
        return np.frombuffer(self.pcm, dtype="<i2")


def to_int16(samples: NDArray[np.float32]) -> NDArray[np.int16]:
    """float32 in [-1, 1] to int16, rounded and clipped; the shape is kept."""
    return np.clip(np.rint(samples * 32767.0), -32768, 32767).astype("<i2")


def load_clip(source: str | Path | bytes, *, max_s: float = MAX_CLIP_S) -> NDArray[np.float32]:
    """A reference clip as float32 mono at 24 kHz, shape [n].

    Any format that libsndfile reads (wav, flac, ogg, mp3), any rate, mono or more channels (mixed down); given as a path
    or as the file's bytes. Errors: `ClipError` when it is missing, not audio, empty or too short, longer than `max_s`,
    silent, or holds values that are not finite.
    """
    try:
        import soundfile  # slow to import, needed for clips only
    except (ImportError, OSError) as error:  # OSError: the bundled libsndfile does not load
        raise ClipError("reading reference clips needs soundfile: pip install soundfile") from error

    name = "clip" if isinstance(source, bytes) else str(source)
    if not isinstance(source, bytes) and not Path(source).is_file():
        raise ClipError(f"reference clip {name!r} does not exist or is not a file")
    try:
        with soundfile.SoundFile(io.BytesIO(source) if isinstance(source, bytes) else str(source)) as file:
            if file.frames > 0 and file.frames / file.samplerate > max_s:
                raise _too_long(name, file.frames / file.samplerate, max_s)
            data = np.asarray(file.read(dtype="float32", always_2d=True), dtype=np.float32)  # [n, channels]
            rate = int(file.samplerate)
    except soundfile.LibsndfileError as error:
        raise ClipError(f"reference clip {name!r} is not audio that can be read: {error.error_string}") from error
    except TypeError as error:  # a name that ends in .raw: no header says what it holds
        raise ClipError(f"reference clip {name!r} is raw samples; save it as wav, flac, ogg or mp3") from error
    return clip_from_array(data.mean(axis=1), rate, name=name, max_s=max_s)


def clip_from_array(
    samples: NDArray[np.floating] | NDArray[np.signedinteger],
    sample_rate: int,
    *,
    name: str = "clip",
    max_s: float = MAX_CLIP_S,
) -> NDArray[np.float32]:
    """The same checks and resampling for samples in memory: mono [n] or [n, channels], floats in [-1, 1] or PCM integers."""
    import soxr

    if sample_rate <= 0:
        raise ClipError(f"reference clip {name!r} has a sample rate of {sample_rate}; it must be above 0")
    given = np.asarray(samples)
    data = given.astype(np.float32)
    if given.dtype.kind == "i":
        data /= 2.0 ** (8 * given.dtype.itemsize - 1)
    if data.ndim == 2:
        data = data.mean(axis=1)
    if data.ndim != 1:
        raise ClipError(f"reference clip {name!r} must be [n] or [n, channels], not {data.ndim}-dimensional")
    if data.size == 0:
        raise ClipError(f"reference clip {name!r} is empty")
    if not np.isfinite(data).all():
        raise ClipError(f"reference clip {name!r} holds values that are not finite (NaN or infinity)")
    seconds = data.size / sample_rate
    if seconds > max_s:
        raise _too_long(name, seconds, max_s)
    if seconds < MIN_CLIP_S:
        raise ClipError(f"reference clip {name!r} is {seconds:.2f} s long; it needs at least {MIN_CLIP_S} s of speech")
    if float(np.abs(data).max()) < 1e-4:
        raise ClipError(f"reference clip {name!r} is silent")
    if sample_rate != SAMPLE_RATE:
        data = soxr.resample(data, sample_rate, SAMPLE_RATE)
    return np.ascontiguousarray(data, dtype=np.float32)


def _too_long(name: str, seconds: float, max_s: float) -> ClipError:
    return ClipError(
        f"reference clip {name!r} is {seconds:.1f} s long; "
        f"cut it to {max_s:g} s or less (5 to 15 s of clear speech work best)"
    )


def write_wav(path: str | Path, pcm: bytes, sample_rate: int = SAMPLE_RATE) -> None:
    """Write int16 mono PCM as a wav file."""
    import wave

    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes(pcm)
