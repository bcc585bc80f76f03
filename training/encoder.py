"""Stage 6, the codec's encoder: from a waveform to the latents that stage 4 computes from its spectrum.

Plain regression, in the latent space and in the first codebook's metric, so that the first code comes out right.

    python -m training.encoder 2000

trains up to that step and writes into `codec/`; run again with a higher number to go on.
"""

import json
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import HiggsAudioV2TokenizerModel

from training.codebooks import LATENT, load, log_mel, nearest
from training.codec import semantic_features
from training.settings import ENCODER_SEED, HELD_OUT, HOP, WORK

RATE, FRAMES, BATCH = 2e-3, 40, 12


class Crops:
    """Random pieces of the training speech."""

    def __init__(self, frames: int) -> None:
        rows = [json.loads(line) for line in (WORK / "speech.jsonl").read_text().splitlines()]
        offsets = np.cumsum([0, *(row["samples"] for row in rows)])
        self.speech, self.frames = np.memmap(WORK / "speech.raw", dtype=np.int16, mode="r"), frames
        self.places = [
            (int(offsets[i]), row["samples"])
            for i, row in enumerate(rows)
            if row["samples"] >= frames * HOP and row["text_index"] >= HELD_OUT
        ]

    def draw(self, random: np.random.Generator, count: int) -> Tensor:
        """[count, frames * 960]; one in three is louder or softer than the rest."""
        pieces = []
        for _ in range(count):
            start, length = self.places[random.integers(len(self.places))]
            at = start + random.integers(length - self.frames * HOP + 1)
            gain = 10 ** random.uniform(-0.4, 0.1) if random.random() < 0.33 else 1.0
            pieces.append(np.float32(self.speech[at : at + self.frames * HOP]) / 32768 * np.float32(gain))
        return torch.from_numpy(np.stack(pieces))


def encoded(model: HiggsAudioV2TokenizerModel, audio: Tensor) -> Tensor:
    """Latents [B, frames, 160] as `encode` computes them before it quantises."""
    semantic = model.encoder_semantic(semantic_features(model, audio).transpose(1, 2))
    with torch.no_grad():
        acoustic = model.acoustic_encoder(audio)
        if acoustic.shape[2] != semantic.shape[2]:
            acoustic = model.acoustic_encoder(F.pad(audio, (model.pad, model.pad)))
    return model.fc(torch.cat([acoustic, semantic], 1).transpose(1, 2))[..., :LATENT]


def main() -> None:
    to = int(sys.argv[1])
    torch.manual_seed(ENCODER_SEED)
    basis, metric, books = load()
    model = HiggsAudioV2TokenizerModel.from_pretrained(WORK / "codec", dtype=torch.float32)
    progress = WORK / "encoder.pt"
    start = torch.load(progress)["step"] if progress.exists() else 0
    trained = [p for part in (model.semantic_model, model.encoder_semantic, model.fc) for p in part.parameters()]
    print(f"{sum(p.numel() for p in trained) / 1e6:.2f} M parameters", flush=True)
    optimizer = torch.optim.AdamW(trained, lr=RATE, betas=(0.9, 0.98), weight_decay=0.0)
    if start:
        model.load_state_dict(torch.load(progress)["model"])
        optimizer.load_state_dict(torch.load(progress)["optimizer"])
    crops, begun, shown = Crops(FRAMES), time.time(), {}
    seen_book = books[0] @ metric.T
    for step in range(start, to):
        audio = crops.draw(np.random.default_rng([ENCODER_SEED, step]), BATCH)
        target = basis.latent(log_mel(audio))
        latents = encoded(model, audio[:, None])
        inner, goal = latents[:, 1:-1], target[:, 1:-1]
        left = (inner - goal).pow(2).mean() / goal.var()
        seen, wanted = inner @ metric.T, goal @ metric.T
        left_seen = (seen - wanted).pow(2).mean() / wanted.var()
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / 100) * max(0.02, 1 - step / to)
        optimizer.zero_grad()
        (left + left_seen).backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        with torch.no_grad():
            same = nearest(seen.reshape(-1, LATENT), seen_book) == nearest(wanted.reshape(-1, LATENT), seen_book)
        for name, value in (
            ("left", left),
            ("left in the metric", left_seen),
            ("first code right", same.float().mean()),
        ):
            shown[name] = 0.97 * shown.get(name, float(value.detach())) + 0.03 * float(value.detach())
        if step % 25 == 0:
            print(
                step,
                f"{time.time() - begun:.0f} s",
                {name: round(value, 4) for name, value in shown.items()},
                flush=True,
            )
        if step % 200 == 199 or step == to - 1:
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}, progress)
            model.save_pretrained(WORK / "codec")


if __name__ == "__main__":
    main()
