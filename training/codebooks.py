"""Stage 4, the codebooks: a frame of sound as eight numbers.

A frame (40 ms) is four log-mel spectra of 80 bands, 320 numbers; their first 160 principal components are the codec's
latent. Eight codebooks of 256 entries quantise it residually. The first looks along the directions that tell phonemes
apart (linear discriminants of flite's own labels, within-phoneme spread whitened), as the real codec's semantic half
does, so that text predicts it; the other seven, residual k-means, weigh what an ear hears: the envelope over broad bands
more than the harmonics within them.

    python -m training.codebooks
    python -m training.codebooks --refit 3

The second call fits the codebooks from that number on anew, for a codec and a model that are trained already: each entry begins
as the old one and keeps its number, `codec/` gets the new entries, the speech new codes. Encoder and decoder know latents, not
codes, and go on from where they are; so does the model, whose tables then are to follow. Otherwise it `codebooks.pt` (basis and books), `codes.npy` [8, frames] uint8 in the order of `speech.jsonl`, and `frames.npy`,
the first frame of each utterance and, last, the number of all frames.
"""

import argparse
import json
import time

import numpy as np
import torch
import torchaudio
from torch import Tensor
from transformers import HiggsAudioV2TokenizerModel

from training.settings import CODEBOOK_SEED, CODEBOOK_SIZE, CODEBOOKS, HOP, SAMPLE_RATE, WORK

LATENT = 160
FITTED_ON = 250_000  # frames
ROUNDS = 20
BROAD = 4  # mel bands that an ear's broad band has
EAR, HIGH = 6.0, 0.3  # weight of the broad bands' error beside that of the latents; of bands above 8 kHz among them
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


def ear_metric(basis: Basis) -> Tensor:
    """A square matrix [160, 160]: distances after it are those of latents and, EAR times, of levels in broad bands."""
    bands = 80 // BROAD
    broad = torch.eye(bands).repeat_interleave(BROAD, 0) / BROAD  # [80, 20]
    peaks = torchaudio.functional.melscale_fbanks(
        513, 0.0, SAMPLE_RATE / 2, 80, SAMPLE_RATE, "slaney", "slaney"
    ).argmax(0)
    high = (peaks * (SAMPLE_RATE / 1024)).view(bands, BROAD).float().mean(1) > 8000
    broad = broad * torch.where(high, HIGH, 1.0)
    heard = (basis.scale * basis.components.T) @ torch.block_diag(broad, broad, broad, broad)  # four spectra a frame
    heard = heard @ heard.T
    values, vectors = torch.linalg.eigh(torch.eye(LATENT) + EAR / BROAD * heard / heard.diagonal().mean())
    return torch.diag(values.sqrt()) @ vectors.T


def nearest(points: Tensor, book: Tensor) -> Tensor:
    """Index [N] of the nearest entry of `book` [K, D] for each of `points` [N, D]."""
    half_norm = book.pow(2).sum(1) / 2
    return torch.cat([(piece @ book.T - half_norm).argmax(1) for piece in points.split(8192)])


def k_means(points: Tensor, generator: torch.Generator, begin: Tensor | None = None) -> Tensor:
    """A book [256, D], from `begin` on or from random points; entries that lose all their points are set on random ones again."""
    book = begin if begin is not None else points[torch.randperm(len(points), generator=generator)[:CODEBOOK_SIZE]]
    book = book.clone()
    for _ in range(ROUNDS):
        index = nearest(points, book)
        counts = torch.bincount(index, minlength=CODEBOOK_SIZE)
        book = torch.zeros_like(book).index_add_(0, index, points) / counts.clamp(min=1)[:, None]
        empty = counts == 0
        book[empty] = points[torch.randint(len(points), (int(empty.sum()),), generator=generator)]
    return book


def quantize(latents: Tensor, metrics: Tensor, books: Tensor) -> tuple[Tensor, Tensor]:
    """Codes [levels, N] of latents [N, 160], and what is left unexplained. `books` [levels, 256, 160] are in latent space."""
    residual, codes = latents, []
    for metric, book in zip(metrics, books, strict=True):
        index = nearest(residual @ metric.T, book @ metric.T)
        residual = residual - book[index]
        codes.append(index)
    return torch.stack(codes) if codes else torch.zeros(0, len(latents), dtype=torch.long), residual


def load() -> tuple[Basis, Tensor, Tensor]:
    """Basis, metrics [8, 160, 160] and books [8, 256, 160]."""
    saved = torch.load(WORK / "codebooks.pt")
    return Basis(saved["mean"], saved["components"], saved["scale"]), saved["metrics"], saved["books"]


