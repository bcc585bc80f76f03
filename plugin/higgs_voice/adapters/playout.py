"""What an adapter keeps of an utterance: when its sound is played, and what of its text has been said. No framework here."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

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


@dataclass(slots=True)
class Script:
    """The text of an utterance, and its words as they become known."""

    pieces: list[_Piece] = field(default_factory=list[_Piece])
    words: list[Word] = field(default_factory=list[Word])

    def add(self, fed: str, written: str) -> None:
        """A piece of text was fed."""
        last = self.pieces[-1] if self.pieces else None
        fed_end = (last.fed_end if last else 0) + len(fed)
        written_end = (last.written_end if last else 0) + len(written)
        self.pieces.append(_Piece(fed, written, fed_end, written_end))

    @property
    def fed_to_a_space(self) -> bool:
        """Whether the next piece may follow without a space between."""
        return not self.pieces or not self.pieces[-1].fed or self.pieces[-1].fed[-1].isspace()

    @property
    def written(self) -> str:
        """All of it."""
        return "".join(piece.written for piece in self.pieces)

    def written_by_word(self, count: int) -> int:
        """How many characters of `written` the first `count` words are. A piece that a transform changed counts whole."""
        if count == 0:
            return 0
        fed = self.words[count - 1].char_end
        written = 0
        for piece in self.pieces:
            if piece.fed_end <= fed:
                written = piece.written_end
                continue
            begun = fed - (piece.fed_end - len(piece.fed))
            if begun > 0 and piece.fed == piece.written:
                written = piece.written_end - len(piece.written) + begun
            break
        return written

    def words_by(self, heard_s: float, known: int = 0) -> int:
        """How many words have been said at a position: a word counts once half of it has. `known` of them for sure."""
        count = known
        while count < len(self.words) and (self.words[count].start_s + self.words[count].end_s) / 2 <= heard_s:
            count += 1
        return count

    def words_in(self, text: str) -> tuple[int, str]:
        """How many of the words `text` begins with (white space aside), and what of it is left."""
        rest = "".join(text.split())
        count = 0
        for word in self.words:
            if not rest.startswith(word.text):
                break
            rest = rest[len(word.text) :]
            count += 1
        return count, rest
