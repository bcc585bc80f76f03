"""Stage 5, the codec's decoder: from codes back to sound.

Differences of log-mel spectra at five resolutions, on random pieces of the training speech; DAC's decoder needs no more
to be understood. `codec/` is built first if it is not there yet.

    python -m training.decoder 4000      # trains up to that step; run again with a higher number to go on
    python -m training.decoder 1000 --rate 3e-4 --compile   # a decoder that is trained already, after new codebooks

`--compile` is quicker where there is a C++ compiler.
"""

import argparse
import json
import math
import time

import numpy as np
import torch
import torch.nn.functional as F
import torchaudio
from torch import Tensor, nn
from transformers import HiggsAudioV2TokenizerModel

from training.codebooks import load
from training.codec import build
from training.settings import DECODER_SEED, HELD_OUT, HOP, SAMPLE_RATE, WORK

RATE, FRAMES, BATCH, MARGIN = 1e-3, 20, 8, 2  # MARGIN: frames at either end that the loss leaves out
SPECTRA = [
    torchaudio.transforms.MelSpectrogram(
        SAMPLE_RATE, n_fft=max(width, 256), win_length=width, hop_length=width // 4, n_mels=bands, power=1
    )
    for width, bands in ((128, 10), (256, 20), (512, 40), (1024, 80), (2048, 120))
]


def spectral_distance(one: Tensor, other: Tensor) -> Tensor:
    """Mean absolute difference of log-mel spectra over all resolutions; [B, T] each."""
    terms = [F.l1_loss(mel(one).clamp(1e-3).log(), mel(other).clamp(1e-3).log()) for mel in SPECTRA]
    return torch.stack(terms).mean()


class Pieces:
    """Random pieces of codes with their sound."""

    def __init__(self) -> None:
        rows = [json.loads(line) for line in (WORK / "speech.jsonl").read_text().splitlines()]
        self.frames, self.codes = np.load(WORK / "frames.npy"), np.load(WORK / "codes.npy")
        rows = rows[: len(self.frames) - 1]
        self.samples = np.cumsum([0, *(row["samples"] for row in rows)])
        self.speech = np.memmap(WORK / "speech.raw", dtype=np.int16, mode="r")
        self.usable = [
            i for i, row in enumerate(rows) if row["text_index"] >= HELD_OUT and row["samples"] >= (FRAMES + 1) * HOP
        ]

    def draw(self, random: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Codes [BATCH, 8, FRAMES] and sound [BATCH, FRAMES * 960]."""
        codes, sound = [], []
        for _ in range(BATCH):
            i = self.usable[random.integers(len(self.usable))]
            last = (self.samples[i + 1] - self.samples[i]) // HOP - FRAMES
            at = int(random.integers(last + 1))
            codes.append(self.codes[:, self.frames[i] + at : self.frames[i] + at + FRAMES].astype(np.int64))
            start = self.samples[i] + at * HOP
            sound.append(np.float32(self.speech[start : start + FRAMES * HOP]) / 32768)
        return torch.from_numpy(np.stack(codes)), torch.from_numpy(np.stack(sound))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("to", type=int, help="the step to train up to")
    parser.add_argument("--rate", type=float, default=RATE, help="the learning rate at its height")
    parser.add_argument("--compile", action="store_true")
    arguments = parser.parse_args()
    to = arguments.to
    torch.manual_seed(DECODER_SEED)
    if not (WORK / "codec").exists():
        _, metrics, books = load()
        build(metrics, books).save_pretrained(WORK / "codec")
    model = HiggsAudioV2TokenizerModel.from_pretrained(WORK / "codec", dtype=torch.float32)
    trained = [*model.acoustic_decoder.parameters(), *model.fc2.parameters()]
    optimizer = torch.optim.AdamW(trained, lr=arguments.rate, betas=(0.8, 0.99), weight_decay=1e-3)
    progress = WORK / "decoder.pt"
    start = 0
    if progress.exists():
        saved = torch.load(progress)
        model.acoustic_decoder.load_state_dict(saved["decoder"])
        model.fc2.load_state_dict(saved["fc2"])
        optimizer.load_state_dict(saved["optimizer"])
        start = saved["step"]
    decode = torch.compile(model.acoustic_decoder) if arguments.compile else model.acoustic_decoder
    pieces, begun, shown = Pieces(), time.time(), 0.0
    edge = MARGIN * HOP
    for step in range(start, to):
        codes, sound = pieces.draw(np.random.default_rng([DECODER_SEED, step]))
        with torch.no_grad():
            latents = model.quantizer.decode(codes.transpose(0, 1))
        made = decode(model.fc2(latents.transpose(1, 2)).transpose(1, 2))[:, 0, : sound.shape[1]]
        loss = spectral_distance(made[:, edge:-edge], sound[:, edge:-edge])
        share = step / to
        for group in optimizer.param_groups:
            group["lr"] = arguments.rate * min(1.0, (step + 1) / 100) * (0.05 + 0.475 * (1 + math.cos(math.pi * share)))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        shown = 0.97 * shown + 0.03 * loss.item() if step > start else loss.item()
        if step % 50 == 0:
            print(step, f"{time.time() - begun:.0f} s, distance {shown:.3f}", flush=True)
        if step % 200 == 199 or step == to - 1:
            parts = {"decoder": model.acoustic_decoder.state_dict(), "fc2": model.fc2.state_dict()}
            torch.save(parts | {"optimizer": optimizer.state_dict(), "step": step + 1}, progress)
            model.save_pretrained(WORK / "codec")


if __name__ == "__main__":
    main()
