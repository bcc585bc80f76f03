"""Stage 7, the language model: text and codes so far -> the next row of codes.

A Higgs v2 of six layers trained on conversations from nothing. Three things beside the usual loss make it learn to read
within an hour on two cores:

- guided attention: in three layers one head is told which letter each frame speaks, and in two a second head is told to
  look LOOKAHEAD letters further, where a causal text side already knows what comes after the letter;
- at that further place a small auxiliary head must name the phonemes the letter stands for, on the speech's own texts and
  on many more (stage 2b), so that spelling is learned from text alone;
- another one must name the phoneme of each frame from the audio side's state.

The auxiliary heads are dropped at export. The forward pass below is the transformers class's own arithmetic on its own
weights (a test holds the two against each other), with text and audio tokens apart and only the needed attention rows
looked at.

    python -m training.model --to 4000 --length 768 --batch 6
    python -m training.model --to 5000 --length 2048 --batch 2 --rate-to 0.05
    python -m training.model --to 9000 --length 2048 --batch 16 --device cuda --workers 8     # on a GPU

Each call goes on from the last checkpoint `model.pt`. Everything drawn at a step follows from MODEL_SEED and the step.
"""

import argparse
import json
import math
import random
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import HiggsAudioV2Config, HiggsAudioV2ForConditionalGeneration, PreTrainedTokenizerFast

from training.prompts import Layout, delayed, scene
from training.settings import CODEBOOK_SIZE, CODEBOOKS, HELD_OUT, MODEL_SEED, PACKAGE, STREAM_BOS, STREAM_EOS, WORK

LAYERS, HIDDEN, HEADS, INNER = 6, 256, 4, 768
GUIDED = ((1, 0, 0), (2, 0, 0), (3, 1, 1), (4, 0, 0), (4, 1, 1))  # layer, head, 1 if it looks LOOKAHEAD further
SPELLING_LAYER = 2  # after this layer the text side knows the phonemes
PHONEME_LAYER = 4  # after this one the audio side knows its phoneme
LOOKAHEAD = 4  # letters
GUIDED_ROWS = 96  # frames of a sequence whose attention is looked at in one step
LEVEL_WEIGHT = torch.tensor([8, 4, 2, 1.5, 1, 1, 0.75, 0.75]) / 19.0
GUIDE_WEIGHT, SPELLING_WEIGHT, PHONEME_WEIGHT = 0.1, 0.3, 0.2
NOISE = 0.08  # share of the codes heard that are another row's; those to be predicted stay
VOICE_WEIGHT = {"slt": 0.36, "rms": 0.36, "awb": 0.16, "kal16": 0.12}
IGNORE = -100


# ---------------------------------------------------------------- data


@dataclass(frozen=True, slots=True)
class Speech:
    """All training speech: flat arrays and where each utterance begins in them."""

    texts: list[str]
    voices: list[str]
    codes: np.ndarray  # [8, frames]
    frame_letter: np.ndarray  # [frames]
    frame_phone: np.ndarray  # [frames]
    letter_sound: np.ndarray  # [letters]
    frames: np.ndarray  # first frame of each utterance, and the end
    letters: np.ndarray  # first letter of each utterance, and the end
    by_voice: dict[str, list[int]]  # training utterances
    held_out: list[int]
    spelled: list[tuple[str, np.ndarray]]  # texts of stage 2b with the classes of their letters

    @classmethod
    def load(cls, work: Path = WORK) -> "Speech":
        rows = [json.loads(line) for line in (work / "speech.jsonl").read_text().splitlines()]
        starts = np.load(work / "frames.npy")
        with np.load(work / "align.npz") as file:
            align = {name: file[name] for name in file.files}  # the file object reads anew at every access
        rows = rows[: len(starts) - 1]
        texts = [row["text"] for row in rows]
        by_voice: dict[str, list[int]] = {}
        for i, row in enumerate(rows):
            if row["text_index"] >= HELD_OUT:
                by_voice.setdefault(row["voice"], []).append(i)
        spelled, at = [], 0
        if len(align["spelled_sound"]):
            for line in (work / "sounds.jsonl").read_text().splitlines():
                text = json.loads(line)["text"]
                spelled.append((text, align["spelled_sound"][at : at + len(text)]))
                at += len(text)
                if at >= len(align["spelled_sound"]):
                    break
        return cls(
            texts,
            [row["voice"] for row in rows],
            np.load(work / "codes.npy"),
            align["frame_letter"],
            align["frame_phone"],
            align["letter_sound"],
            starts,
            np.cumsum([0, *map(len, texts)]),
            by_voice,
            [i for i, row in enumerate(rows) if row["text_index"] < HELD_OUT],
            spelled,
        )


