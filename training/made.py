"""Stage 8, codes as they will come: what the decoder hears once the voice speaks, in place of the true codes.

The language model's guesses at the fine codebooks are hardly better than chance, and what the encoder makes of a clip is
not what the codebooks make of its spectrum. A decoder that was trained on true codes alone takes both at their word. So
for some of the training speech the codes are made again, frame by frame in step with the sound: by the model, which
hears the true codes so far and says the next ones, and by the encoder.

    python -m training.made 4000        # so many utterances

writes `made.npz`: `which` [N] utterances (indices into `frames.npy`), `starts` [N + 1] their first frames in `model` and
`encoder` [8, frames] uint8. `python -m training.decoder … --made` then trains on all three kinds.
"""

import json
import random
import sys
import time

import numpy as np
import torch
from torch import Tensor
from transformers import HiggsAudioV2TokenizerModel

from training.model import VOICE_WEIGHT, Speech, Trainee, tokenizer
from training.prompts import Layout, delayed, scene
from training.settings import CODEBOOK_SIZE, CODEBOOKS, DECODER_SEED, HOP, WORK

LENGTH, BATCH = 768, 6  # tokens of a conversation, conversations at a time
TEMPERATURE = 0.2  # at which the voice speaks


def undelayed(rows: Tensor, frames: int) -> Tensor:
    """Codes [8, frames] of an utterance from what was said row by row, [frames + 8, 8]: the inverse of `delayed`, whose
    first row is not said by anyone."""
    return torch.stack([rows[q : q + frames, q] for q in range(CODEBOOKS)])


def drawn(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Codes [..., 8] drawn from logits [..., 8, 258] among the codebook's own entries."""
    p = (logits[..., :CODEBOOK_SIZE] / TEMPERATURE).softmax(-1)
    return torch.multinomial(p.flatten(0, -2), 1, generator=generator).view(p.shape[:-1])


class Guesser:
    """The language model as it is trained so far."""

    def __init__(self) -> None:
        names = json.loads((WORK / "align.json").read_text())
        self.trainee = Trainee(len(tokenizer()), len(names["sounds"]) + 1, len(names["phones"]))
        self.trainee.load_state_dict(torch.load(WORK / "model.pt", map_location="cpu")["average"])
        self.generator = torch.Generator().manual_seed(DECODER_SEED)

    @torch.inference_mode()
    def guess(self, ids: Tensor, audio: Tensor, rows: Tensor) -> Tensor:
        """For each audio row [A, 8] what the model says in its place, hearing all true ones before it; `audio` [A] are flat
        places in `ids` [B, L]."""
        states, _ = self.trainee.states(ids, audio, rows, None)
        final = self.trainee.higgs.model.norm(states[-1][audio - 1])
        logits = self.trainee.higgs.audio_lm_head(final).view(len(rows), CODEBOOKS, CODEBOOK_SIZE + 2).float()
        return drawn(logits, self.generator)


def conversations(speech: Speech, layout: Layout, count: int) -> list[tuple[list[int], list[int]]]:
    """(ids, utterances) of conversations of one voice each, until `count` utterances are in them or all are, none of them twice."""
    rng = random.Random(DECODER_SEED)
    left = {voice: rng.sample(speech.by_voice[voice], len(speech.by_voice[voice])) for voice in VOICE_WEIGHT}
    found: list[tuple[list[int], list[int]]] = []
    while sum(len(which) for _, which in found) < count and any(left.values()):
        voices = [voice for voice in VOICE_WEIGHT if left[voice]]
        voice = rng.choices(voices, [VOICE_WEIGHT[voice] for voice in voices])[0]
        ids, which = layout.system(scene([voice], rng)), []
        while left[voice]:
            i = left[voice][-1]
            frames = int(speech.frames[i + 1] - speech.frames[i])
            exchange = layout.exchange(speech.texts[i], frames + 1 + CODEBOOKS)
            if len(ids) + len(exchange.ids) > LENGTH:
                break
            ids, which = ids + exchange.ids, [*which, left[voice].pop()]
        if which:
            found.append((ids, which))
        else:
            left[voice].pop()  # too long to stand alone
    return found


def guesses(speech: Speech, layout: Layout, found: list[tuple[list[int], list[int]]]) -> dict[int, np.ndarray]:
    """Codes [8, frames] of each utterance as the model says them."""
    guesser, made, begun = Guesser(), dict[int, np.ndarray](), time.time()
    for first in range(0, len(found), BATCH):
        some = found[first : first + BATCH]
        ids = torch.zeros(len(some), LENGTH, dtype=torch.long)
        for b, (one, _) in enumerate(some):
            ids[b, : len(one)] = torch.tensor(one)
        audio = ((ids == layout.row) | (ids == layout.tail_row)).view(-1).nonzero()[:, 0]
        spans = [(int(speech.frames[i]), int(speech.frames[i + 1]), i) for _, which in some for i in which]
        rows = np.concatenate([delayed(speech.codes[:, a:b].astype(np.int64)) for a, b, _ in spans])
        said, at = guesser.guess(ids, audio, torch.from_numpy(rows)), 0
        for a, b, i in spans:
            made[i] = undelayed(said[at + 1 : at + 1 + b - a + CODEBOOKS], b - a).to(torch.uint8).numpy()
            at += b - a + 1 + CODEBOOKS
        if first // BATCH % 20 == 0:
            print(f"model: {first} of {len(found)} conversations, {time.time() - begun:.0f} s", flush=True)
    return made


@torch.inference_mode()
def encoded(which: list[int]) -> dict[int, np.ndarray]:
    """Codes [8, frames] of each utterance as the encoder makes them."""
    codec = HiggsAudioV2TokenizerModel.from_pretrained(WORK / "codec", dtype=torch.float32).eval()
    rows = [json.loads(line) for line in (WORK / "speech.jsonl").read_text().splitlines()]
    offsets = np.cumsum([0, *(row["samples"] for row in rows)])
    sound = np.memmap(WORK / "speech.raw", dtype=np.int16, mode="r")
    made, begun = dict[int, np.ndarray](), time.time()
    for n, i in enumerate(which):
        audio = torch.from_numpy(np.float32(sound[offsets[i] : offsets[i + 1]]) / 32768)
        audio = torch.nn.functional.pad(audio, (0, -len(audio) % HOP))[None, None]
        made[i] = codec.encode(audio, return_dict=False)[0].to(torch.uint8).numpy()
        if n % 500 == 0:
            print(f"encoder: {n} of {len(which)} utterances, {time.time() - begun:.0f} s", flush=True)
    return made


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 4000
    torch.set_num_threads(1)
    speech, layout = Speech.load(), Layout(tokenizer())
    found = conversations(speech, layout, count)
    which = [i for _, some in found for i in some]
    said = guesses(speech, layout, found)
    heard = encoded(which)
    starts = np.cumsum([0, *(said[i].shape[1] for i in which)])
    model, encoder = (np.concatenate([made[i] for i in which], 1) for made in (said, heard))
    true = np.concatenate([speech.codes[:, speech.frames[i] : speech.frames[i + 1]] for i in which], 1)
    for name, codes in (("model", model), ("encoder", encoder)):
        print(f"{name}: right by codebook {(codes == true).mean(1).round(3).tolist()}")
    np.savez(WORK / "made.npz", which=np.array(which), starts=starts, model=model, encoder=encoder)


if __name__ == "__main__":
    main()
