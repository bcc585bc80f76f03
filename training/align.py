"""Stage 3, the alignment: which letter is spoken in which frame.

flite says which phoneme sounds when, but not which letters it stands for. Letters and phonemes run in the same order, so
a monotone alignment is found by a few rounds of expectation-maximisation with Viterbi paths: p(phoneme | letter) and the
step from one letter to the next are counted anew from the best paths of the round before.

    python -m training.align

writes `align.npz`: for each utterance in the order of `speech.jsonl` the letter of each 40 ms frame (`frame_letter`,
flat uint8, index into the text), the phoneme of each frame (`frame_phone`), and for each letter of each text the class of
the phonemes it stands for (`letter_sound`, flat int16; `spelled_sound` for the texts of `sounds.jsonl`); `align.json`
names phonemes and classes.
"""

import json
import time
from collections import Counter
from typing import Any

import numba
import numpy as np

from training.settings import FRAME_S, HOP, WORK

ALPHABET = " abcdefghijklmnopqrstuvwxyz,.'!?;:-0123456789$%&+="
ROUNDS = 6
LONGEST_STEP = 5  # letters passed over between two phonemes at most
SOUND_CLASSES = 512  # the most frequent phoneme strings of one letter; class 0 is "silent or rare"
LIKELY = {  # first guesses: phonemes a letter often stands for
    "a": "ae ax ey aa ao", "b": "b", "c": "k s ch", "d": "d", "e": "eh iy ih ax er", "f": "f", "g": "g jh", "h": "hh",
    "i": "ih ay iy", "j": "jh", "k": "k", "l": "l", "m": "m", "n": "n ng", "o": "ow ao aa uw ah ax", "p": "p", "q": "k",
    "r": "r er", "s": "s z sh", "t": "t dh th sh", "u": "ah uw uh y er", "v": "v", "w": "w", "x": "k s z", "y": "y iy ay",
    "z": "z", " ": "pau", ",": "pau", ".": "pau", ";": "pau", "!": "pau", "?": "pau", ":": "pau", "-": "pau",
    "0": "z ih r ow", "1": "w ah n", "2": "t uw eh n iy", "3": "th r iy er", "4": "f ao r", "5": "f ay v ih", "6": "s ih k",
    "7": "s eh v ax n", "8": "ey t iy", "9": "n ay", "$": "d aa l er z", "%": "p er s eh n t", "&": "ae n d",
    "+": "p l ah s", "=": "iy k w ax l z",
}  # fmt: skip


@numba.njit
def best_path(letters: np.ndarray, phones: np.ndarray, emit: np.ndarray, step: np.ndarray) -> np.ndarray:
    """The letter index of each phoneme on the likeliest monotone path; `emit` [letter, phone] and `step` are logs."""
    n, m = len(letters), len(phones)
    score = np.full((m, n), -1e9)
    back = np.zeros((m, n), np.int32)
    last = len(step) - 1
    for i in range(min(n, last)):
        score[0, i] = emit[letters[i], phones[0]] + step[min(i + 1, last)]
    for t in range(1, m):
        for i in range(n):
            best, origin = -1e9, i
            for jump in range(last + 1):
                if i - jump < 0:
                    break
                value = score[t - 1, i - jump] + step[jump]
                if value > best:
                    best, origin = value, i - jump
            score[t, i] = best + emit[letters[i], phones[t]]
            back[t, i] = origin
    lowest = max(0, n - 4)
    i = lowest + np.argmax(score[m - 1, lowest:])
    path = np.zeros(m, np.int32)
    for t in range(m - 1, -1, -1):
        path[t] = i
        i = back[t, i]
    return path


def spoken_letters(text: str) -> tuple[np.ndarray, np.ndarray]:
    """Alphabet indices of the letters that can sound, and where each stands in the text."""
    pairs = [(ALPHABET.index(char), at) for at, char in enumerate(text.lower()) if char in ALPHABET]
    return np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])


