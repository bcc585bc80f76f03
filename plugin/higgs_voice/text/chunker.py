"""Streamed text in, speakable chunks out.

The chunker reads a turn once, from left to right. Every mark (a stop, a comma, a line's end, a bracket, a backtick) is
decided when just enough text behind it is known, and a decision never changes when more text comes: so the chunks depend on
the text alone, not on how it was split when it was fed. What is undecided waits; `poll` settles it by the clock, `flush` by
the turn's end.

- Later chunks are whole sentences, very short ones joined to the next; the first chunk of a turn may be cut at a clause.
- Text without a stop is cut before it grows beyond ``max_chars``: after a sentence or clause that was passed over, before a
  conjunction, at white space, or anywhere but inside a grapheme.
- What markdown hides is never divided: fenced code is a chunk of its own (however long: it is not spoken), links, tags and
  inline code stay in one piece, and so does a model's ``<think>``. Emphasis may run over chunks; `normalize` drops markers
  without a partner.
- A ``[SPEAKERn]`` tag begins a chunk.

Sentence splitters (sentencex, pysbd, blingfire) decide on whole texts: what they say of a stop may change with text that
comes long after it, and they know no fences, links, list markers or speaker tags. Here the look-ahead is one character
for an ordinary stop, one word where an abbreviation, a number or an initial leaves it open.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Final

from pydantic import Field, model_validator

from ..config import Settings
from .abbreviations import CALENDAR, DATES, STARTERS, Dot, classify, words
from .markup import opens_thought


class ChunkerSettings(Settings):
    """When a chunk ends. Sizes with ``min`` count letters and digits as heard: a CJK character counts as two."""

    min_first_chars: int = Field(default=20, ge=1)
    """The first chunk of a turn is cut at a clause that holds this much."""
    min_first_sentence_chars: int = Field(default=4, ge=0)
    """A first sentence with less ("Ok.") waits for the next clause: spoken alone it has no melody."""
    first_max_chars: int = Field(default=80, ge=10)
    """A first chunk longer than this (in characters) is cut before a conjunction, if there is one."""
    min_chars: int = Field(default=10, ge=0)
    """A later sentence with less is joined to the next one."""
    max_chars: int = Field(default=200, ge=20)
    """No chunk has more characters, not counting what is never spoken: fenced code, tags, the address of a link."""
    stall_s: float = Field(default=0.5, ge=0.0)
    """After this long without input `poll` releases what ends in a clause or sentence."""
    hold_s: float = Field(default=2.0, ge=0.0)
    """After this long without input `poll` releases whole words too, if there are ``min_first_chars`` of them."""

    @model_validator(mode="after")
    def _ordered(self) -> ChunkerSettings:
        if self.hold_s < self.stall_s:
            raise ValueError(f"hold_s ({self.hold_s}) must not be below stall_s ({self.stall_s})")
        return self


@dataclass(frozen=True, slots=True)
class TextChunk:
    """A piece of a turn's text that is spoken in one go."""

    text: str
    """The input's characters, without white space at the ends."""
    start: int
    """Offset of the first character in the turn's text."""
    end: int
    """Offset behind the last character."""
    final: bool = False
    """The last chunk of the turn; known only at `flush`, so that the last one may come before it and without."""
    speaker: str | None = None
    """The ``SPEAKERn`` whose tag was met last in this turn, in this chunk or before it."""
    before: str = field(default="", repr=False)
    """The end of what was written before it in the turn: what a figure or a mark at its beginning means may stand there."""
    goes_on: bool = False
    """It ends where no sentence does: the next chunk goes on with the same one."""


class _Level(IntEnum):
    CLAUSE = 1
    SENTENCE = 2
    FORCE = 3


@dataclass(frozen=True, slots=True)
class _Boundary:
    pos: int
    level: _Level


@dataclass(frozen=True, slots=True)
class _Atom:
    """A span that no cut divides."""

    start: int
    end: int
    hidden: int
    """Characters of it that are never spoken and do not count against ``max_chars``."""
    letters: int
    speaker: str | None = None


@dataclass(frozen=True, slots=True)
class _Step:
    """What was decided at a mark: where reading goes on, a boundary, an atom."""

    scan: int
    boundary: _Boundary | None = None
    atom: _Atom | None = None


_STRONG: Final = "。！？；｡．؟۔।॥։።፧။។᠃᙮"
_STOPS: Final = ".!?…‼⁇⁈⁉‽" + _STRONG
_FREE_CLAUSE: Final = "，、：،؛"  # clause marks that no white space needs to follow
_DASHES: Final = "—―"
_LINE: Final = "\n\r\u2028\u2029"
_OPENERS: Final = "\"“‘'([{«‹¿¡「『（《【<"
_EMOJI: Final = "\U0001f000-\U0001faff\u2600-\u27bf\u2b00-\u2bff\u200d\ufe0e\ufe0f\U000e0020-\U000e007f"

