"""Stage 6, the codec's encoder: from a waveform to the latents that stage 4 computes from its spectrum.

Plain regression, in the latent space and in the first codebook's metric, so that the first code comes out right.

    python -m training.encoder 20000 [--compile]

trains up to that step and writes into `codec/`; run again with a higher number to go on. `--compile` is quicker where there is
a C++ compiler.
"""

import json
import sys
import time

import numpy as np
import torch
from torch import Tensor, nn
from transformers import HiggsAudioV2TokenizerModel

from training.codebooks import LATENT, load, log_mel, nearest
from training.codec import ACOUSTIC, semantic_features
from training.settings import ENCODER_SEED, HELD_OUT, HOP, WORK

RATE, FRAMES, BATCH = 2e-3, 40, 12
POOL = 12_000  # pieces


class Crops:
    """Random pieces of the training speech, and what the acoustic half makes of them.

    That half is not trained and takes four fifths of the time, so its features are computed once for POOL pieces, which
    training then goes through again and again.
    """

    def __init__(self) -> None:
        rows = [json.loads(line) for line in (WORK / "speech.jsonl").read_text().splitlines()]
        offsets = np.cumsum([0, *(row["samples"] for row in rows)])
        self.speech = np.memmap(WORK / "speech.raw", dtype=np.int16, mode="r")
        usable = [i for i, row in enumerate(rows) if row["samples"] >= FRAMES * HOP and row["text_index"] >= HELD_OUT]
        random = np.random.default_rng(ENCODER_SEED)
        chosen = random.choice(usable, POOL)
        lengths = np.array([rows[i]["samples"] for i in chosen])
        self.starts = offsets[chosen] + random.integers(lengths - FRAMES * HOP + 1)
        louder = 10 ** random.uniform(-0.4, 0.1, POOL)
        self.gains = np.where(random.random(POOL) < 0.33, louder, 1.0).astype(np.float32)
        self.acoustic = np.zeros((POOL, FRAMES, ACOUSTIC), np.float16)

    def audio(self, which: np.ndarray) -> Tensor:
        """[len(which), FRAMES * 960]; one in three is louder or softer than the rest."""
        pieces = [
            np.float32(self.speech[self.starts[i] : self.starts[i] + FRAMES * HOP]) / 32768 * self.gains[i]
            for i in which
        ]
        return torch.from_numpy(np.stack(pieces))

    def hear(self, model: HiggsAudioV2TokenizerModel, compiled: bool) -> None:
        """Fill `acoustic`; if `acoustic.npz` is there, all is from it: pieces drawn when there was less speech stay theirs."""
        path, begun = WORK / "acoustic.npz", time.time()
        if path.exists():
            with np.load(path) as saved:
                self.starts, self.gains, self.acoustic = saved["starts"], saved["gains"], saved["acoustic"]
            return
        encoder = torch.compile(model.acoustic_encoder) if compiled else model.acoustic_encoder
        with torch.no_grad():
            for first in range(0, POOL, BATCH):
                which = np.arange(first, min(first + BATCH, POOL))
                heard = encoder(self.audio(which)[:, None])  # [B, 128, FRAMES]: of this length `encode` pads nothing
                self.acoustic[which] = heard.transpose(1, 2).half().numpy()
                if first // BATCH % 100 == 0:
                    print(f"acoustic half: {first} of {POOL} pieces, {time.time() - begun:.0f} s", flush=True)
        np.savez(path, starts=self.starts, gains=self.gains, acoustic=self.acoustic)


def encoded(model: HiggsAudioV2TokenizerModel, audio: Tensor, acoustic: Tensor) -> Tensor:
    """Latents [B, frames, 160] as `encode` computes them before it quantises, from audio [B, 1, T] and the acoustic half's
    features [B, frames, 128]."""
    semantic = model.encoder_semantic(semantic_features(model, audio).transpose(1, 2)).transpose(1, 2)
    return model.fc(torch.cat([acoustic, semantic], 2))[..., :LATENT]


def main() -> None:
    to, compiled = int(sys.argv[1]), "--compile" in sys.argv
    torch.manual_seed(ENCODER_SEED)
    basis, metrics, books = load()
    metric = metrics[0]
    model = HiggsAudioV2TokenizerModel.from_pretrained(WORK / "codec", dtype=torch.float32)
    progress = WORK / "encoder.pt"
    start = torch.load(progress)["step"] if progress.exists() else 0
    trained = [p for part in (model.semantic_model, model.encoder_semantic, model.fc) for p in part.parameters()]
    print(f"{sum(p.numel() for p in trained) / 1e6:.2f} M parameters", flush=True)
    optimizer = torch.optim.AdamW(trained, lr=RATE, betas=(0.9, 0.98), weight_decay=0.0)
    if start:
        model.load_state_dict(torch.load(progress)["model"])
        optimizer.load_state_dict(torch.load(progress)["optimizer"])
    crops, shown = Crops(), {}
    crops.hear(model, compiled)
    begun, round_ = time.time(), POOL // BATCH
    seen_book = books[0] @ metric.T
    for step in range(start, to):
        order = np.random.default_rng([ENCODER_SEED, step // round_]).permutation(POOL)
        which = order[step % round_ * BATCH : (step % round_ + 1) * BATCH]
        audio = crops.audio(which)
        target = basis.latent(log_mel(audio))
        latents = encoded(model, audio[:, None], torch.from_numpy(crops.acoustic[which]).float())
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
        if step % 100 == 0:
            print(
                step,
                f"{time.time() - begun:.0f} s",
                {name: round(value, 4) for name, value in shown.items()},
                flush=True,
            )
        if step % 500 == 499 or step == to - 1:
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}, progress)
            model.save_pretrained(WORK / "codec")


if __name__ == "__main__":
    main()
