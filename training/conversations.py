"""What the language model learns from: speech in conversations as the engine builds them, and where to look in them.

Several turns of one voice or of two, with and without descriptions, their beginnings cut off as by a window. With them
comes what no listener could say: which letter each frame speaks (stage 2), which phonemes a letter stands for, which
speaker's number a row belongs to, and where else in the sequence that speaker is described or heard.
"""

import json
import random
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from training.prompts import Layout, delayed, scene
from training.settings import HELD_OUT, MODEL_SEED, PACKAGE, WORK

LOOKAHEAD = 4  # letters
GUIDED_ROWS = 96  # places of a sequence whose attention is looked at in one step, for each thing it is told
TURN_ROWS = 12  # rows at the head of a turn, half a second, in which its voice is settled
TWO_VOICES = 0.45  # share of the conversations
VOICE_WEIGHT = {"slt": 0.36, "rms": 0.36, "awb": 0.16, "kal16": 0.12}
IGNORE = -100


def tokenizer() -> PreTrainedTokenizerFast:
    """The checkpoint's own tokenizer: letters, marks, and the hub's special tokens."""
    return PreTrainedTokenizerFast.from_pretrained(PACKAGE / "model")


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
    tagged: Tensor  # [B, G] places that a speaker's number stands for: rows, and letters of descriptions; -1: none
    tag: Tensor  # [B, G] where that number is
    turns: Tensor  # [B, T] first rows of turns whose voice is known from before, -1: none
    known: Tensor  # [B, T, L] the places it is known from
    voices: Tensor  # [B, T] the voice, IGNORE: none
    spelled: tuple[Tensor, Tensor, Tensor]  # texts alone: ids [16, 96], flat index and class of their letters

    def to(self, device: str) -> "Batch":
        """The same on a device."""
        if device == "cpu":
            return self
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        spelled = tuple(part.to(device, non_blocking=True) for part in moved.pop("spelled"))
        return Batch(**{name: value.to(device, non_blocking=True) for name, value in moved.items()}, spelled=spelled)


@dataclass(slots=True)
class Conversation:
    """One sequence, and what its attention is told."""

    ids: list[int]
    rows: np.ndarray  # [rows, 8]
    frames: list[tuple[int, int, int, int]]  # of each frame: its row, its letter, the letter further on, the phoneme
    letters: list[tuple[int, int]]  # of each letter: the place further on where it is known, its class
    tags: list[tuple[int, int]]  # of each row, and each letter of a description: its place, its speaker's number
    turns: list[tuple[int, int, np.ndarray]]  # of first rows of turns: the row, the voice, [L] where that is known from


class Sampler:
    """Draws conversations like those the engine builds."""

    def __init__(self, speech: Speech, layout: Layout) -> None:
        self.speech, self.layout = speech, layout
        self.line_ends = {*layout.ids("\n"), *layout.ids("<|scene_desc_end|>"), *layout.eot}

    def described(self, ids: list[int], speakers: int) -> list[tuple[int, int, int]]:
        """(place, speaker, place of the speaker's number) of each letter in the descriptions of a system prompt."""
        found = []
        for speaker in range(speakers):
            mark = self.layout.ids(f"SPEAKER{speaker}: ")
            for at in range(len(ids) - len(mark)):
                if ids[at : at + len(mark)] == mark:
                    place = at + len(mark)
                    while ids[place] not in self.line_ends:
                        found.append((place, speaker, at + len("SPEAKER")))
                        place += 1
        return found

    def conversation(self, rng: random.Random, length: int) -> Conversation:
        """As many turns as fit into `length` tokens, of one voice or of two."""
        speech = self.speech
        names = list(VOICE_WEIGHT)
        first = rng.choices(names, list(VOICE_WEIGHT.values()))[0]
        voices, tagged = [first], rng.random() < 0.04
        if rng.random() < TWO_VOICES:
            voices.append(rng.choice([name for name in names if name != first]))
            tagged = True
        ids = self.layout.ids(self.layout.bos) if rng.random() < 0.04 else self.layout.system(scene(voices, rng))
        rows: list[np.ndarray] = []
        frames: list[tuple[int, int, int, int]] = []
        letters: list[tuple[int, int]] = []
        tags: list[tuple[int, int]] = []
        turns: list[tuple[int, int, np.ndarray]] = []
        speaker_at = np.full(length, -1)  # which speaker a place tells of
        speaker = 0
        for place, number, number_at in self.described(ids, len(voices)) if tagged else ():
            speaker_at[place] = number
            tags.append((place, number_at))
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
            audio_end = audio_at + len(delayed_rows)
            known = speaker_at == speaker
            if len(voices) > 1 and known.any():
                voice = names.index(voices[speaker])
                turns += [(audio_at + n, voice, known) for n in range(TURN_ROWS)]
            if tagged:
                tags += [(row, text_at - len("0] ")) for row in range(audio_at, audio_end)]
            speaker_at[audio_at:audio_end] = speaker
            last = audio_at - 1
            for n, (letter, phone) in enumerate(zip(speech.frame_letter[a:b], speech.frame_phone[a:b], strict=True)):
                at = text_at + int(letter)
                frames.append((audio_at + n, at, min(at + LOOKAHEAD, last), int(phone)))
            for n, sound in enumerate(speech.letter_sound[speech.letters[i] : speech.letters[i + 1]]):
                letters.append((min(text_at + n + LOOKAHEAD, last), int(sound)))
            ids = ids + exchange.ids
            rows.append(delayed_rows)
        return Conversation(ids, np.concatenate(rows), frames, letters, tags, turns)

    def batch(self, rng: random.Random, size: int, length: int) -> Batch:
        """`size` conversations, filled up to `length` tokens each."""
        ids = torch.zeros(size, length, dtype=torch.long)
        audio, rows, sound_at, sounds = [], [], [], []
        guided = torch.zeros(size, GUIDED_ROWS, dtype=torch.long)
        guide = torch.full((size, GUIDED_ROWS, 2), -1)
        phones = torch.full((size, GUIDED_ROWS), IGNORE)
        tagged, tag, turns = (torch.full((size, GUIDED_ROWS), -1) for _ in range(3))
        known = torch.zeros(size, GUIDED_ROWS, length, dtype=torch.bool)
        voices = torch.full((size, GUIDED_ROWS), IGNORE)
        for b in range(size):
            one = self.conversation(rng, length)
            for n, pair in enumerate(rng.sample(one.tags, min(GUIDED_ROWS, len(one.tags)))):
                tagged[b, n], tag[b, n] = pair
            begun = rng.sample(one.turns, min(GUIDED_ROWS, len(one.turns)))
            for n, (row, voice, where) in enumerate(begun):
                turns[b, n], voices[b, n], known[b, n] = row, voice, torch.from_numpy(where)
            ids[b, : len(one.ids)] = torch.tensor(one.ids)
            is_row = (ids[b] == self.layout.row) | (ids[b] == self.layout.tail_row)
            audio.append(is_row.nonzero()[:, 0] + b * length)
            rows.append(torch.from_numpy(one.rows))
            chosen = sorted(rng.sample(one.frames, min(GUIDED_ROWS, len(one.frames))))
            picked = torch.tensor(chosen)
            guided[b, : len(chosen)], phones[b, : len(chosen)] = picked[:, 0], picked[:, 3]
            guide[b, : len(chosen)] = picked[:, 1:3]
            at, sound = torch.tensor(one.letters).T
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
            tagged,
            tag,
            turns,
            known,
            voices,
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
