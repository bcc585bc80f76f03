"""What an adapter keeps of an utterance: when its sound is played, and what of its text has been said. No framework here."""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from itertools import accumulate, pairwise
from unicodedata import east_asian_width

from ..conversation.timing import Word


@dataclass(slots=True)
class Device:
    """A sound device as its writer sees it: it plays what it is given, in order, without a pause while it has something."""

    free_at: float = 0.0
    """When all that was written will have been played, in seconds of the caller's clock."""

    def ahead(self, now: float) -> float:
        """Seconds that wait to be played."""
        return max(self.free_at - now, 0.0)

    def drop(self, now: float) -> None:
        """What waits is thrown away."""
        self.free_at = min(self.free_at, now)


@dataclass(slots=True)
class _Run:
    """A stretch that is played without a pause."""

    at: float
    """When its first sample is played."""
    start_s: float
    """Where that sample lies in the utterance."""
    end_s: float


@dataclass(slots=True)
class Timeline:
    """When each part of one utterance is played: a new run begins where the device had run dry."""

    device: Device
    runs: list[_Run] = field(default_factory=list[_Run])

    def write(self, now: float, start_s: float, seconds: float) -> float:
        """Sound from `start_s` on was handed to the device; when its first sample is played."""
        at = max(self.device.free_at, now)
        last = self.runs[-1] if self.runs else None
        if last is not None and abs(last.at + (last.end_s - last.start_s) - at) < 1e-3:
            last.end_s = start_s + seconds
        else:
            self.runs.append(_Run(at, start_s, start_s + seconds))
        self.device.free_at = at + seconds
        return at

    def at(self, position_s: float) -> float:
        """When a position is played. Beyond what was written, it is taken to follow without a pause."""
        run = self.runs[0]
        for candidate in self.runs:
            if candidate.start_s > position_s:
                break
            run = candidate
        return run.at + position_s - run.start_s

    def heard(self, now: float) -> float:
        """Seconds of the utterance that have been played."""
        heard = 0.0
        for run in self.runs:
            if run.at >= now:
                break
            heard = min(run.start_s + now - run.at, run.end_s)
        return heard

    def starved(self, until_s: float) -> float:
        """Seconds of silence between runs, as far as a position."""
        pauses = [
            after.at - before.at - (before.end_s - before.start_s)
            for before, after in pairwise(self.runs)
            if after.start_s < until_s
        ]
        return sum(pauses)

    @property
    def ends(self) -> float:
        """When its last sample so far is played; 0 before the first."""
        last = self.runs[-1] if self.runs else None
        return last.at + last.end_s - last.start_s if last else 0.0


@dataclass(slots=True)
class _Piece:
    fed: str
    """What the session was given, after any transform."""
    written: str
    """What the LLM wrote for it, which is what a transcript keeps."""
    fed_end: int
    written_end: int
    said: list[tuple[int, int]] | None = None
    """Of one that a transform changed: with each word of `fed`, its end, and how much of `written` has been said by then."""

    def written_by(self, begun: int) -> int:
        """How many characters of `written` have been said with `begun` of `fed`."""
        if self.fed == self.written:
            return begun
        if self.said is None:
            self.said = _aligned(self.fed, self.written)
        count = bisect_right(self.said, begun, key=lambda item: item[0])
        return self.said[count - 1][1] if count else 0


@dataclass(slots=True)
class Script:
    """The text of an utterance, and its words as they become known."""

    pieces: list[_Piece] = field(default_factory=list[_Piece])
    words: list[Word] = field(default_factory=list[Word])
    written: str = ""
    """All that the LLM wrote for it."""
    taken: int = 0
    """How much of it has been given out by `take`."""

    def add(self, fed: str, written: str) -> None:
        """A piece of text was fed. White space that it opens with is never spoken, and no part of a transcript."""
        if not self.pieces:
            written = written.lstrip()
        self.written += written
        fed_end = (self.pieces[-1].fed_end if self.pieces else 0) + len(fed)
        self.pieces.append(_Piece(fed, written, fed_end, len(self.written)))

    @property
    def fed_to_a_space(self) -> bool:
        """Whether the next piece may follow without a space between."""
        return not self.pieces or not self.pieces[-1].fed or self.pieces[-1].fed[-1].isspace()

    def written_by_word(self, count: int) -> int:
        """How many characters of `written` the first `count` words are; of a piece that a transform changed, whole words."""
        if count == 0:
            return 0
        fed = self.words[count - 1].char_end
        whole = bisect_right(self.pieces, fed, key=lambda piece: piece.fed_end)
        written = self.pieces[whole - 1].written_end if whole else 0
        if whole < len(self.pieces):
            piece = self.pieces[whole]
            written += piece.written_by(fed - (piece.fed_end - len(piece.fed)))
        return written

    def take(self, text: str) -> str | None:
        """What comes next of `written`, with the white space before it; None if it is something else."""
        begin = self.taken
        while begin < len(self.written) and self.written[begin].isspace():
            begin += 1
        if not self.written.startswith(text, begin):
            return None
        space = self.written[self.taken : begin] if self.taken else " "  # another utterance may stand before it
        self.taken = begin + len(text)
        return space + text

    def words_by(self, heard_s: float, known: int = 0) -> int:
        """How many words have been said at a position: a word counts once half of it has. `known` of them for sure."""
        count = known
        while count < len(self.words) and (self.words[count].start_s + self.words[count].end_s) / 2 <= heard_s:
            count += 1
        return count

    def words_in(self, text: str) -> tuple[int, str]:
        """With how many words the part of `written` that `text` begins with has been said, and what of `text` is left.

        Letters and digits count: frameworks differ in the white space and the marks that they take along with a word.
        """
        rest, mine = (("".join(filter(str.isalnum, item))) for item in (text, self.written))
        said = next(
            (at for at, (a, b) in enumerate(zip(rest, mine, strict=False)) if a != b), min(len(rest), len(mine))
        )
        signs = list(accumulate(map(str.isalnum, self.written), initial=0))
        count = reached = 0
        for number, word in enumerate(self.words, 1):
            now = signs[self.written_by_word(number)]
            if now > said:
                break
            if now > reached or now == len(mine) or not any(map(str.isalnum, word.text)):
                count, reached = number, now
        return count, rest[said:]


def _aligned(fed: str, written: str) -> list[tuple[int, int]]:
    """See `_Piece.said`: words that are in both stand for each other, and between them those of one are shared among the other's."""
    ours, theirs = _words(fed), _words(written)
    places = [0, *(end for _, end in theirs)]
    said: list[int] = []
    matcher = SequenceMatcher(None, [word for word, _ in ours], [word for word, _ in theirs], autojunk=False)
    for _, begin, end, first, last in matcher.get_opcodes():
        said += [places[first + number * (last - first) // (end - begin)] for number in range(1, end - begin + 1)]
    if said:
        said[-1] = len(written)
    return [(end, place) for (_, end), place in zip(ours, said, strict=True)]


def _words(text: str) -> list[tuple[str, int]]:
    """Words, as their letters and digits, and where each ends with its marks. Chinese and Japanese signs are words each."""
    words: list[tuple[str, int]] = []
    for match in re.finditer(r"\S+", text):
        word = ""
        for at, char in enumerate(match.group(), match.start()):
            if char.isalnum():
                if word and (_is_wide(char) or _is_wide(word[-1])):
                    words.append((word, at))
                    word = ""
                word += char.casefold()
        if word:
            words.append((word, match.end()))
    return words


def _is_wide(char: str) -> bool:
    return east_asian_width(char) in "WF"
