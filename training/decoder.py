"""Stage 5, the codec's decoder: from codes back to sound.

Differences of log-mel spectra at five resolutions, on random pieces of the training speech. `--listen` adds what words are
told apart by: the spectrum as a recogniser takes it (28 bands up to 6.8 kHz, every 10 ms), where squares weigh the great
errors in what is soft, and what the listener of stage 4b finds in the sound. `--heard` gives the decoder a share of codes as
the encoder makes them, beside the true ones. `codec/` is built first if it is not there yet.

    python -m training.decoder 4000      # trains up to that step; run again with a higher number to go on
    python -m training.decoder 2000 --rate 4e-4 --listen 1 --heard 0.4 --compile   # one that is trained already

`--compile` is quicker where there is a C++ compiler, and computes in bfloat16. To begin with a schedule of its own on the decoder that
`codec/` has, remove `decoder.pt`.
"""

import argparse
import math
import time

import numpy as np
import torch
import torch.nn.functional as F
import torchaudio
from torch import Tensor, nn
from transformers import HiggsAudioV2TokenizerModel

from training import listener
from training.codebooks import load
from training.codec import build
from training.pieces import Pieces
from training.settings import DECODER_SEED, HOP, SAMPLE_RATE, WORK

RATE, FRAMES, BATCH, MARGIN = 1e-3, 20, 8, 2  # MARGIN: frames at either end that the loss leaves out
EDGE = 8  # as many of the listener's 10 ms
HEARD = 2500  # utterances whose codes are the encoder's too
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


SPOKEN = torchaudio.transforms.MelSpectrogram(
    SAMPLE_RATE, n_fft=768, win_length=614, hop_length=240, f_min=130, f_max=6800, n_mels=28, power=1
)


def spoken_distance(one: Tensor, other: Tensor) -> Tensor:
    """Difference and twice its square of log-mel spectra as a recogniser takes them; [B, T] each."""
    error = SPOKEN(one).clamp(5e-4).log() - SPOKEN(other).clamp(5e-4).log()
    return error.abs().mean() + 2 * error.pow(2).mean()


def heard_distance(hearing: listener.Listener, one: Tensor, other: Tensor) -> Tensor:
    """What the listener finds different, in its layers and in the phonemes it names; [B, T] each."""
    layers, logits = hearing(one)
    with torch.no_grad():
        wanted, named = hearing(other)
    inner = slice(EDGE, -EDGE)
    layers_differ = sum(F.l1_loss(a[..., inner], b[..., inner]) for a, b in zip(layers, wanted, strict=True))
    named_differ = F.kl_div(
        F.log_softmax(logits[..., inner], 1), F.log_softmax(named[..., inner], 1), log_target=True, reduction="none"
    )
    return layers_differ / len(layers) + 0.2 * named_differ.sum(1).mean()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("to", type=int, help="the step to train up to")
    parser.add_argument("--rate", type=float, default=RATE, help="the learning rate at its height")
    parser.add_argument("--listen", type=float, default=0.0, metavar="WEIGHT", help="of what tells words apart")
    parser.add_argument("--heard", type=float, default=0.0, metavar="SHARE", help="of codes that are the encoder's")
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
    hearing = listener.load() if arguments.listen else None
    pieces, begun, shown = Pieces(FRAMES, BATCH), time.time(), 0.0
    if arguments.heard:
        pieces.hear(model, HEARD, DECODER_SEED)
    edge = MARGIN * HOP
    for step in range(start, to):
        drawn = pieces.draw(np.random.default_rng([DECODER_SEED, step]), arguments.heard)
        sound = drawn.sound
        with torch.no_grad():
            latents = model.quantizer.decode(drawn.codes.transpose(0, 1))
        with torch.autocast("cpu", torch.bfloat16, enabled=arguments.compile):
            made = decode(model.fc2(latents.transpose(1, 2)).transpose(1, 2))[:, 0, : sound.shape[1]]
        made = made.float()
        loss = spectral_distance(made[:, edge:-edge], sound[:, edge:-edge])
        if hearing is not None:
            spoken = spoken_distance(made[:, edge:-edge], sound[:, edge:-edge])
            loss = loss + arguments.listen * (0.75 * spoken + heard_distance(hearing, made, sound))
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