def fit(utterances: list[dict[str, Any]], names: list[str]) -> list[np.ndarray]:
    """For each utterance the letter (index into its text) of each phoneme."""
    emit = np.full((len(ALPHABET), len(names)), 0.02)
    for letter, sounds in LIKELY.items():
        for sound in sounds.split():
            if sound in names:
                emit[ALPHABET.index(letter), names.index(sound)] += 1
    emit /= emit.sum(1, keepdims=True)
    step = np.array([0.12, 0.62, 0.2, 0.04, 0.015, 0.005])
    number = {name: index for index, name in enumerate(names)}
    data = [(*spoken_letters(u["text"]), np.array([number[name] for name, _ in u["phones"]])) for u in utterances]
    paths: list[np.ndarray] = []
    for round_ in range(ROUNDS):
        started = time.time()
        emissions, steps, paths = np.full_like(emit, 0.05), np.ones(LONGEST_STEP + 1), []
        for letters, where, phones in data:
            path = best_path(letters, phones, np.log(emit), np.log(step))
            np.add.at(emissions, (letters[path], phones), 1)
            np.add.at(steps, np.minimum(LONGEST_STEP, np.diff(path)), 1)
            paths.append(where[path])
        emit, step = emissions / emissions.sum(1, keepdims=True), steps / steps.sum()
        print(f"round {round_}: steps {step.round(3).tolist()}, {time.time() - started:.1f} s", flush=True)
    return paths


def sounds_of(text: str, path: np.ndarray, phones: list[tuple[str, float]]) -> list[str]:
    """For each letter of the text the phonemes it stands for; a pause counts only where nothing else sounds."""
    sounds = [""] * len(text)
    for letter, (name, _) in zip(path, phones, strict=True):
        if name != "pau":
            sounds[letter] = f"{sounds[letter].removeprefix('pau')} {name}".strip()
        elif not sounds[letter]:
            sounds[letter] = name
    return sounds


def _read(name: str) -> list[dict[str, Any]]:
    path = WORK / name
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def main() -> None:
    spoken, spelled = _read("speech.jsonl"), _read("sounds.jsonl")
    everything = spoken + spelled
    known: dict[str, list[str]] = {}
    if (WORK / "align.json").exists():  # more speech than before: the numbers of phonemes and classes stay
        known = json.loads((WORK / "align.json").read_text())
    names = known.get("phones") or sorted({name for u in everything for name, _ in u["phones"]})
    paths = fit(everything, names)
    strings = [sounds_of(u["text"], path, u["phones"]) for u, path in zip(everything, paths, strict=True)]
    counted = Counter(sound for sounds in strings for sound in sounds if sound)
    sound_names = known.get("sounds") or [sound for sound, _ in counted.most_common(SOUND_CLASSES - 1)]
    classes = {sound: index + 1 for index, sound in enumerate(sound_names)}
    letter_sound = [np.array([classes.get(sound, 0) for sound in sounds], np.int16) for sounds in strings]
    frame_letter, frame_phone = [], []
    for u, path in zip(spoken, paths, strict=False):
        ends = np.array([end for _, end in u["phones"]])
        middles = (np.arange(-(-u["samples"] // HOP)) + 0.5) * FRAME_S
        phone = np.searchsorted(ends, middles).clip(0, len(ends) - 1)
        frame_letter.append(path[phone].astype(np.uint8))
        frame_phone.append(np.array([names.index(u["phones"][p][0]) for p in phone], np.uint8))
    np.savez(
        WORK / "align.npz",
        frame_letter=np.concatenate(frame_letter),
        frame_phone=np.concatenate(frame_phone),
        letter_sound=np.concatenate(letter_sound[: len(spoken)]),
        spelled_sound=np.concatenate(letter_sound[len(spoken) :] or [np.zeros(0, np.int16)]),
    )
    (WORK / "align.json").write_text(json.dumps({"phones": names, "sounds": sound_names}))
    for u, sounds in list(zip(everything, strings, strict=True))[4:400:80]:
        print(" ".join(f"{letter}={sound.replace(' ', '+')}" for letter, sound in zip(u["text"], sounds, strict=True)))


if __name__ == "__main__":
    main()
