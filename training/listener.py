"""Stage 4b, a listener: a small network that names the phoneme every 10 ms.

It is what the decoder of stage 5 is asked to please: sound in which it finds in all its layers what it finds in the
training speech is sound in which words can be told apart. Louder and softer, and with some noise, it hears the same.

    python -m training.listener 2500    # writes listener.pt
"""

import argparse

import numpy as np
import torch
import torch.nn.functional as F
import torchaudio
from torch import Tensor, nn

from training.pieces import PHONE_HOP, Pieces, phone_names
from training.settings import DECODER_SEED, SAMPLE_RATE, WORK

RATE, FRAMES, BATCH, CHANNELS, BANDS = 2e-3, 40, 16, 128, 48
DILATIONS = (1, 1, 2, 2, 3)
WINDOW = 1024
MELS = torchaudio.transforms.MelSpectrogram(
    SAMPLE_RATE,
    n_fft=WINDOW,
    win_length=614,
    hop_length=PHONE_HOP,
    f_min=100,
    f_max=6900,
    n_mels=BANDS,
    power=1,
    center=False,
)


class Listener(nn.Module):
    """Sound [B, T] -> what each layer has [B, 128, T / 240], and the phonemes' logits [B, phonemes, T / 240]."""

    def __init__(self, phones: int) -> None:
        super().__init__()
        self.conv = nn.ModuleList(
            nn.Conv1d(CHANNELS if layer else BANDS, CHANNELS, 5, padding=2 * wide, dilation=wide)
            for layer, wide in enumerate(DILATIONS)
        )
        self.norm = nn.ModuleList(nn.GroupNorm(1, CHANNELS) for _ in DILATIONS)
        self.out = nn.Conv1d(CHANNELS, phones, 1)

    def forward(self, sound: Tensor) -> tuple[list[Tensor], Tensor]:
        margin = (WINDOW - PHONE_HOP) // 2
        padded = F.pad(sound[:, None], (margin, margin), mode="reflect")[:, 0]
        hidden = (MELS(padded) + 2e-3).log() * 0.5 + 0.5
        hidden, layers = hidden - hidden.mean(2, keepdim=True), []
        for conv, norm in zip(self.conv, self.norm, strict=True):
            made = F.gelu(norm(conv(hidden)))
            hidden = hidden + made if layers else made
            layers.append(hidden)
        return layers, self.out(hidden)


def load() -> Listener:
    """The trained listener; its weights are held still, and gradients go through it."""
    listener = Listener(len(phone_names()))
    listener.load_state_dict(torch.load(WORK / "listener.pt"))
    return listener.requires_grad_(False)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("to", type=int, help="how many steps to train")
    to = parser.parse_args().to
    torch.manual_seed(DECODER_SEED)
    listener, pieces, right = Listener(len(phone_names())), Pieces(FRAMES, BATCH), 0.0
    optimizer = torch.optim.AdamW(listener.parameters(), RATE)
    for step in range(to):
        drawn = pieces.draw(np.random.default_rng([DECODER_SEED, 1, step]))
        loudness = 10 ** (torch.rand(BATCH, 1) * 0.6 - 0.4)
        noise = torch.randn_like(drawn.sound) * 10 ** (-2.2 - 2 * torch.rand(BATCH, 1))
        logits = listener(drawn.sound * loudness + noise)[1]
        loss = F.cross_entropy(logits, drawn.phones)
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / 100) * max(0.02, 1 - step / to)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        right = 0.97 * right + 0.03 * float((logits.argmax(1) == drawn.phones).float().mean())
        if step % 100 == 0 or step == to - 1:
            print(step, f"loss {loss.item():.3f}, right {right:.3f}", flush=True)
    torch.save(listener.state_dict(), WORK / "listener.pt")


if __name__ == "__main__":
    main()