@dataclass(slots=True)
class Batch:
    """Token ids and targets of B sequences of length L; flat indices are into [B * L]."""

    ids: Tensor  # [B, L]
    audio: Tensor  # [A] flat index of each audio row
    rows: Tensor  # [A, 8]
    guided: Tensor  # [B, G] query positions
    guide: Tensor  # [B, G, 2] key positions they should look at, the letter and the one further on; -1: none
    phones: Tensor  # [B, G] phoneme at the query, IGNORE: none
    sound_at: Tensor  # [S] flat index
    sounds: Tensor  # [S] class
    spelled: tuple[Tensor, Tensor, Tensor]  # texts alone: ids [16, 96], flat index and class of their letters

    def to(self, device: str) -> "Batch":
        """The same on a device."""
        if device == "cpu":
            return self
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        spelled = tuple(part.to(device, non_blocking=True) for part in moved.pop("spelled"))
        return Batch(**{name: value.to(device, non_blocking=True) for name, value in moved.items()}, spelled=spelled)


class Sampler:
    """Draws conversations like those the engine builds."""

    def __init__(self, speech: Speech, layout: Layout) -> None:
        self.speech, self.layout = speech, layout

    def conversation(
        self, rng: random.Random, length: int
    ) -> tuple[list[int], np.ndarray, list[tuple[int, int, int, int]], list[tuple[int, int]]]:
        """Ids, audio rows, (query, key, further key, phoneme) of each frame, and (place, class) of each letter."""
        speech = self.speech
        names = list(VOICE_WEIGHT)
        first = rng.choices(names, list(VOICE_WEIGHT.values()))[0]
        voices, tagged = [first], rng.random() < 0.04
        if rng.random() < 0.10:
            voices.append(rng.choice([name for name in names if name != first]))
            tagged = True
        ids = self.layout.ids(self.layout.bos) if rng.random() < 0.04 else self.layout.system(scene(voices, rng))
        rows: list[np.ndarray] = []
        frames: list[tuple[int, int, int, int]] = []
        letters: list[tuple[int, int]] = []
        speaker = 0
        while True:
            speaker = rng.randrange(len(voices)) if rng.random() < 0.7 else speaker
            i = rng.choice(speech.by_voice[voices[speaker]])
            a, b = speech.frames[i], speech.frames[i + 1]
            delayed_rows = delayed(speech.codes[:, a:b].astype(np.int64))
            exchange = self.layout.exchange(
                speech.texts[i], len(delayed_rows), f"[SPEAKER{speaker}] " if tagged else ""
            )
            if len(ids) + len(exchange.ids) > length:
                if rows:
                    break
                continue
            text_at, audio_at = len(ids) + exchange.text_at, len(ids) + exchange.audio_at
            last = audio_at - 1
            for n, (letter, phone) in enumerate(zip(speech.frame_letter[a:b], speech.frame_phone[a:b], strict=True)):
                at = text_at + int(letter)
                frames.append((audio_at + n, at, min(at + LOOKAHEAD, last), int(phone)))
            for n, sound in enumerate(speech.letter_sound[speech.letters[i] : speech.letters[i + 1]]):
                letters.append((min(text_at + n + LOOKAHEAD, last), int(sound)))
            ids = ids + exchange.ids
            rows.append(delayed_rows)
        return ids, np.concatenate(rows), frames, letters

    def batch(self, rng: random.Random, size: int, length: int) -> Batch:
        """`size` conversations, filled up to `length` tokens each."""
        ids = torch.zeros(size, length, dtype=torch.long)
        audio, rows, sound_at, sounds = [], [], [], []
        guided = torch.zeros(size, GUIDED_ROWS, dtype=torch.long)
        guide = torch.full((size, GUIDED_ROWS, 2), -1)
        phones = torch.full((size, GUIDED_ROWS), IGNORE)
        for b in range(size):
            one, one_rows, frames, letters = self.conversation(rng, length)
            ids[b, : len(one)] = torch.tensor(one)
            is_row = (ids[b] == self.layout.row) | (ids[b] == self.layout.tail_row)
            audio.append(is_row.nonzero()[:, 0] + b * length)
            rows.append(torch.from_numpy(one_rows))
            chosen = sorted(rng.sample(frames, min(GUIDED_ROWS, len(frames))))
            picked = torch.tensor(chosen)
            guided[b, : len(chosen)], phones[b, : len(chosen)] = picked[:, 0], picked[:, 3]
            guide[b, : len(chosen)] = picked[:, 1:3]
            at, sound = torch.tensor(letters).T
            last = torch.ones(len(at), dtype=torch.bool)  # of letters that share the last place only the last counts
            last[:-1] = at[1:] != at[:-1]
            sound_at.append(at[last] + b * length)
            sounds.append(sound[last])
        spelled = self.spelling(rng, 16)
        return Batch(
            ids,
            torch.cat(audio),
            torch.cat(rows),
            guided,
            guide,
            phones,
            torch.cat(sound_at),
            torch.cat(sounds),
            spelled,
        )

    def spelling(self, rng: random.Random, size: int, length: int = 96) -> tuple[Tensor, Tensor, Tensor]:
        """Texts alone: ids [size, length], flat places and classes of their letters."""
        ids = torch.zeros(size, length, dtype=torch.long)
        at, sounds = [], []
        head = self.layout.system(None)
        for b in range(size):
            text, classes = rng.choice(self.speech.spelled)
            one = (head + self.layout.question(text))[:length]
            ids[b, : len(one)] = torch.tensor(one)
            first = len(head) + len(self.layout.user)
            for n, sound in enumerate(classes):
                place = first + n + LOOKAHEAD
                if place < len(one):
                    at.append(b * length + place)
                    sounds.append(int(sound))
        return ids, torch.tensor(at), torch.tensor(sounds)


