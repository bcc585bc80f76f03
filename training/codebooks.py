"""Stage 4, the codebooks: a frame of sound as eight numbers.

A frame (40 ms) is four log-mel spectra of 80 bands, 320 numbers; their first 160 principal components are the codec's
latent. Eight codebooks of 256 entries quantise it residually. The first looks along the directions that tell phonemes
apart (linear discriminants of flite's own labels, within-phoneme spread whitened), as the real codec's semantic half
does, so that text predicts it; the other seven are plain residual k-means.

    python -m training.codebooks

writes `codebooks.pt` (basis and books), `codes.npy` [8, frames] uint8 in the order of `speech.jsonl`, and `frames.npy`,
the first frame of each utterance and, last, the number of all frames.
"""

import json
import time

import numpy as np
import torch
import torchaudio
from torch import Tensor

from training.settings import CODEBOOK_SEED, CODEBOOK_SIZE, CODEBOOKS, HOP, SAMPLE_RATE, WORK

LATENT = 160
FITTED_ON = 250_000  # frames
ROUNDS = 20
MELS = torchaudio.transforms.MelSpectrogram(
    SAMPLE_RATE,
    n_fft=1024,
    win_length=720,
    hop_length=240,
    n_mels=80,
    power=1,
    center=False,
    norm="slaney",
    mel_scale="slaney",
)


def log_mel(audio: Tensor) -> Tensor:
    """Log-mel frames [B, N, 320] of audio [B, N * 960]."""
    margin = (1024 - 240) // 2
    padded = torch.nn.functional.pad(audio[:, None], (margin, margin), mode="reflect")[:, 0]
    mel = torch.log(MELS(padded).clamp(1e-4))
    frames = audio.shape[1] // HOP
    return mel[:, :, : 4 * frames].transpose(1, 2).reshape(len(audio), frames, 320)


class Basis:
    """The latent space: mean [320], components [320, 160] and one scale, so that a latent has unit variance on average."""

    def __init__(self, mean: Tensor, components: Tensor, scale: Tensor) -> None:
        self.mean, self.components, self.scale = mean, components, scale

    def latent(self, frames: Tensor) -> Tensor:
        """Latents [..., 160] of log-mel frames [..., 320]."""
        return (frames - self.mean) @ self.components / self.scale

    @classmethod
    def fit(cls, frames: Tensor) -> "Basis":
        mean = frames.mean(0)
        _, vectors = torch.linalg.eigh(torch.cov((frames - mean).T))
        components = vectors[:, -LATENT:].flip(1)
        return cls(mean, components, ((frames - mean) @ components).std())


def phoneme_metric(latents: Tensor, phones: Tensor) -> Tensor:
    """A square matrix [160, 160]: distances after it weigh what tells phonemes apart, and hardly what does not."""
    classes = [latents[phones == p] for p in phones.unique() if int((phones == p).sum()) > 200]
    total = sum(len(c) for c in classes)
    mean = torch.cat(classes).mean(0)
    within = sum((torch.cov(c.T) * (len(c) / total) for c in classes), torch.zeros(LATENT, LATENT))
    between = sum((torch.outer(c.mean(0) - mean, c.mean(0) - mean) * (len(c) / total) for c in classes), 0 * within)
    within = within + 0.02 * within.diagonal().mean() * torch.eye(LATENT)
    values, vectors = torch.linalg.eigh(within)
    whiten = vectors @ torch.diag(values.rsqrt()) @ vectors.T
    ratios, directions = torch.linalg.eigh(whiten @ between @ whiten)
    weights = (ratios.clamp(0) / (ratios.clamp(0) + 0.3)).sqrt().clamp(min=0.06)
    return torch.diag(weights) @ directions.T @ whiten


def nearest(points: Tensor, book: Tensor) -> Tensor:
    """Index [N] of the nearest entry of `book` [K, D] for each of `points` [N, D]."""
    half_norm = book.pow(2).sum(1) / 2
    return torch.cat([(piece @ book.T - half_norm).argmax(1) for piece in points.split(8192)])


def k_means(points: Tensor, generator: torch.Generator) -> Tensor:
    """A book [256, D]; entries that lose all their points are set on random points again."""
    book = points[torch.randperm(len(points), generator=generator)[:CODEBOOK_SIZE]].clone()
    for _ in range(ROUNDS):
        index = nearest(points, book)
        counts = torch.bincount(index, minlength=CODEBOOK_SIZE)
        book = torch.zeros_like(book).index_add_(0, index, points) / counts.clamp(min=1)[:, None]
        empty = counts == 0
        book[empty] = points[torch.randint(len(points), (int(empty.sum()),), generator=generator)]
    return book