_MARK: Final = re.compile("[" + re.escape(_STOPS + _FREE_CLAUSE + _DASHES + _LINE + ",;:[<`~-–") + "]")
_RUN: Final = re.compile("[" + re.escape(_STOPS) + "]{1,16}")
_CLOSE: Final = re.compile("(?:[\"'”’»›)\\]}*_~`」』）】》〉｣" + _EMOJI + r"]|\[\^?\d{1,3}\]){0,16}")
_CITATION_HEAD: Final = re.compile(r"\[\^?\d{0,3}$")
_QUOTES: Final = frozenset("\"'”’»›」』")
_SPACES: Final = re.compile(r"\s{0,64}")
_LINE_BREAK: Final = re.compile("\r\n|[" + _LINE + "]")
_WORD: Final = re.compile(r"[\"“‘'«¿¡*_]{0,3}([^\W\d_]{0,16})")
_LIST_HEAD: Final = re.compile(r"[\s>*#•–-]*(\d{1,3})$")
_ITEM: Final = re.compile(r"(?:[-*+•‣◦▪]\s|\d{1,3}[.)]\s|#{1,6}\s|[>|]|```|~~~|([-*_=])\1\1|\[SPEAKER)")
_ITEM_FIRST: Final = frozenset("-*+•‣◦▪0123456789#>|`~_=[")
_BLOCK: Final = re.compile(r"\s*(?:#{1,6}\s|\|)")
_SPEAKER: Final = re.compile(r"\[(SPEAKER\d{1,4})\]")
_TAG_END: Final = re.compile(r"[<>\n\r]")
_BRACKET: Final = re.compile(r"[\[\]]|[\n\r][^\S\n\r]*[\n\r]")
_DESTINATION: Final = re.compile(r"[()\s]")
_URL_END: Final = re.compile(r"[\s<>\"`]")
_SCHEME: Final = re.compile(r"[a-z][a-z0-9+.-]*$", re.IGNORECASE)
_CONJUNCTION: Final = re.compile(
    r"\s(?=(and|but|or|so|because|which|that|when|while|if|then|where|who|as|than|with|for|to|und|oder|aber|weil|dass|"
    r"et|mais|ou|que|y|pero|porque|e|ma|che)\s)"
)
_FIGURE: Final = (
    r"(?:[$€£]?\d[\d,.:]{0,16}\s?(?:%|[AaPp]\.?[Mm]\b\.?)?|\b(?:one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|"
    r"[a-z]{3,6}(?:teen|ty)|hundred|thousand|million|noon|midnight)\b)"
)
_FIGURE_BEHIND: Final = re.compile(r"\s*" + _FIGURE)
_FIGURE_BEFORE: Final = re.compile(_FIGURE + r"\Z")
_RANGE_BEFORE: Final = {"to": re.compile(r"\b[Ff]rom\b"), "and": re.compile(r"\b[Bb]etween\b")}
_RANGE_HEAD: Final = re.compile(r"(?:\d(?:%|st|nd|rd|th|k|K|M)?|(?<![^\W\d])[AaPp]\.?[Mm]\.?)\Z")
_INFO: Final = re.compile(r"[\w+#.-]{0,20}[ \t]{0,8}")
_THOUGHT: Final = re.compile("<(think|thinking)>")
_ORDINAL_BEFORE: Final = words("der die das den dem des am im vom zum beim bis seit ab ein jeder jeden")
_LETTER: Final = re.compile(r"[^\W_]")
_WIDE: Final = re.compile("[\u1100-\u11ff\u2e80-\ua4cf\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff]")
_EXTENDS: Final = re.compile(  # never begins a grapheme
    "[\u0300-\u036f\u0483-\u0489\u0591-\u05bd\u0610-\u061a\u064b-\u065f\u0670\u0900-\u0903\u093a-\u094f\u0e31\u0e34-\u0e3a"
    "\u0e47-\u0e4e\u1ab0-\u1aff\u1dc0-\u1dff\u200c\u200d\u20d0-\u20ff\ufe00-\ufe0f\ufe20-\ufe2f\udc00-\udfff"
    "\U0001f3fb-\U0001f3ff\U000e0020-\U000e007f]"
)

_MAX_RUN: Final = 16  # equal marks that are looked at together, so that no run of them is waited for without end
_LOOK_BACK: Final = 40  # characters of a token before a stop
# What a mark behind it seldom ends, whatever comes: "jane." of an address, "www.", "https:", "e." of "e.g."
_UNFINISHED: Final = re.compile(r"(?:@\S*|\bwww|\bhttps?|(?<![\w'’.])[a-z])\Z")
_LOOK_AHEAD: Final = 300  # characters within which a bracket, a tag, inline code must close
_FIRST_LOOK_AHEAD: Final = 80  # the same in the first chunk of a turn, which somebody waits for
_MAX_ATOMS: Final = 64  # in one chunk, so that tags alone are not held back and looked through again and again
_MAX_BEFORE: Final = 80  # characters of `TextChunk.before`
_MAX_ADDRESS: Final = 2000  # characters of a link's address
_SPOKEN_ADDRESS: Final = 60  # characters of a bare address that count as spoken
_SOFT_LINE: Final = 45  # a line this long without a stop goes on in the next one