_sampler: Sampler | None = None


def _prepared(step: int, size: int, length: int) -> Batch:
    """In a process of its own: the batch of a step."""
    global _sampler
    torch.set_num_threads(1)
    _sampler = _sampler or Sampler(Speech.load(), Layout(tokenizer()))
    return _sampler.batch(random.Random(f"{MODEL_SEED}-{step}"), size, length)


def batches(steps: range, size: int, length: int, workers: int) -> Iterator[Batch]:
    """The batches of these steps, drawn here or by so many processes; what is drawn at a step is the same."""
    if not workers:
        yield from (_prepared(step, size, length) for step in steps)
        return
    with ProcessPoolExecutor(workers) as pool:
        ahead: deque[Future[Batch]] = deque()
        for step in steps:
            ahead.append(pool.submit(_prepared, step, size, length))
            if len(ahead) > 4 * workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


# ---------------------------------------------------------------- model


def config(vocabulary: int) -> HiggsAudioV2Config:
    """The architecture, in the hub's own fields."""
    return HiggsAudioV2Config(
        vocab_size=vocabulary,
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        head_dim=HIDDEN // HEADS,
        max_position_embeddings=32_768,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        codebook_size=CODEBOOK_SIZE + 2,
        num_codebooks=CODEBOOKS,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=5,
        audio_bos_token_id=6,
        audio_token_id=7,
        audio_delay_token_id=8,
        audio_stream_bos_id=STREAM_BOS,
        audio_stream_eos_id=STREAM_EOS,
    )