def quantize(latents: Tensor, metric: Tensor, books: Tensor) -> tuple[Tensor, Tensor]:
    """Codes [8, N] of latents [N, 160], and what is left unexplained. `books` [8, 256, 160] are in latent space."""
    residual, codes = latents, []
    for level, book in enumerate(books):
        index = nearest(residual @ metric.T, book @ metric.T) if level == 0 else nearest(residual, book)
        residual = residual - book[index]
        codes.append(index)
    return torch.stack(codes), residual


def load() -> tuple[Basis, Tensor, Tensor]:
    """Basis, metric of the first codebook, books [8, 256, 160]."""
    saved = torch.load(WORK / "codebooks.pt")
    return Basis(saved["mean"], saved["components"], saved["scale"]), saved["metric"], saved["books"]


def fit(features: Tensor, phones: Tensor) -> None:
    """Fit basis and books to log-mel frames [N, 320] with their phonemes [N], and write `codebooks.pt`."""
    generator = torch.Generator().manual_seed(CODEBOOK_SEED)
    started = time.time()
    chosen = torch.randperm(len(features), generator=generator)[:FITTED_ON]
    sample, named = features[chosen].float(), phones[chosen]
    basis = Basis.fit(sample)
    latents = basis.latent(sample)
    metric = phoneme_metric(latents, named)
    variance, residual, books = float(latents.var()), latents, []
    for level in range(CODEBOOKS):
        if level == 0:
            seen = residual @ metric.T
            index = nearest(seen, k_means(seen, generator))
            counts = torch.bincount(index, minlength=CODEBOOK_SIZE).clamp(min=1)
            book = torch.zeros(CODEBOOK_SIZE, LATENT).index_add_(0, index, residual) / counts[:, None]
            table = torch.zeros(CODEBOOK_SIZE, int(named.max()) + 1).index_put_((index, named), torch.ones(()), True)
            print(f"the first code names the phoneme in {float(table.max(1).values.sum() / table.sum()):.3f} of frames")
        else:
            book = k_means(residual, generator)
            index = nearest(residual, book)
        residual = residual - book[index]
        books.append(book)
        print(
            f"codebook {level}: {float(residual.var()) / variance:.4f} left, {time.time() - started:.0f} s", flush=True
        )
    saved = {"mean": basis.mean, "components": basis.components, "scale": basis.scale, "metric": metric}
    torch.save(saved | {"books": torch.stack(books)}, WORK / "codebooks.pt")


def main() -> None:
    started = time.time()
    utterances = [json.loads(line) for line in (WORK / "speech.jsonl").read_text().splitlines()]
    lengths = np.array([-(-u["samples"] // HOP) for u in utterances])
    starts = np.cumsum([0, *lengths])
    offsets = np.cumsum([0, *(u["samples"] for u in utterances)])
    speech = np.memmap(WORK / "speech.raw", dtype=np.int16, mode="r")
    codes = np.load(WORK / "codes.npy") if (WORK / "codes.npy").exists() else np.zeros((CODEBOOKS, 0), np.uint8)
    first = int(np.searchsorted(starts, codes.shape[1]))  # utterances that have their codes already
    features = torch.empty(int(starts[-1] - starts[first]), 320, dtype=torch.float16)
    for i in range(first, len(utterances)):
        audio = torch.zeros(1, lengths[i] * HOP)
        audio[0, : utterances[i]["samples"]] = torch.from_numpy(
            speech[offsets[i] : offsets[i + 1]].astype(np.float32) / 32768
        )
        features[starts[i] - starts[first] : starts[i + 1] - starts[first]] = log_mel(audio)[0].half()
    print(f"{len(features)} frames, {len(features) / 25 / 3600:.1f} hours, {time.time() - started:.0f} s", flush=True)
    if not (WORK / "codebooks.pt").exists():
        phones = np.load(WORK / "align.npz")["frame_phone"][starts[first] : starts[-1]]
        fit(features, torch.from_numpy(phones.astype(np.int64)))
    basis, metric, books = load()
    new = [quantize(basis.latent(piece.float()), metric, books)[0].to(torch.uint8) for piece in features.split(8192)]
    np.save(WORK / "codes.npy", np.concatenate([codes, *(piece.numpy() for piece in new)], 1))
    np.save(WORK / "frames.npy", starts)
    print(f"{time.time() - started:.0f} s")


if __name__ == "__main__":
    main()
