"""Random pieces of the training speech for the stages of the codec: sound, true codes, and the phoneme every 10 ms."""

import json
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import HiggsAudioV2TokenizerModel

from training.settings import HELD_OUT, HOP, SAMPLE_RATE, WORK

PHONE_HOP = 240  # samples between two phonemes named


@dataclass(frozen=True, slots=True)
class Drawn:
    """`codes` [B, 8, frames], `sound` [B, frames * 960], `phones` [B, frames * 4]."""

    codes: Tensor
    sound: Tensor
    phones: Tensor


class Pieces:
    """Pieces of `frames` frames, `batch` at a time."""

    def __init__(self, frames: int, batch: int) -> None:
        rows = [json.loads(line) for line in (WORK / "speech.jsonl").read_text().splitlines()]
        self.frames, self.codes = np.load(WORK / "frames.npy"), np.load(WORK / "codes.npy")
        rows = rows[: len(self.frames) - 1]
        self.long, self.batch = frames, batch
        self.samples = np.cumsum([0, *(row["samples"] for row in rows)])
        self.speech = np.memmap(WORK / "speech.raw", dtype=np.int16, mode="r")
        self.usable = [
            i for i, row in enumerate(rows) if row["text_index"] >= HELD_OUT and row["samples"] >= (frames + 1) * HOP
        ]
        number = {name: i for i, name in enumerate(phone_names())}
        self.ends = [np.array([end for _, end in row["phones"]], np.float32) for row in rows]
        self.phones = [np.array([number[name] for name, _ in row["phones"]]) for row in rows]
        self.heard: dict[int, np.ndarray] = {}

    def draw(self, random: np.random.Generator, heard: float = 0.0) -> Drawn:
        """`heard`: the share of the pieces whose codes are the encoder's (see `hear`)."""
        own, drawn = list(self.heard), []
        for number in range(self.batch):
            from_heard = number < round(heard * self.batch)
            i = own[random.integers(len(own))] if from_heard else self.usable[random.integers(len(self.usable))]
            at = int(random.integers((self.samples[i + 1] - self.samples[i]) // HOP - self.long + 1))
            codes = self.heard[i] if from_heard else self.codes[:, self.frames[i] : self.frames[i + 1]]
            start = self.samples[i] + at * HOP
            times = (at * HOP + PHONE_HOP * (np.arange(self.long * HOP // PHONE_HOP) + 0.5)) / SAMPLE_RATE
            phone = np.searchsorted(self.ends[i], times).clip(0, len(self.ends[i]) - 1)
            sound = np.float32(self.speech[start : start + self.long * HOP]) / 32768
            drawn.append((codes[:, at : at + self.long].astype(np.int64), sound, self.phones[i][phone]))
        return Drawn(*(torch.from_numpy(np.stack(parts)) for parts in zip(*drawn, strict=True)))

    @torch.inference_mode()
    def hear(self, codec: HiggsAudioV2TokenizerModel, count: int, seed: int) -> None:
        """What the encoder makes of that many utterances, for `draw`; kept in `heard.npz` and taken from there."""
        path = WORK / "heard.npz"
        if not path.exists():
            made = {}
            for i in np.random.default_rng(seed).choice(self.usable, min(count, len(self.usable)), replace=False):
                sound = np.float32(self.speech[self.samples[i] : self.samples[i + 1]]) / 32768
                sound = np.pad(sound, (0, -len(sound) % HOP))
                codes = codec.encode(torch.from_numpy(sound)[None, None], bandwidth=1.6).audio_codes[0]
                made[str(i)] = codes.numpy().astype(np.uint8)
            np.savez(path, **made)
        with np.load(path) as saved:
            self.heard = {int(name): saved[name] for name in saved}


def phone_names() -> list[str]:
    """The phonemes, in the order of their numbers."""
    return json.loads((WORK / "align.json").read_text())["phones"]