def save(basis: Basis, metrics: Tensor, books: Tensor) -> None:
    """Write `codebooks.pt`."""
    saved = {
        "mean": basis.mean,
        "components": basis.components,
        "scale": basis.scale,
        "metrics": metrics,
        "books": books,
    }
    torch.save(saved, WORK / "codebooks.pt")


def fit(features: Tensor, phones: Tensor, keep: int = 0) -> None:
    """Fit basis and books to log-mel frames [N, 320] with their phonemes [N], and write `codebooks.pt`.

    With `keep` the basis and so many of the books there stay, and the others are fitted anew from their entries on.
    """
    generator = torch.Generator().manual_seed(CODEBOOK_SEED)
    started = time.time()
    chosen = torch.randperm(len(features), generator=generator)[:FITTED_ON]
    sample, named = features[chosen].float(), phones[chosen]
    if keep:
        basis, metrics, earlier = load()
        metrics[keep:] = ear_metric(basis)
    else:
        basis, earlier = Basis.fit(sample), None
        metrics = ear_metric(basis).repeat(CODEBOOKS, 1, 1)
        metrics[0] = phoneme_metric(basis.latent(sample), named)
    latents = basis.latent(sample)
    books = [] if earlier is None else list(earlier[:keep])
    residual = latents if not books else quantize(latents, metrics[:keep], torch.stack(books))[1]
    for level in range(keep, CODEBOOKS):
        seen = residual @ metrics[level].T
        begin = None if earlier is None else earlier[level] @ metrics[level].T
        index = nearest(seen, k_means(seen, generator, begin))
        counts = torch.bincount(index, minlength=CODEBOOK_SIZE).clamp(min=1)
        book = torch.zeros(CODEBOOK_SIZE, LATENT).index_add_(0, index, residual) / counts[:, None]
        if level == 0:
            table = torch.zeros(CODEBOOK_SIZE, int(named.max()) + 1).index_put_((index, named), torch.ones(()), True)
            print(f"the first code names the phoneme in {float(table.max(1).values.sum() / table.sum()):.3f} of frames")
        residual = residual - book[nearest(seen, book @ metrics[level].T)]
        books.append(book)
        left, heard = float(residual.var() / latents.var()), (residual @ metrics[-1].T).var()
        heard = float(heard / (latents @ metrics[-1].T).var())
        print(f"codebook {level}: {left:.4f} left, {heard:.4f} to an ear, {time.time() - started:.0f} s", flush=True)
    save(basis, metrics, torch.stack(books))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--refit", type=int, metavar="LEVEL", help="fit the codebooks from this one on anew (1 to 7)")
    refit = parser.parse_args().refit
    started = time.time()
    utterances = [json.loads(line) for line in (WORK / "speech.jsonl").read_text().splitlines()]
    lengths = np.array([-(-u["samples"] // HOP) for u in utterances])
    starts = np.cumsum([0, *lengths])
    offsets = np.cumsum([0, *(u["samples"] for u in utterances)])
    speech = np.memmap(WORK / "speech.raw", dtype=np.int16, mode="r")
    coded = (WORK / "codes.npy").exists() and not refit
    codes = np.load(WORK / "codes.npy") if coded else np.zeros((CODEBOOKS, 0), np.uint8)
    first = int(np.searchsorted(starts, codes.shape[1]))  # utterances that have their codes already
    features = torch.empty(int(starts[-1] - starts[first]), 320, dtype=torch.float16)
    for i in range(first, len(utterances)):
        audio = torch.zeros(1, lengths[i] * HOP)
        audio[0, : utterances[i]["samples"]] = torch.from_numpy(
            speech[offsets[i] : offsets[i + 1]].astype(np.float32) / 32768
        )
        features[starts[i] - starts[first] : starts[i + 1] - starts[first]] = log_mel(audio)[0].half()
    print(f"{len(features)} frames, {len(features) / 25 / 3600:.1f} hours, {time.time() - started:.0f} s", flush=True)
    if refit or not (WORK / "codebooks.pt").exists():
        phones = np.load(WORK / "align.npz")["frame_phone"][starts[first] : starts[-1]]
        fit(features, torch.from_numpy(phones.astype(np.int64)), refit or 0)
    basis, metrics, books = load()
    if refit and (WORK / "codec").exists():
        from training.codec import fill

        codec = HiggsAudioV2TokenizerModel.from_pretrained(WORK / "codec", dtype=torch.float32)
        fill(codec, metrics, books)
        codec.save_pretrained(WORK / "codec")
    new = [quantize(basis.latent(piece.float()), metrics, books)[0].to(torch.uint8) for piece in features.split(8192)]
    np.save(WORK / "codes.npy", np.concatenate([codes, *(piece.numpy() for piece in new)], 1))
    np.save(WORK / "frames.npy", starts)
    print(f"{time.time() - started:.0f} s")


if __name__ == "__main__":
    main()
