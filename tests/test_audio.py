"""Clips on their way in, chunks on their way out."""

from __future__ import annotations

import io
import wave
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from higgs_voice.audio import PcmChunk, clip_from_array, load_clip, to_int16, write_wav
from higgs_voice.errors import ClipError, VoiceError


def tone(seconds: float, rate: int = 24000, hertz: float = 440.0) -> NDArray[np.float32]:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def saved(path: Path, samples: NDArray[np.float32], rate: int, subtype: str = "FLOAT") -> Path:
    soundfile.write(path, samples, rate, subtype=subtype)
    return path


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 24000, 44100, 48000])
def test_any_rate_becomes_24_khz(tmp_path: Path, rate: int) -> None:
    clip = load_clip(saved(tmp_path / "clip.wav", tone(1.0, rate), rate))
    assert (clip.dtype, clip.ndim, clip.flags.c_contiguous) == (np.float32, 1, True)
    assert abs(clip.size - 24000) <= 1
    inside = slice(1200, 22800)  # a resampler's filter rings at the ends
    np.testing.assert_allclose(clip[inside], tone(1.0)[inside], atol=2e-3)


def test_a_clip_at_24_khz_is_taken_as_it_is(tmp_path: Path) -> None:
    assert np.array_equal(load_clip(saved(tmp_path / "clip.wav", tone(1.0), 24000)), tone(1.0))


def test_channels_are_mixed_down(tmp_path: Path) -> None:
    left, right = tone(1.0, 48000), tone(1.0, 48000, 880.0)
    stereo = np.stack([left, right], axis=1)
    mixed = load_clip(saved(tmp_path / "mono.wav", (left + right) / 2, 48000))
    np.testing.assert_allclose(load_clip(saved(tmp_path / "stereo.wav", stereo, 48000)), mixed, atol=1e-6)
    np.testing.assert_allclose(clip_from_array(stereo, 48000), mixed, atol=1e-6)


@pytest.mark.parametrize(
    ("suffix", "subtype"), [("wav", "PCM_16"), ("flac", "PCM_16"), ("ogg", "VORBIS"), ("mp3", "MPEG_LAYER_III")]
)
def test_formats_and_bytes(tmp_path: Path, suffix: str, subtype: str) -> None:
    path = saved(tmp_path / f"clip.{suffix}", tone(1.0, 48000), 48000, subtype)
    clip = load_clip(path)
    assert abs(clip.size - 24000) <= 1200  # mp3 pads
    assert 0.4 < np.abs(clip).max() < 0.6
    assert np.array_equal(load_clip(str(path)), clip)
    assert np.array_equal(load_clip(path.read_bytes()), clip)


def test_a_clip_of_exactly_the_longest_and_shortest_time_is_taken(tmp_path: Path) -> None:
    assert load_clip(saved(tmp_path / "long.wav", tone(30.0, 8000), 8000)).size == 720_000
    assert clip_from_array(tone(0.5), 24000).size == 12_000
    assert load_clip(saved(tmp_path / "longer.wav", tone(31.0, 8000), 8000), max_s=40).size == 744_000


def test_integers_are_taken_as_pcm() -> None:
    np.testing.assert_allclose(clip_from_array(to_int16(tone(1.0)), 24000), tone(1.0), atol=1e-4)


def _bad(path: Path, samples: NDArray[np.float32], rate: int = 24000) -> Path:
    return saved(path / "bad.wav", samples, rate)


def _text(path: Path) -> Path:
    (path / "notes.wav").write_text("this is no sound")
    return path / "notes.wav"


def _raw(path: Path) -> Path:
    (path / "clip.raw").write_bytes(bytes(48000))
    return path / "clip.raw"


def _cut(path: Path) -> Path:
    whole = saved(path / "whole.flac", tone(1.0), 24000, "PCM_16").read_bytes()
    (path / "cut.flac").write_bytes(whole[:40])
    return path / "cut.flac"


def _not_finite(value: float) -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        samples = tone(1.0)
        samples[1000] = value
        return _bad(path, samples)

    return make


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path / "none.wav", r"none\.wav' does not exist or is not a file"),
        (lambda path: path, "does not exist or is not a file"),
        (_text, r"notes\.wav' is not audio that can be read: "),
        (lambda path: b"RIFF, but not quite", "'clip' is not audio that can be read: "),
        (lambda path: b"", "'clip' is not audio that can be read: "),
        (_cut, r"cut\.flac' is (not audio that can be read|empty)"),
        (_raw, r"clip\.raw' is raw samples; save it as wav"),
        (lambda path: _bad(path, tone(0.0)), r"bad\.wav' is empty"),
        (lambda path: _bad(path, tone(30.3, 8000), 8000), r"bad\.wav' is 30\.3 s long; cut it to 30 s or less"),
        (lambda path: _bad(path, tone(0.4)), r"bad\.wav' is 0\.40 s long; it needs at least 0\.5 s"),
        (_not_finite(np.nan), r"bad\.wav' holds values that are not finite"),
        (_not_finite(np.inf), r"bad\.wav' holds values that are not finite"),
        (lambda path: _bad(path, np.zeros(24000, np.float32)), r"bad\.wav' is silent"),
    ],
)
def test_a_clip_that_cannot_be_used_is_one_clear_sentence(
    tmp_path: Path, make: Callable[[Path], Path | bytes], message: str
) -> None:
    with pytest.raises(ClipError, match=message) as caught:
        load_clip(make(tmp_path))
    assert isinstance(caught.value, VoiceError)
    assert isinstance(caught.value, ValueError)
    text = str(caught.value)
    assert "\n" not in text
    assert ". " not in text
    assert "object at 0x" not in text


@pytest.mark.parametrize(
    ("samples", "rate", "message"),
    [
        (np.zeros((2, 2, 2), np.float32), 24000, r"must be \[n\] or \[n, channels\], not 3-dimensional"),
        (np.float32(1.0), 24000, "not 0-dimensional"),
        (np.zeros(0, np.float32), 24000, "is empty"),
        (tone(1.0), 0, "sample rate of 0"),
        (tone(31.0), 24000, r"31\.0 s long"),
    ],
)
def test_samples_in_memory_are_checked_too(samples: NDArray[np.float32], rate: int, message: str) -> None:
    with pytest.raises(ClipError, match=message):
        clip_from_array(samples, rate)


def test_int16_is_rounded_and_clipped() -> None:
    samples = np.array([0.0, 1.0, -1.0, 2.0, -2.0, 0.5, 1.4 / 32767, 1.6 / 32767], np.float32)
    assert to_int16(samples).tolist() == [0, 32767, -32767, 32767, -32768, 16384, 1, 2]
    assert to_int16(samples.reshape(2, 4)).shape == (2, 4)
    assert to_int16(samples).dtype == np.dtype("<i2")


def test_a_chunk_knows_its_place() -> None:
    chunk = PcmChunk(pcm=np.arange(2400, dtype="<i2").tobytes(), start=12000, chunk=1)
    assert (chunk.samples, chunk.start_s, chunk.duration_s) == (2400, 0.5, 0.1)
    assert chunk.to_array()[:3].tolist() == [0, 1, 2]


def test_write_wav(tmp_path: Path) -> None:
    write_wav(tmp_path / "out.wav", to_int16(tone(0.1)).tobytes())
    with wave.open(str(tmp_path / "out.wav")) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate(), file.getnframes()) == (1, 2, 24000, 2400)
    samples, rate = soundfile.read(io.BytesIO((tmp_path / "out.wav").read_bytes()), dtype="int16")
    assert rate == 24000
    assert np.array_equal(samples, to_int16(tone(0.1)))
