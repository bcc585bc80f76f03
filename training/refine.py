"""Stage 6b, the encoder again, by what becomes of its codes.

Stage 6 brings its latents near to those of the spectrum; which codes they fall to, and what is heard of them, it does not ask.
Here its latents are quantised and decoded, and the sound is compared as in stage 5 (`--listen`), beside the latents. Quantising has
no gradient: the decoder's is given to the latents as it is ("straight through", van den Oord et al., 2017). Codebooks and
the acoustic half stay as they are, so the model's codes mean what they meant. So does the decoder, unless `--both` trains it along;
three pieces of eight then have their true codes, which are what the model speaks. What is kept is the average over the last steps.

    python -m training.refine 2500 [--compile] [--both]
"""

import argparse
import math
import time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import HiggsAudioV2TokenizerModel

from training import listener
from training.codebooks import LATENT, load, log_mel, quantize
from training.decoder import MARGIN, heard_distance, spectral_distance, spoken_distance
from training.encoder import encoded
from training.pieces import Pieces
from training.settings import ENCODER_SEED, HOP, WORK

RATE, FRAMES, BATCH = 3e-4, 24, 8
DECODER_RATE, TRUE = 2e-4, 3  # TRUE: pieces with their true codes, where the decoder is trained
DECAY = 0.998  # of the average that is kept


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("to", type=int, help="the step to train up to")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--both", action="store_true", help="train the decoder too")
    arguments = parser.parse_args()
    to = arguments.to
    torch.manual_seed(ENCODER_SEED)
    basis, metrics, books = load()
    codec = HiggsAudioV2TokenizerModel.from_pretrained(WORK / "codec", dtype=torch.float32)
    trained = [p for part in (codec.semantic_model, codec.encoder_semantic, codec.fc) for p in part.parameters()]
    groups: list[dict[str, Any]] = [{"params": trained, "height": RATE}]
    if arguments.both:
        decoding = [*codec.acoustic_decoder.parameters(), *codec.fc2.parameters()]
        groups.append({"params": decoding, "height": DECODER_RATE, "betas": (0.8, 0.99), "weight_decay": 1e-3})
    else:
        codec.acoustic_decoder.requires_grad_(False)
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.98), weight_decay=0.0)
    average = AveragedModel(codec, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
    progress, start = WORK / "refine.pt", 0
    if progress.exists():
        saved = torch.load(progress)
        if len(saved["optimizer"]["param_groups"]) != len(groups):
            raise SystemExit(f"{progress} was begun {'without' if arguments.both else 'with'} --both: remove it first")
        codec.load_state_dict(saved["codec"])
        average.load_state_dict(saved["average"])
        optimizer.load_state_dict(saved["optimizer"])
        start = saved["step"]
    hear, say = codec.acoustic_encoder, codec.acoustic_decoder
    if arguments.compile:
        hear, say = torch.compile(hear), torch.compile(say)
    hearing, pieces, begun = listener.load(), Pieces(FRAMES, BATCH), time.time()
    levels, ear, edge, shown = torch.arange(len(books))[:, None], metrics[-1], MARGIN * HOP, {}
    for step in range(start, to):
        drawn = pieces.draw(np.random.default_rng([ENCODER_SEED, 1, step]))
        sound = drawn.sound
        with torch.no_grad():
            # Not in bfloat16: DAC's encoder makes something else of it.
            acoustic, wanted = hear(sound[:, None]).transpose(1, 2), basis.latent(log_mel(sound))
        latents = encoded(codec, sound[:, None], acoustic)
        error, goal = (latents - wanted)[:, 1:-1], wanted[:, 1:-1]
        left = error.pow(2).mean() / goal.pow(2).mean()
        left_heard = (error @ ear.T).pow(2).mean() / (goal @ ear.T).pow(2).mean()
        with torch.no_grad():
            codes = quantize(latents.reshape(-1, LATENT), metrics, books)[0]
            entries = books[levels, codes].sum(0).view_as(latents)
            true = books[levels[..., None], drawn.codes.transpose(0, 1)].sum(0)
        through = entries + latents - latents.detach()
        if arguments.both:
            through = torch.cat([true[:TRUE], through[TRUE:]])
        inner = codec.fc2(F.pad(through, (0, codec.fc2.in_features - LATENT))).transpose(1, 2)
        with torch.autocast("cpu", torch.bfloat16, enabled=arguments.compile):
            said = say(inner)
        said = said[:, 0].float()
        spectra = spectral_distance(said[:, edge:-edge], sound[:, edge:-edge])
        spoken = spoken_distance(said[:, edge:-edge], sound[:, edge:-edge])
        heard = heard_distance(hearing, said, sound)
        loss = 5 * left + 10 * left_heard + spectra + 1.2 * spoken + 1.5 * heard
        for group in optimizer.param_groups:
            group["lr"] = (
                group["height"] * min(1.0, (step + 1) / 100) * (0.02 + 0.49 * (1 + math.cos(math.pi * step / to)))
            )
        optimizer.zero_grad()
        loss.backward()
        for group in groups:
            nn.utils.clip_grad_norm_(group["params"], 1.0)
        optimizer.step()
        average.update_parameters(codec)
        for name, value in (("left", left), ("spectra", spectra), ("spoken", spoken), ("heard", heard)):
            shown[name] = 0.97 * shown.get(name, value.item()) + 0.03 * value.item()
        if step % 50 == 0:
            print(
                step,
                f"{time.time() - begun:.0f} s",
                {name: round(value, 4) for name, value in shown.items()},
                flush=True,
            )
        if step % 250 == 249 or step == to - 1:
            parts = {"codec": codec.state_dict(), "average": average.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(parts | {"step": step + 1}, progress)
            average.module.save_pretrained(WORK / "codec")


if __name__ == "__main__":
    main()
