"""When each written word sounds, estimated: Higgs gives no alignment.

A chunk's voiced stretch is divided among its words by the number of characters that are *spoken* for each ("$5" is
"five dollars"), with extra weight for the pause that punctuation makes. While a chunk is being generated, its length
is not known and the session's speaking rate so far stands in for it; when it has ended, the words not yet given out are
spread over what is left. The error grows with uneven pauses and has not been measured against an alignment; word times never
go back.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

import numpy as np
from numpy.typing import NDArray

from ..text.normalize import SpokenText

_UNSPACED = "[\u2e80-\u312f\u31a0-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
"""Chinese and Japanese: no spaces between words, so every character counts as one."""
_WORD = re.compile(rf"[^\w\s]*(?=[^\W_]){_UNSPACED}(?:(?![「『（《〈“‘(\[])[^\w\s])*|(?:(?!(?=[^\W_]){_UNSPACED})\S)+")
_TAG = re.compile(r"\[SPEAKER\d+\]")
_PAUSE = {",": 2.0, ";": 3.0, ":": 3.0, ".": 4.0, "!": 4.0, "?": 4.0, "…": 5.0, "—": 3.0}
_VOICED = 0.01
"""Share of full scale above which a sample counts as voice."""
DEFAULT_S_PER_UNIT = 0.062


@dataclass(frozen=True, slots=True)
class Word:
    """One written word and when it sounds."""

    text: str
    """As the LLM wrote it, with its punctuation."""
    start_s: float
    """Seconds from the speech's first sample."""
    end_s: float
    chunk: int
    char_start: int
    """Offsets into the text fed to the speech."""
    char_end: int
    spoken_end: int
    """How much of the chunk's spoken text has been said when this word has."""


@dataclass(frozen=True, slots=True)
class _Unit:
    text: str
    char_start: int
    char_end: int
    spoken_end: int
    weight: float
    pause: float


def _units(written: str, offset: int, spoken: SpokenText) -> list[_Unit]:
    spans = [(match.start(), match.end()) for match in _WORD.finditer(written)]
    counts = [0.0] * len(spans)
    ends = [0] * len(spans)
    place = 0
    tag = _TAG.match(spoken.text)
    silent = tag.end() if tag else 0
    for index, source in enumerate(_sources(written, spans, spoken)):
        char = spoken.text[index]
        if char.isspace():
            continue
        while place + 1 < len(spans) and source >= spans[place + 1][0]:
            place += 1
        if spans:
            counts[place] += 1.0 if char.isalnum() and index >= silent else 0.0
            ends[place] = index + 1
    units: list[_Unit] = []
    reached = 0
    for (start, end), count, spoken_end in zip(spans, counts, ends, strict=True):
        reached = max(reached, spoken_end)
        pause = _PAUSE.get(written[end - 1], 0.0) if count else 0.0
        units.append(_Unit(written[start:end], offset + start, offset + end, reached, count, pause))
    return units


def _sources(written: str, spans: list[tuple[int, int]], spoken: SpokenText) -> list[int]:
    """For each spoken character where it was written. What stands for several words at once ("(555) 123-4567") is shared among
    them, a spoken word whole, by what is written: a digit is about as long as four letters."""
    sources = list(spoken.starts)
    starts = [start for start, _ in spans]
    begin = 0
    while begin < len(sources):
        low, high = spoken.starts[begin], spoken.ends[begin]
        end = begin + 1
        while end < len(sources) and (spoken.starts[end], spoken.ends[end]) == (low, high):
            end += 1
        parts = starts[max(0, bisect_right(starts, low) - 1) : bisect_left(starts, high)]
        edges = [low, *parts[1:], high]
        sizes = [sum(4 if char.isdigit() else char.isalpha() for char in written[a:b]) for a, b in pairwise(edges)]
        if len(parts) > 1 and sum(sizes):
            shares = [passed * (end - begin) / sum(sizes) for passed in accumulate(sizes)]
            for match in _WORD.finditer(spoken.text, begin, end):
                middle = (match.start() + match.end()) / 2 - begin
                place = min(bisect_right(shares, middle), len(parts) - 1)
                sources[match.start() : match.end()] = [edges[place]] * (match.end() - match.start())
        begin = end
    return sources


@dataclass(slots=True)
class Rate:
    """A session's speaking rate: seconds a unit of weight, as a running mean over its chunks."""

    s_per_unit: float = DEFAULT_S_PER_UNIT

    def learn(self, seconds: float, weight: float) -> None:
        if weight >= 8 and seconds > 0.2:
            self.s_per_unit += 0.3 * (min(max(seconds / weight, 0.02), 0.3) - self.s_per_unit)


@dataclass(slots=True)
class WordTimer:
    """Word times of one chunk, as its audio comes in."""

    chunk: int
    written: str
    char_offset: int
    spoken: SpokenText
    base_s: float
    """Where the chunk begins, in seconds from the speech's first sample."""
    rate: Rate
    sample_rate: int = 24000
    _units_left: list[_Unit] = field(init=False)
    _total: float = field(init=False)
    _samples: int = field(init=False, default=0)
    _onset: float | None = field(init=False, default=None)
    _voiced_end: float = field(init=False, default=0.0)
    _at: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        self._units_left = _units(self.written, self.char_offset, self.spoken)
        self._total = sum(unit.weight + unit.pause for unit in self._units_left)

    def audio(self, pcm: NDArray[np.int16]) -> list[Word]:
        """More of the chunk's sound, int16 [n]; gives the words that begin within what is known by now."""
        loud = np.flatnonzero(np.abs(pcm.astype(np.int32)) > _VOICED * 32767)
        if loud.size:
            if self._onset is None:
                self._onset = (self._samples + int(loud[0])) / self.sample_rate
                self._at = self._onset
            self._voiced_end = (self._samples + int(loud[-1])) / self.sample_rate
        self._samples += pcm.size
        if self._onset is None:
            return []
        words: list[Word] = []
        reached = self._samples / self.sample_rate
        while self._units_left and self._at + self._units_left[0].weight * self.rate.s_per_unit <= reached:
            words.append(self._give(self.rate.s_per_unit))
        return words

    def finish(self, *, learn: bool) -> list[Word]:
        """The chunk has ended: the words that are left share the sound that is left."""
        left = sum(unit.weight + unit.pause for unit in self._units_left)
        if self._units_left and self._units_left[-1].pause:
            left -= self._units_left[-1].pause  # the last pause is silence behind the voice
        span = max(self._voiced_end - self._at, 0.0)
        per_unit = span / left if left > 0 else 0.0
        if learn and self._onset is not None and self._total:
            self.rate.learn(self._voiced_end - self._onset, self._total)
        words: list[Word] = []
        while self._units_left:
            words.append(self._give(per_unit))
        return words

    def _give(self, per_unit: float) -> Word:
        unit = self._units_left.pop(0)
        reached = self._samples / self.sample_rate
        start = min(self._at, reached)  # the pause behind the last word may be longer than what is there
        end = min(start + unit.weight * per_unit, reached)
        self._at = end + unit.pause * per_unit
        return Word(
            text=unit.text,
            start_s=self.base_s + start,
            end_s=self.base_s + end,
            chunk=self.chunk,
            char_start=unit.char_start,
            char_end=unit.char_end,
            spoken_end=unit.spoken_end,
        )
