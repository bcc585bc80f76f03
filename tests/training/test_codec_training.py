"""What the codec's stages train on and towards."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from training import pieces
from training.decoder import heard_distance, spectral_distance, spoken_distance
from training.listener import Listener
from training.pieces import PHONE_HOP, Pieces
from training.settings import CODEBOOKS, HELD_OUT, HOP, SAMPLE_RATE

FRAMES = 3
LENGTHS = (12, 5, 9)  # frames of each utterance; the second is one that no stage may train on


@pytest.fixture
def some_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pieces:
    """Utterances whose sample, code and phoneme all say which frame of which utterance they are."""
    monkeypatch.setattr(pieces, "WORK", tmp_path)
    rows, speech, codes = [], [], []
    names = [f"p{n}" for n in range(sum(LENGTHS))]
    for number, length in enumerate(LENGTHS):
        first = sum(LENGTHS[:number])
        phones = [(f"p{first + n}", (n + 1) * HOP / SAMPLE_RATE) for n in range(length)]
        samples = length * HOP - (40 if number == 2 else 0)  # the last frame of one is not full
        rows.append({"text_index": HELD_OUT - 1 if number == 1 else HELD_OUT, "samples": samples, "phones": phones})
        speech.append(np.repeat(np.arange(first, first + length), HOP)[:samples])
        codes.append(np.tile(np.arange(first, first + length), (CODEBOOKS, 1)))
    (tmp_path / "align.json").write_text(json.dumps({"phones": names}))
    (tmp_path / "speech.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    np.concatenate(speech).astype(np.int16).tofile(tmp_path / "speech.raw")
    np.save(tmp_path / "codes.npy", np.concatenate(codes, 1).astype(np.uint8))
    np.save(tmp_path / "frames.npy", np.cumsum([0, *LENGTHS]))
    return Pieces(FRAMES, 4)


def test_a_piece_s_codes_sound_and_phonemes_are_of_the_same_frames(some_pieces: Pieces) -> None:
    seen = set()
    for step in range(200):
        drawn = some_pieces.draw(np.random.default_rng(step))
        frames = drawn.codes[:, 0]
        assert drawn.codes.shape == (4, CODEBOOKS, FRAMES)
        assert torch.equal(drawn.sound * 32768, frames.repeat_interleave(HOP, 1).float())
        assert torch.equal(drawn.phones, frames.repeat_interleave(HOP // PHONE_HOP, 1))
        seen |= set(frames.flatten().tolist())
    assert seen == {*range(12), *range(17, 25)}  # all but what is held out and the frame that is not full


def test_a_share_of_the_pieces_has_the_encoder_s_codes(some_pieces: Pieces) -> None:
    some_pieces.heard = {2: np.tile(np.arange(117, 126), (CODEBOOKS, 1)).astype(np.uint8)}
    for step in range(50):
        drawn = some_pieces.draw(np.random.default_rng(step), heard=0.5)
        assert (drawn.codes[:2, 0] - 100 == drawn.phones[:2, :: HOP // PHONE_HOP]).all()
        assert (drawn.codes[2:] < 100).all()


def voiced(hertz: float) -> torch.Tensor:
    """[1, 19200]: a buzz."""
    time = torch.arange(20 * HOP) / SAMPLE_RATE
    return (0.05 * torch.stack([torch.sin(2 * torch.pi * hertz * n * time) / n for n in range(1, 20)]).sum(0))[None]


def test_faint_noise_counts_more_as_a_recogniser_hears_it() -> None:
    sound = voiced(120.0) * (torch.arange(20 * HOP) % 9600 < 4800)  # as long silent as not
    noisy = sound + 1e-3 * torch.randn(sound.shape, generator=torch.Generator().manual_seed(1))
    softer = sound * 0.8
    assert spoken_distance(sound, sound) == 0 == spectral_distance(sound, sound)
    assert spoken_distance(noisy, sound) / spoken_distance(softer, sound) > 3 * (
        spectral_distance(noisy, sound) / spectral_distance(softer, sound)
    )


def test_the_listener_s_gradient_reaches_the_sound() -> None:
    torch.manual_seed(1)
    listener = Listener(40).requires_grad_(False)
    one, other = voiced(120.0).requires_grad_(), voiced(180.0)
    layers, logits = listener(one)
    assert logits.shape == (1, 40, 20 * HOP // PHONE_HOP)
    assert len(layers) == 5
    assert heard_distance(listener, other, other) == 0
    heard_distance(listener, one, other).backward()
    assert one.grad is not None
    assert float(one.grad.abs().sum()) > 0