class Chunker:
    """One turn after another of streamed text, cut into chunks.

    ``feed`` costs the same however long the turn is. Not thread-safe; the clock (seconds) is read by ``feed`` and ``poll``.
    """

    def __init__(self, settings: ChunkerSettings | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.settings: Final = settings or ChunkerSettings()
        self._clock = clock
        self.reset()

    def reset(self) -> None:
        """Forget the turn: what was fed and not released is gone, offsets begin at 0 again."""
        self._parts: list[str] = []  # fed, not yet joined to the text: nothing in them can decide what is waited for
        self._wake: str | None = None  # the character that can
        self._text = ""  # pending text
        self._before = ""  # the end of what was released, white space too
        self._start = 0  # offset of the pending text in the turn
        self._scan = 0  # everything before this offset is decided
        self._boundaries: list[tuple[_Boundary, int]] = []  # passed over, with the letters before each
        self._atoms: list[_Atom] = []
        self._counted = (0, 0)  # offset, letters between _start and it
        self._first = True
        self._first_tried = False
        self._speaker: str | None = None
        self._list_number: int | None = None
        self._last_input: float | None = None

    def feed(self, text: str) -> list[TextChunk]:
        """Add text; returns the chunks that are complete with it."""
        if not text:
            return []
        self._last_input = self._clock()
        if self._wake is not None and self._wake not in text:
            self._parts.append(text)
            return []
        self._join(text)
        out: list[TextChunk] = []
        self._read(out, end=False)
        return out

    def poll(self) -> list[TextChunk]:
        """Release what has waited too long: see `deadline`."""
        out: list[TextChunk] = []
        if self._last_input is None:
            return out
        waited = self._clock() - self._last_input
        if waited >= self.settings.stall_s:
            cut = self._clause_at_stall()
            if cut is None and waited >= self.settings.hold_s:
                cut = self._words_at_stall()
            if cut is not None:
                self._scan = max(self._scan, cut.pos)
                self._release(cut, out)
                self._read(out, end=False)
        return out

    def deadline(self) -> float | None:
        """The time at which `poll` may release something if nothing is fed before; None if nothing can be."""
        if self._last_input is None:
            return None
        if self._clause_at_stall() is not None:
            return self._last_input + self.settings.stall_s
        if self._words_at_stall() is not None:
            return self._last_input + self.settings.hold_s
        return None

    def flush(self) -> list[TextChunk]:
        """The turn is over: everything left comes out, and the next turn may begin."""
        out: list[TextChunk] = []
        self._join("")
        self._read(out, end=True)
        self._release(_Boundary(self._end, _Level.FORCE), out)
        if out:
            out[-1] = replace(out[-1], final=True, goes_on=False)
        self.reset()
        return out

    # Reading: from mark to mark, until one cannot be decided yet.

    @property
    def _end(self) -> int:
        return self._start + len(self._text)

    def _join(self, text: str) -> None:
        self._parts.append(text)
        self._text += "".join(self._parts)
        self._parts.clear()
        self._wake = None

    def _read(self, out: list[TextChunk], *, end: bool) -> None:
        while self._text:
            self._skip_space()
            limit = self._limit()
            if self._scan >= limit:
                if self._end <= limit:
                    return
                self._overflow(limit, out)
                continue
            mark = _MARK.search(self._text, self._scan - self._start, limit - self._start)
            if mark is None:
                self._scan = min(self._end, limit)
                if self._end <= limit:
                    return
                continue
            self._scan = self._start + mark.start()
            step = self._decide(mark.start(), end)
            if step is None:
                return
            self._scan = step.scan
            if step.atom is not None:
                self._atoms.append(step.atom)
            if step.boundary is not None:
                self._pass(step.boundary, out)
            elif len(self._atoms) >= _MAX_ATOMS:
                self._pass(_Boundary(self._scan, _Level.FORCE), out)

    def _skip_space(self) -> None:
        if self._text[:1].isspace():
            stripped = self._text.lstrip()
            self._move(self._start + len(self._text) - len(stripped))

    def _limit(self) -> int:
        """The offset that the pending chunk must not pass."""
        tight = self._first and not self._first_tried
        limit = self._start + (
            min(self.settings.first_max_chars, self.settings.max_chars) if tight else self.settings.max_chars
        )
        for atom in self._atoms:
            if atom.start < limit:
                limit += atom.hidden
        return limit

    def _pass(self, boundary: _Boundary, out: list[TextChunk]) -> None:
        """A boundary was found: release what it ends, or remember it."""
        while boundary.pos > (limit := self._limit()):
            self._overflow(limit, out)
        if not self._text[: boundary.pos - self._start].strip():
            return
        letters = self._count(boundary.pos)
        if boundary.level is _Level.FORCE:
            enough = True
        elif boundary.level is _Level.SENTENCE:
            enough = letters >= (self.settings.min_first_sentence_chars if self._first else self.settings.min_chars)
        else:
            enough = self._first and letters >= self.settings.min_first_chars
        if enough:
            self._release(boundary, out)
        else:
            self._boundaries.append((boundary, letters))

    def _overflow(self, limit: int, out: list[TextChunk]) -> None:
        """The pending text grows beyond a limit: cut it at the best place before that."""
        if self._first and not self._first_tried and self.settings.first_max_chars < self.settings.max_chars:
            self._first_tried = True
            conjunction = self._conjunction(limit, self.settings.min_first_chars)
            cut = None if conjunction is None else _Boundary(conjunction, _Level.CLAUSE)
        else:
            cut = self._best_cut(limit)
        if cut is not None:
            self._scan = max(self._scan, cut.pos)
            self._release(cut, out)

    def _best_cut(self, limit: int) -> _Boundary:
        third = self._start + (limit - self._start) // 3
        known = [(b, n) for b, n in self._boundaries if b.pos <= limit and n > 0]
        for level in (_Level.SENTENCE, _Level.CLAUSE):
            for boundary, _ in reversed(known):
                if boundary.level >= level and boundary.pos >= third:
                    return boundary
        conjunction = self._conjunction(limit, self.settings.min_chars)
        if conjunction is not None and conjunction >= third:
            return _Boundary(conjunction, _Level.CLAUSE)
        for boundary, letters in reversed(known):
            if letters >= self.settings.min_chars:
                return boundary
        return _Boundary(self._last_space(limit) or self._grapheme(limit), _Level.CLAUSE)

    def _conjunction(self, limit: int, letters: int) -> int | None:
        text = self._text[: limit - self._start]
        for match in reversed(list(_CONJUNCTION.finditer(text))):
            pos = self._start + match.start()
            if not self._free(pos) or _parts_figures(text, match):
                continue
            if self._letters(self._start, pos) >= letters:
                return pos
        return None

    def _last_space(self, limit: int) -> int | None:
        """The last white space up to ``limit`` (on it, too) that has letters before it and lies in no atom."""
        for i in range(limit - self._start, 0, -1):
            if i < len(self._text) and self._text[i].isspace():
                pos = self._start + i
                if self._free(pos):
                    return pos if self._letters(self._start, pos) else None
        return None

    def _grapheme(self, limit: int) -> int:
        for atom in self._atoms:
            if self._start < atom.start < limit < atom.end and self._letters(self._start, atom.start):
                return atom.start
        i = limit - self._start
        for k in range(i, max(i - 32, 1), -1):
            if not _EXTENDS.match(self._text, k) and self._text[k - 1] != "\u200d":
                return self._start + k
        return limit

    def _free(self, pos: int) -> bool:
        return not any(atom.start < pos < atom.end for atom in self._atoms)

    def _release(self, boundary: _Boundary, out: list[TextChunk]) -> None:
        cut = boundary.pos
        text = self._text[: cut - self._start]
        body = text.strip()
        for atom in self._atoms:
            if atom.speaker is not None and atom.start < cut:
                self._speaker = atom.speaker
        if body:
            blank = len(text) - len(text.lstrip())
            start = self._start + blank
            if self._first and self._letters(self._start, cut):
                self._first = False
            before = (self._before + text[:blank])[-_MAX_BEFORE:]
            goes_on = boundary.level is _Level.CLAUSE
            out.append(TextChunk(body, start, start + len(body), speaker=self._speaker, before=before, goes_on=goes_on))
        self._move(cut)

    def _move(self, start: int) -> None:
        """The pending text begins at ``start`` from now on."""
        gone = start - self._start
        self._before = (self._before + self._text[max(gone - _MAX_BEFORE, 0) : gone])[-_MAX_BEFORE:]
        self._text = self._text[gone:]
        self._start = start
        self._scan = max(self._scan, start)
        self._counted = (start, 0)
        self._atoms = [atom for atom in self._atoms if atom.end > start]
        self._boundaries = [(b, self._letters(start, b.pos)) for b, _ in self._boundaries if b.pos > start]

    def _count(self, pos: int) -> int:
        """Letters between the start of the pending text and ``pos``; positions asked for must not go back."""
        at, letters = self._counted
        if pos < at:
            return self._letters(self._start, pos)
        self._counted = (pos, letters + self._letters(at, pos))
        return self._counted[1]

    def _letters(self, start: int, end: int) -> int:
        total = 0
        for atom in self._atoms:
            if start <= atom.start < end:
                total += self._plain_letters(start, atom.start) + atom.letters
                start = atom.end
            elif atom.start < start < atom.end:
                start = min(atom.end, end)
        return total + self._plain_letters(start, end)

    def _plain_letters(self, start: int, end: int) -> int:
        return _letters(self._text[max(start - self._start, 0) : max(end - self._start, 0)])

    # A stall: what may be released although more text could still change it.

    def _clause_at_stall(self) -> _Boundary | None:
        """Where the last clause or sentence ends, if it is worth speaking."""
        if self._wake is not None:
            return None
        least = 1 if not self._first else self.settings.min_first_sentence_chars
        pending = self._at_end()
        if pending is not None and self._letters(self._start, pending.pos) >= (
            1 if pending.level >= _Level.SENTENCE else least
        ):
            return pending
        for boundary, letters in reversed(self._boundaries):
            if letters >= (1 if boundary.level >= _Level.SENTENCE else least):
                return boundary
        return None

    def _at_end(self) -> _Boundary | None:
        """The mark that waits at the very end of the text, taken for what it most likely is."""
        text, i = self._text, self._scan - self._start
        if i >= len(text):
            return None
        if text[i] in _LINE:
            return _Boundary(self._scan, _Level.SENTENCE) if not text[i:].strip() else None
        run = _RUN.match(text, i)
        behind = run.end() if run else i + 1
        close = _CLOSE.match(text, behind)
        if close is None or text[close.end() :].strip():
            return None
        if _UNFINISHED.search(text, max(0, i - _LOOK_BACK), i):
            return None
        if run is None:
            clause = text[i] in ",;:" + _FREE_CLAUSE + _DASHES and not text[max(i - 1, 0) : i].isdigit()
            return _Boundary(self._end, _Level.CLAUSE) if clause else None
        if run.group() == ".":
            kind = classify(_token(text, i))
            if kind not in (Dot.PLAIN, Dot.MAYBE, Dot.NUMBERED):
                return None
        return _Boundary(self._end, _Level.SENTENCE)

    def _words_at_stall(self) -> _Boundary | None:
        """Behind the last word that is surely complete, if there are enough of them."""
        if self._wake is not None or not self._text:
            return None
        limit = self._end
        if self._scan < self._end and self._text[self._scan - self._start] in "[<`~":
            limit = self._scan
        cut = self._last_space(limit)
        if cut is None or self._letters(self._start, cut) < self.settings.min_first_chars:
            return None
        return _Boundary(cut, _Level.CLAUSE)

    # Decisions: at index i of the pending text, with no more look-ahead than each needs. None: wait for more text.

    def _decide(self, i: int, end: bool) -> _Step | None:
        char = self._text[i]
        if char in _STOPS:
            return self._stop(i, end)
        if char in _LINE:
            return self._line(i, end)
        if char == ",":
            return self._comma(i, end)
        if char == ":":
            return self._colon(i, end)
        if char == ";":
            return self._clause(i + 1, end)
        if char in _FREE_CLAUSE:
            return self._free_clause(i, end)
        if char in "-–" or char in _DASHES:
            return self._dash(i, end)
        if char == "[":
            return self._bracket(i, end)
        if char == "<":
            return self._tag(i, end)
        return self._code(i, end)

    def _go(self, index: int, level: _Level | None = None, at: int | None = None) -> _Step:
        """Read on at ``index``; with a level there is a boundary at ``at``, by default there."""
        boundary = None if level is None else _Boundary(self._start + (index if at is None else at), level)
        return _Step(self._start + index, boundary)

    def _stop(self, i: int, end: bool) -> _Step | None:
        text, n = self._text, len(self._text)
        run = _RUN.match(text, i)
        assert run is not None
        if run.end() == n and run.end() - i < _MAX_RUN and not end:
            return None
        close = _CLOSE.match(text, run.end())
        assert close is not None
        k = close.end()
        if not end and (k == n or (text[k] == "[" and _CITATION_HEAD.match(text, k))):
            return None
        marks, behind = run.group(), text[k : k + 1]
        if not behind or any(mark in _STRONG for mark in marks):
            return self._go(k, _Level.SENTENCE)
        if not behind.isspace():
            return self._stop_inside(i, marks, k, end)
        if marks == ".":
            return self._full_stop(i, k, end)
        pause = not marks.strip(".…")
        if not pause and not _QUOTES.intersection(close.group()):
            return self._go(k, _Level.SENTENCE)
        follow = self._follow(k, end)
        if follow is None:
            return None
        goes_on = follow.islower() or (pause and follow.isdigit())
        return self._go(k, _Level.CLAUSE if goes_on else _Level.SENTENCE)

    def _full_stop(self, i: int, k: int, end: bool) -> _Step | None:
        """One ``.`` at i, white space at k."""
        text = self._text
        token = _token(text, i)
        kind = classify(token)
        if kind is Dot.NUMBER and self._is_list_head(i):
            return self._go(i + 1)
        space = _SPACES.match(text, k)
        assert space is not None
        if _LINE_BREAK.search(space.group()):
            # The line's end decides about abbreviations; a paragraph's end is found there, too.
            ends = kind in (Dot.PLAIN, Dot.NUMBER, Dot.NUMBERED)
            return self._go(k, _Level.SENTENCE if ends else None)
        follow = self._follow(k, end)
        if follow is None:
            return None
        if kind is Dot.PLAIN:
            goes_on = follow.islower() and (k > i + 1 or len(token) < 4 or not re.search("[aeiouy]", token))
            return self._go(k, _Level.CLAUSE if goes_on else _Level.SENTENCE)
        if kind is Dot.NUMBER:
            return self._after_number(i, k, token, follow, end)
        if kind is Dot.NEVER:
            return self._go(i + 1)
        if kind is Dot.NUMBERED:
            ends = not (follow.isdigit() or follow == "#" or (follow.islower() and token.lower() != "no"))
            return self._go(k, _Level.SENTENCE if ends else None)
        if not follow.isupper() and follow not in "\"“‘'«¿¡":
            return self._go(k if kind is Dot.MAYBE else i + 1)
        word = self._word(k, end)
        if word is None:
            return None
        return self._go(k, _Level.SENTENCE if self._opens(kind, token, word, i) else None)

    def _opens(self, kind: Dot, token: str, word: str, i: int) -> bool:
        """Whether ``word``, behind an abbreviation that may end a sentence, begins the next one."""
        if kind is Dot.MAYBE and token.lower() in ("etc", "usw", "a.m", "p.m"):
            return word.rstrip(".") not in CALENDAR
        if word not in STARTERS:
            return (
                kind is Dot.INITIAL and token == "I" and _before(self._text, i - 1)[-1:].islower() and word[-1:] != "."
            )
        if kind is Dot.TITLE:
            if token[:1].islower():
                return True
            return token in ("St", "Dr", "Mt", "Ft") and _before(self._text, i - len(token))[:1].isupper()
        return True

    def _after_number(self, i: int, k: int, token: str, follow: str, end: bool) -> _Step | None:
        if follow.islower():
            return self._go(k)
        if self._list_number is not None and token == str(self._list_number + 1):
            self._list_number += 1
            return self._go(i + 1, _Level.SENTENCE, i - len(token))
        if not follow.isupper():
            return self._go(k, _Level.SENTENCE)
        word = self._word(k, end)
        if word is None:
            return None
        ordinal = word in CALENDAR or (
            word not in STARTERS and _before(self._text, i - len(token)).lower() in _ORDINAL_BEFORE
        )
        return self._go(k, None if ordinal and len(token) < 3 else _Level.SENTENCE)

    def _is_list_head(self, i: int) -> bool:
        """Whether the number before the full stop at i stands where a list marker stands; notes which one it is."""
        text = self._text
        line = max(text.rfind(char, 0, i) for char in _LINE) + 1
        for boundary, _ in reversed(self._boundaries):
            if boundary.level is _Level.SENTENCE or text[boundary.pos - self._start - 1] == ":":
                line = max(line, boundary.pos - self._start)
                break
        if i - line > 12:
            return False
        head = _LIST_HEAD.match(text, line, i)
        if head is None:
            return False
        self._list_number = int(head.group(1))
        return True

    def _follow(self, k: int, end: bool) -> str | None:
        """The character behind the white space at k; empty at the text's end and behind very much space, None: wait."""
        space = _SPACES.match(self._text, k)
        assert space is not None
        j = space.end()
        if j - k == 64:
            return ""
        if j == len(self._text):
            return "" if end else None
        return self._text[j]

    def _word(self, k: int, end: bool) -> str | None:
        """The word behind the white space at k, with its full stop if it is an initial; None: wait."""
        space = _SPACES.match(self._text, k)
        assert space is not None
        word = _WORD.match(self._text, space.end())
        assert word is not None
        found = word.group(1)
        if word.end() == len(self._text) and len(found) < 16 and not end:
            return None
        return found + "." if len(found) == 1 and self._text[word.end() : word.end() + 1] == "." else found

    def _stop_inside(self, i: int, marks: str, k: int, end: bool) -> _Step | None:
        """Stops with no white space behind them: part of a number, name or address, or a space was forgotten."""
        text, behind = self._text, self._text[k]
        before = text[i - 1] if i else ""
        if not before or before.isspace():
            return self._go(k)
        caseless = behind.isalpha() and not behind.isascii() and behind.lower() == behind.upper()
        if caseless and before.isalpha() and not before.isascii():
            return self._go(k, _Level.SENTENCE)
        token = _token(text, i, address=True)
        if any(char in token for char in "/=&@"):
            return self._go(k)
        if marks == ".":
            if behind in "“¿¡「『《" and before.isalpha():
                return self._go(k, _Level.SENTENCE)
            if not (behind.isupper() and token.isalpha() and token[1:].islower() and len(token) > 1) or k > i + 1:
                return self._go(k)
            word = self._word(k, end)
            if word is None:
                return None
            return self._go(k, _Level.SENTENCE if word in STARTERS else None)
        if not marks.strip(".…"):
            return self._go(k, _Level.CLAUSE if behind.isalpha() and len(marks) > 1 else None)
        opens = behind.isupper() or caseless or behind in _OPENERS
        return self._go(k, _Level.SENTENCE if opens else None)

    def _comma(self, i: int, end: bool) -> _Step | None:
        if i and self._text[i - 1].isdigit():
            if i + 1 == len(self._text) and not end:
                return None
            follow = self._follow(i + 1, end)
            if follow is None:
                return None
            if follow.isdigit():
                return self._go(i + 1)
        return self._clause(i + 1, end)

    def _clause(self, k: int, end: bool) -> _Step | None:
        """A clause mark before k ends a clause if white space comes behind it and what it closes."""
        close = _CLOSE.match(self._text, k)
        assert close is not None
        k = close.end()
        if k == len(self._text):
            return self._go(k, _Level.CLAUSE) if end else None
        return self._go(k, _Level.CLAUSE if self._text[k].isspace() else None)

    def _free_clause(self, i: int, end: bool) -> _Step | None:
        text = self._text
        if i + 1 == len(text) and not end:
            return None
        if text[i - 1 : i].isdigit() and text[i + 1 : i + 2].isdigit():
            return self._go(i + 1)
        close = _CLOSE.match(text, i + 1)
        assert close is not None
        if close.end() == len(text) and not end:
            return None
        return self._go(close.end(), _Level.CLAUSE)

    def _colon(self, i: int, end: bool) -> _Step | None:
        text = self._text
        if len(text) < i + 3 and not end:
            return None if text[i + 1 :] in ("", "/") else self._clause(i + 1, end)
        if not text.startswith("//", i + 1):
            return self._clause(i + 1, end)
        scheme = _SCHEME.search(text, max(i - 12, 0), i)
        if scheme is None:
            return self._go(i + 1)
        close = _URL_END.search(text, i, i + _MAX_ADDRESS)
        if close is None and len(text) < i + _MAX_ADDRESS and not end:
            return None
        stop = close.start() if close else min(len(text), i + _MAX_ADDRESS)
        stop = i + len(text[i:stop].rstrip(".,;:!?)]}*_'…" + _STRONG + _FREE_CLAUSE))
        return self._atom(scheme.start(), stop, hidden=max(stop - scheme.start() - _SPOKEN_ADDRESS, 0))

    def _dash(self, i: int, end: bool) -> _Step | None:
        text = self._text
        k = i + 1
        while k < len(text) and text[k] in "-–—―" and k - i < _MAX_RUN:
            k += 1
        if k == len(text) and not end:
            return None
        before, behind = text[i - 1 : i], text[k : k + 1]
        if before.isdigit() and behind.isdigit():
            return self._go(k)
        if text[i] in _DASHES or (k == i + 2 and text[i] == "-"):
            parts = bool(before.strip() or text[:i].strip())
        else:
            parts = before.isspace() and behind.isspace() and self._in_line(i)
        if parts and k == i + 1:
            ranges = self._in_range(i, end)
            if ranges is None:
                return None
            parts = not ranges
        return self._go(k, _Level.CLAUSE if parts else None)

    def _in_range(self, i: int, end: bool) -> bool | None:
        """Whether the dash at i stands for "to" between two figures, times or dates; None: wait."""
        head = self._text[max(i - 24, 0) : i].rstrip()
        if not _RANGE_HEAD.search(head) and not _is_date(_token(head, len(head)).rstrip(".")):
            return False
        follow = self._follow(i + 1, end)
        if follow is None:
            return None
        if follow.isdigit() or follow in tuple("$€£¥₹"):
            return True
        if not follow.isupper():
            return False
        word = self._word(i + 1, end)
        return None if word is None else _is_date(word)

    def _in_line(self, i: int) -> bool:
        """Whether a word stands before i in its line."""
        line = max(self._text.rfind(char, 0, i) for char in _LINE) + 1
        head = self._text[line:i]
        if not line:
            head = self._before[max(self._before.rfind(char) for char in _LINE) + 1 :] + head
        return bool(head.strip())

    def _line(self, i: int, end: bool) -> _Step | None:
        """A line's end: the end of a sentence, or only the text's width."""
        text, n = self._text, len(self._text)
        space = _SPACES.match(text, i)
        assert space is not None
        j = space.end()
        breaks = len(_LINE_BREAK.findall(space.group()))
        if breaks >= 2:
            return self._go(i + 1, _Level.SENTENCE, i)
        if j == n and j - i < 64 and not end:
            return None
        line = text[max(text.rfind(char, 0, i) for char in _LINE) + 1 : i]
        if _BLOCK.match(line) or j == n:
            return self._go(j, _Level.SENTENCE, i)
        if text[j] in _ITEM_FIRST:
            if n - j < 9 and not end and not _ITEM.match(text, j):
                return None
            if _ITEM.match(text, j):
                return self._go(j, _Level.SENTENCE, i)
        last = line.rstrip()[-1:]
        if text[j].islower() or last == "," or last in _FREE_CLAUSE:
            return self._go(j)
        if len(line) >= _SOFT_LINE and last not in _STOPS and last not in ";:":
            return self._go(j)
        return self._go(j, _Level.SENTENCE, i)

    # Spans that are never divided.

    def _atom(self, start: int, stop: int, *, hidden: int, letters: int | None = None) -> _Step:
        span = self._text[start:stop]
        count = _letters(span) if letters is None else letters
        return _Step(self._start + stop, None, _Atom(self._start + start, self._start + stop, hidden, count))

    @property
    def _look_ahead(self) -> int:
        return _FIRST_LOOK_AHEAD if self._first else _LOOK_AHEAD

    def _bracket(self, i: int, end: bool) -> _Step | None:
        text = self._text
        # An image's words, and a link's that begin the turn, are all that is said of it.
        look_ahead = _LOOK_AHEAD if text[i - 1 : i] == "!" or not self._start + i else self._look_ahead
        close = _BRACKET.search(text, i + 1, i + look_ahead)
        if close is None:
            return None if len(text) < i + look_ahead and not end else self._go(i + 1)
        if close.group() != "]":
            return self._go(i + 1)
        k = close.end()
        speaker = _SPEAKER.match(text, i)
        if speaker is not None:
            atom = _Atom(self._start + i, self._start + k, k - i, 0, speaker.group(1))
            return _Step(self._start + k, _Boundary(self._start + i, _Level.FORCE), atom)
        if k == len(text) and not end:
            return None
        if text[k : k + 1] != "(":
            return self._go(i + 1)
        stop = self._destination(k, end)
        if stop is None:
            return None
        if stop == k:
            return self._go(i + 1)
        return self._atom(i, stop, hidden=stop - k + 2, letters=_letters(text[i:k]))

    def _destination(self, i: int, end: bool) -> int | None:
        """The end of a link's address that begins with the bracket at i; i if it is none, None if undecided."""
        depth, text = 0, self._text
        for match in _DESTINATION.finditer(text, i, i + _MAX_ADDRESS):
            char = match.group()
            if char == ")":
                depth -= 1
                if depth == 0:
                    return match.end()
            elif char == "(":
                depth += 1
                if depth > 3:
                    return i
            else:
                return self._title(match.start(), i, end)
        return None if len(text) < i + _MAX_ADDRESS and not end else i

    def _title(self, i: int, start: int, end: bool) -> int | None:
        """The end of ``"title")`` behind an address; ``start`` if it is none, None if undecided."""
        text = self._text
        if i + 1 == len(text):
            return start if end else None
        quote = text[i + 1]
        if quote not in "\"'":
            return start
        close = text.find(quote, i + 2, i + _LOOK_AHEAD)
        if close < 0 or close + 1 == len(text):
            return None if len(text) < i + _LOOK_AHEAD and not end else start
        return close + 2 if text[close + 1] == ")" else start

    def _tag(self, i: int, end: bool) -> _Step | None:
        text = self._text
        if i + 1 == len(text):
            return self._go(i + 1) if end else None
        if not (text[i + 1].isalpha() or text[i + 1] in "/!|"):
            return self._go(i + 1)
        # What has attributes is a tag, however long, and a comment is one.
        long = text[i + 1] == "!" or "=" in text[i : i + _FIRST_LOOK_AHEAD]
        look_ahead = _LOOK_AHEAD if long else self._look_ahead
        close = _TAG_END.search(text, i + 1, i + look_ahead)
        if close is None:
            return None if len(text) < i + look_ahead and not end else self._go(i + 1)
        if close.group() != ">":
            return self._go(i + 1)
        thought = _THOUGHT.match(text, i)
        if thought is not None and opens_thought(self._before + text[:i]):
            return self._unspoken(i, thought.end(), f"</{thought.group(1)}>", end)
        return self._atom(i, close.end(), hidden=close.end() - i, letters=0)

    def _code(self, i: int, end: bool) -> _Step | None:
        """Backticks, or tildes at a line's beginning."""
        text, mark = self._text, self._text[i]
        k = i + 1
        while k < len(text) and text[k] == mark and k - i < _MAX_RUN:
            k += 1
        if k == len(text) and not end:
            return None
        if k - i >= 3:
            fence = not self._in_line(i)
            if not fence and mark == "`":
                # In a line a fence has nothing behind it but the code's language.
                info = _INFO.match(text, k)
                assert info is not None
                if info.end() == len(text) and not end:
                    return None
                fence = text[info.end() : info.end() + 1] in tuple(_LINE)
            if fence:
                return self._unspoken(i, k, mark * 3, end)
        if mark == "~":
            return self._go(k)
        close = re.compile(r"(?<!`)" + mark * (k - i) + r"(?!`)|[\n\r]\s*[\n\r]").search(
            text, k, min(i + self._look_ahead, len(text))
        )
        if close is not None and close.end() == len(text) and not end:
            return None
        if close is None:
            return None if len(text) < i + self._look_ahead and not end else self._go(k)
        if close.group()[0] != mark:
            return self._go(k)
        return self._atom(i, close.end(), hidden=0)

    def _unspoken(self, i: int, k: int, closing: str, end: bool) -> _Step | None:
        """Fenced code or a thought from i to what closes it behind k, or to the turn's end."""
        text = self._text
        close = text.find(closing, k)
        if close < 0:
            if not end:
                if i:  # what stands before it need not wait for its end
                    return self._go(i, _Level.FORCE)
                self._wake = closing[-1]
                return None
            stop = len(text)
        else:
            stop = close + len(closing)
            while stop < len(text) and text[stop] == closing[-1] and stop - close < _MAX_RUN:
                stop += 1
            if stop == len(text) and not end:
                return None
            if i:
                return self._go(i, _Level.FORCE)
        atom = _Atom(self._start + i, self._start + stop, stop - i, 0)
        return _Step(self._start + stop, _Boundary(self._start + stop, _Level.FORCE), atom)


def _parts_figures(text: str, conjunction: re.Match[str]) -> bool:
    """Whether a cut before the conjunction parts what is one figure to the ear: "from eight | to six", "more | than 500"."""
    word, start = conjunction.group(1), conjunction.start()
    pair = _RANGE_BEFORE.get(word)
    if pair is not None and pair.search(text, max(start - 48, 0), start):
        return True
    if word not in ("to", "than", "or"):
        return False
    behind = start + 1 + len(word)
    return (
        behind + 1 >= len(text)
        or _FIGURE_BEHIND.match(text, behind) is not None
        or _FIGURE_BEFORE.search(text[max(start - 24, 0) : start]) is not None
    )


def _is_date(word: str) -> bool:
    return word in CALENDAR or word in DATES or word == "May"


def _letters(text: str) -> int:
    """Letters and digits, wide ones twice."""
    return len(_LETTER.findall(text)) + (0 if text.isascii() else len(_WIDE.findall(text)))


def _token(text: str, i: int, *, address: bool = False) -> str:
    """What stands before index i without white space; only letters, digits, stops and apostrophes unless an address is asked."""
    k = i
    while k > 0 and i - k < _LOOK_BACK and not text[k - 1].isspace():
        if not (address or text[k - 1].isalnum() or text[k - 1] in ".'’"):
            break
        k -= 1
    return text[k:i]


def _before(text: str, i: int) -> str:
    """The word before index i (white space between skipped)."""
    k = i
    while k > 0 and text[k - 1].isspace():
        k -= 1
    return _token(text, k)