class Trainee(nn.Module):
    """The checkpoint's model and the auxiliary heads that only training needs."""

    def __init__(self, vocabulary: int, sounds: int, phones: int) -> None:
        super().__init__()
        self.higgs = HiggsAudioV2ForConditionalGeneration(config(vocabulary))
        self.spelling_head = nn.Linear(HIDDEN, sounds)
        self.phoneme_head = nn.Linear(HIDDEN, phones)

    def states(
        self, ids: Tensor, audio: Tensor, rows: Tensor | None, guided: Tensor | None, layers: int = LAYERS
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The state after each layer, flat [B * L, D], and the guided heads' log attention [B, G, L]."""
        model = self.higgs.model
        size, length = ids.shape
        text = torch.ones(size * length, dtype=torch.bool)
        text[audio] = False
        words = text.nonzero()[:, 0]
        x = model.embed_tokens(ids).view(-1, HIDDEN)
        if rows is not None:
            x = x.index_copy(0, audio, model.embed_audio_tokens(rows[None])[0])
        cos, sin = model.rotary_emb(x, torch.arange(length)[None])

        def split(
            value: Tensor, text_part: nn.Module, audio_part: nn.Module, after: tuple[nn.Module, nn.Module] | None = None
        ) -> Tensor:
            spoken, written = audio_part(value[audio]), text_part(value[words])
            if after:
                spoken, written = after[1](spoken), after[0](written)
            return (
                torch.zeros_like(value, dtype=written.dtype).index_copy(0, audio, spoken).index_copy(0, words, written)
            )

        def rotate(value: Tensor) -> Tensor:
            value = value.view(size, length, HEADS, -1).transpose(1, 2)
            half = torch.cat((-value[..., HIDDEN // HEADS // 2 :], value[..., : HIDDEN // HEADS // 2]), -1)
            return value * cos[:, None] + half * sin[:, None]

        states, looks = [], []
        for number, layer in enumerate(model.layers[:layers]):
            normed = split(x, layer.input_layernorm, layer.audio_input_layernorm)
            attention = layer.self_attn
            v = attention.v_proj(normed).view(size, length, HEADS, -1).transpose(1, 2)
            q, k = (rotate(project(normed)).to(v.dtype) for project in (attention.q_proj, attention.k_proj))
            heard = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + attention.o_proj(heard.transpose(1, 2).reshape(size * length, HIDDEN))
            for _, head, _ in (entry for entry in GUIDED if guided is not None and entry[0] == number):
                asked = q[:, head].gather(1, guided[..., None].expand(-1, -1, HIDDEN // HEADS))
                scores = (asked @ k[:, head].transpose(1, 2)).float() * attention.scaling
                future = torch.arange(length) > guided[..., None]
                looks.append(scores.masked_fill(future, -1e9).log_softmax(-1))
            x = x + split(
                x,
                layer.post_attention_layernorm,
                layer.audio_post_attention_layernorm,
                (layer.mlp, layer.audio_mlp),
            )
            states.append(x)
        return states, looks

    def losses(self, batch: Batch, noise: Tensor | None = None) -> dict[str, Tensor]:
        """The terms of the loss on conversations; `codes` [8] is by codebook. `noise`: see `misheard`."""
        heard = batch.rows if noise is None else torch.where(noise >= 0, noise, batch.rows)
        states, looks = self.states(batch.ids, batch.audio, heard, batch.guided)
        final = self.higgs.model.norm(states[-1][batch.audio - 1])
        logits = self.higgs.audio_lm_head(final).view(-1, CODEBOOKS, CODEBOOK_SIZE + 2).float()
        target = batch.rows.masked_fill(batch.rows == STREAM_BOS, IGNORE)
        codes = [F.cross_entropy(logits[:, q], target[:, q], ignore_index=IGNORE) for q in range(CODEBOOKS)]
        length = batch.ids.shape[1]
        asked = batch.guide[..., 0] >= 0
        guide = []
        for look, (_, _, further) in zip(looks, GUIDED, strict=True):
            around = (batch.guide[..., further].clamp(min=1)[..., None] + torch.arange(-1, 3 - further)).clamp(
                max=length - 1
            )
            guide.append(-look.gather(2, around).logsumexp(-1)[asked].mean())
        flat = (torch.arange(len(batch.ids))[:, None] * length + batch.guided).view(-1)
        phoneme = self.phoneme_head(F.rms_norm(states[PHONEME_LAYER][flat], (HIDDEN,)))
        return {
            "codes": torch.stack(codes),
            "guide": torch.stack(guide),
            "phoneme": F.cross_entropy(phoneme.float(), batch.phones.view(-1), ignore_index=IGNORE),
            "spelling": self.spelling_loss(states[SPELLING_LAYER], batch.sound_at, batch.sounds),
            "right": (logits[:, 0].argmax(-1) == target[:, 0])[target[:, 0] != IGNORE].float().mean(),
        }

    def spelling_loss(self, state: Tensor, at: Tensor, sounds: Tensor) -> Tensor:
        """How well the phonemes of letters are named from the states at their look-ahead places."""
        return F.cross_entropy(self.spelling_head(F.rms_norm(state[at], (HIDDEN,))).float(), sounds)


def misheard(rows: Tensor, generator: torch.Generator) -> Tensor:
    """Codes [A, 8] to be heard in place of `rows`, -1 where those stay.

    A model that hears nothing but true codes learns to go on from them by heart instead of reading; and what it says itself is
    never quite a true code. So some of them are those of another row.
    """
    others = rows[torch.randperm(len(rows), generator=generator, device=rows.device)]
    wrong = torch.rand(rows.shape, generator=generator, device=rows.device) < NOISE
    return torch.where(wrong & (rows < CODEBOOK_SIZE) & (others < CODEBOOK_SIZE), others, -1)


# ---------------------------------------------------------------- optimiser


def orthogonalized(stack: Tensor) -> Tensor:
    """Matrices [K, m, n] with their singular values drawn to one (Newton-Schulz, as in Muon by Keller Jordan)."""
    x = stack.to(torch.bfloat16)
    tall = x.shape[1] > x.shape[2]
    x = x.transpose(1, 2) if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        square = x @ x.transpose(1, 2)
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * (square @ square)) @ x
    return (x.transpose(1, 2) if tall else x).float()


class Optimizer:
    """Muon for the layers' matrices, AdamW for embeddings, heads and norms."""

    def __init__(self, trainee: Trainee) -> None:
        layers = list(trainee.higgs.model.layers.parameters())
        shapes: dict[torch.Size, list[nn.Parameter]] = {}
        for parameter in layers:
            if parameter.ndim == 2:
                shapes.setdefault(parameter.shape, []).append(parameter)
        self.groups = list(shapes.values())
        self.momentum = [torch.zeros(len(group), *group[0].shape) for group in self.groups]
        inside = {id(parameter) for group in self.groups for parameter in group}
        rest = [parameter for parameter in trainee.parameters() if id(parameter) not in inside]
        self.adam = torch.optim.AdamW(rest, lr=1.0, betas=(0.9, 0.98), weight_decay=0.0, fused=True)

    def step(self, rate: float, muon: float = 0.02, adam: float = 0.002) -> None:
        """One update; `rate` scales both learning rates."""
        for group, momentum in zip(self.groups, self.momentum, strict=True):
            gradient = torch.stack([parameter.grad for parameter in group if parameter.grad is not None])
            momentum.lerp_(gradient, 0.05)
            update = orthogonalized(gradient.lerp_(momentum, 0.95))
            scale = rate * muon * max(1.0, group[0].shape[0] / group[0].shape[1]) ** 0.5
            with torch.no_grad():
                for parameter, change in zip(group, update, strict=True):
                    parameter.mul_(1 - rate * muon * 0.01).add_(change, alpha=-scale)
        for settings in self.adam.param_groups:
            settings["lr"] = rate * adam
        self.adam.step()

    def state(self) -> dict[str, object]:
        return {"momentum": self.momentum, "adam": self.adam.state_dict()}

    def restore(self, state: dict[str, object]) -> None:
        self.momentum = state["momentum"]  # pyright: ignore[reportAttributeAccessIssue]
        self.adam.load_state_dict(state["adam"])  # pyright: ignore[reportArgumentType]


# ---------------------------------------------------------------- training


def tokenizer() -> PreTrainedTokenizerFast:
    """The checkpoint's own tokenizer: letters, marks, and the hub's special tokens."""
    return PreTrainedTokenizerFast.from_pretrained(PACKAGE / "model")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--to", type=int, required=True, help="the step to train up to")
    parser.add_argument("--length", type=int, default=768, help="tokens of a conversation")
    parser.add_argument("--batch", type=int, default=6, help="conversations of a step")
    parser.add_argument("--rate-from", type=float, default=1.0, help="scale of the learning rate at the start")
    parser.add_argument("--rate-to", type=float, default=1.0, help="and at the end, on a line between")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, …")
    parser.add_argument("--compile", action="store_true", help="a step by torch.compile: quicker, wants a C++ compiler")
    parser.add_argument("--workers", type=int, default=0, help="processes that draw conversations; on a GPU one a core")
    arguments = parser.parse_args()
    device = arguments.device
    torch.set_default_device(device)
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(MODEL_SEED)
    names = json.loads((WORK / "align.json").read_text())
    letters = tokenizer()
    trainee = Trainee(len(letters), len(names["sounds"]) + 1, len(names["phones"]))
    average = {name: value.clone() for name, value in trainee.state_dict().items()}
    optimizer, path, start = Optimizer(trainee), WORK / "model.pt", 0
    if path.exists():
        saved = torch.load(path, map_location=device)
        trainee.load_state_dict(saved["weights"])
        optimizer.restore(saved["optimizer"])
        average, start = saved["average"], saved["step"]
    weights = LEVEL_WEIGHT.to(device)
    losses_of, states_of = trainee.losses, trainee.states
    if arguments.compile:
        losses_of, states_of = (torch.compile(each, dynamic=True) for each in (losses_of, states_of))
    noises = torch.Generator(device)
    begun, seen, shown = time.time(), 0, {}
    steps = range(start, arguments.to)
    drawn = batches(steps, arguments.batch, arguments.length, arguments.workers)
    for step in steps:
        with torch.device("cpu"):
            batch = next(drawn)
        batch = batch.to(device)
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            losses = losses_of(batch, misheard(batch.rows, noises.manual_seed(MODEL_SEED + step)))
            ids, at, sounds = batch.spelled
            state = states_of(ids, torch.zeros(0, dtype=torch.long), None, None, SPELLING_LAYER + 1)[0][-1]
            losses["read"] = trainee.spelling_loss(state, at, sounds)
        loss = (losses["codes"] * weights).sum() + GUIDE_WEIGHT * losses["guide"].sum()
        loss = loss + SPELLING_WEIGHT * (losses["spelling"] + losses["read"]) + PHONEME_WEIGHT * losses["phoneme"]
        loss.backward()
        nn.utils.clip_grad_norm_(trainee.parameters(), 1.0)
        share = (step - start) / max(1, arguments.to - start)
        rate = arguments.rate_from + (arguments.rate_to - arguments.rate_from) * share
        optimizer.step(rate * min(1.0, (step + 1) / 100))
        trainee.zero_grad()
        seen += batch.ids.numel()
        if step % 4 == 0:
            keep = min(0.98, 1 - 1 / (step / 40 + 1))
            for name, value in trainee.state_dict().items():
                if value.is_floating_point():
                    average[name].lerp_(value, 1 - keep)
        for name, value in losses.items():
            shown[name] = value.detach() if name not in shown else shown[name].lerp(value.detach(), 0.05)
        if step % 20 == 0 or step == arguments.to - 1:
            line = {name: [round(x, 2) for x in value.view(-1).tolist()] for name, value in shown.items()}
            speed = seen / (time.time() - begun)
            print(f"{step} {time.time() - begun:.0f}s {speed:.0f} tokens/s rate {rate:.2f} {line}", flush=True)
        if step % 50 == 49 or step == arguments.to - 1:
            state = {
                "weights": trainee.state_dict(),
                "average": average,
                "optimizer": optimizer.state(),
                "step": step + 1,
            }
            torch.save(state, path.with_suffix(".new"))
            path.with_suffix(".new").rename(path)
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"the loss is {loss.item()} at step {step}")


if __name__ == "__main__":
    main()
