"""What is said for what is written.

`normalize` takes one chunk and returns what the model is given, with the way back from each of its characters to the
written ones. Four steps: take out what is not said (`markup`), put in the user's words (`Lexicon`), say numbers and signs as
words (`english`; in other languages plain numbers only), make punctuation what the model was trained on. A text mostly in
another script than Latin passes the last two nearly unchanged.

Numbers come from num2words, kept and small, in some fifty languages. Grammars of finite-state transducers (NeMo, WeTextProcessing) know more
cases, need a compiled library, and give no way back from what is said to what is written, which a barge-in needs.

Special tokens of the model in the text are dropped because nobody wants to hear them. That none of them ever becomes a
token is the prompt builder's business, not this module's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

from . import english
from .lexicon import Lexicon
from .markup import Kept, strip
from .numbers import cardinals
from .rewriting import Rewriting, Span


@dataclass(frozen=True, slots=True)
class SpokenText:
    """What is said, and where each character of it was written. Empty if there is nothing to say.

    Offsets are those of the text given to `normalize`; a chunk's ``start`` added they are those of the turn.
    """

    text: str
    starts: tuple[int, ...] = field(repr=False)
    """For each spoken character the offset of the written span it stands for; never decreasing."""
    ends: tuple[int, ...] = field(repr=False)
    """The offset behind that span; never decreasing."""
    written_length: int = field(repr=False)

    def source_index(self, i: int) -> int:
        """The written character that spoken character ``i`` came from; for ``i`` at the end the written text's length."""
        if not 0 <= i <= len(self.text):
            raise IndexError(f"spoken text has {len(self.text)} characters, there is no index {i}")
        return self.starts[i] if i < len(self.text) else self.written_length

    def source_span(self, start: int, end: int) -> tuple[int, int]:
        """The written span that spoken characters ``start`` to ``end`` stand for."""
        if not 0 <= start <= end <= len(self.text):
            raise IndexError(f"spoken text has {len(self.text)} characters, there is no span {start} to {end}")
        if start == end:
            return self.source_index(start), self.source_index(start)
        return self.starts[start], self.ends[end - 1]


def normalize(
    text: str, *, lexicon: Lexicon | None = None, language: str = "en", before: str = "", goes_on: bool = False
) -> SpokenText:
    """What the model is given for one chunk of written text; the empty text if nothing in it can be said.

    ``language`` is a code such as ``en``, ``en-GB``, ``de``: English is spelled out in full, for other languages num2words
    knows plain numbers below a thousand are, the rest keeps its digits. Time is linear in the text's length.

    A chunk's ``before`` tells a code from a quantity ("Your code:" | "4821") and a line's beginning from its middle; one that
    ``goes_on`` ends with a comma where another would get a full stop.
    """
    rewriting = Rewriting(text)
    kept = Kept()
    strip(rewriting, kept, before=before)
    if not _has_sound(rewriting.text, kept):
        return SpokenText("", (), (), len(text))
    if lexicon is not None:
        _apply(lexicon, rewriting, kept)
    if _mostly_latin(rewriting.text):
        rewriting.sub(_ASCII_MARK, lambda match: _ASCII_MARKS[match.group()])
        tag = language.replace("_", "-").lower()
        if tag.partition("-")[0] == "en":
            british = tag in ("en-gb", "en-au", "en-nz", "en-ie", "en-in", "en-za")
            english.say(rewriting, british=british, before=before)
        else:
            cardinals(rewriting, language)
        rewriting.sub(_ASIDE, lambda match: [", ", match.span(1), "," if match.group(2) else ""])
        rewriting.sub(_BRACKETS, " ")
        stop = "."
    else:
        stop = _native_stop(rewriting.text)
    if goes_on:
        stop = "，" if stop == "。" else ","
    _tidy(rewriting, stop, kept)
    if goes_on:
        rewriting.sub(_ONE_STOP, stop)
    kept.restore(rewriting)
    return SpokenText(rewriting.text, tuple(rewriting.starts), tuple(rewriting.ends), len(text))


def is_speakable(text: str, *, before: str = "") -> bool:
    """Whether there is anything to say: False for blanks, emoji, markup and punctuation alone. ``before`` as in `normalize`."""
    rewriting = Rewriting(text)
    kept = Kept()
    strip(rewriting, kept, before=before)
    return _has_sound(rewriting.text, kept)


# As Higgs Audio's own script maps them; quotation marks and the ellipsis are common in Latin text, too.
_ASCII_MARKS: Final = {
    "，": ", ", "。": ". ", "：": ": ", "；": "; ", "？": "? ", "！": "! ", "（": " (", "）": ") ", "【": " [", "】": "] ",
    "《": '"', "》": '"', "“": '"', "”": '"', "„": '"', "«": '"', "»": '"', "‘": "'", "’": "'", "‚": "'", "、": ", ",
    "…": "...", "·": " ", "「": '"', "」": '"', "『": '"', "』": '"', "‹": '"', "›": '"', "−": "-", "‐": "-", "‑": "-",
}  # fmt: skip
_ASCII_MARK: Final = re.compile("[" + "".join(re.escape(mark) for mark in _ASCII_MARKS) + "]")
_BRACKETS: Final = re.compile(r"[()\[\]{}<>|^~*_\\]+")
# What stands in brackets is said as an aside, but for a list's "(a)" and behind words that lead into it.
_LEADS: Final = "".join(
    rf"(?<!\b{word})" for word in "A a an An the The of to and or in on by at for with is are was as".split()
)
_ASIDE: Final = re.compile(
    rf"(?<=[\w%\"']){_LEADS} \((?!(?:zero|one|two|three|four|five|six|seven|eight|nine|ten|i+|iv)\))([^\s()][^()]+)\)(?:(?=( )[\w$€£\"']))?"
)
_WIDE: Final = re.compile("[\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff]")
_INDIC: Final = re.compile("[\u0900-\u0d7f]")
_DASH: Final = re.compile(r" ?(?:[—―]| –(?= )| -{1,3}(?= )|(?<=[^\s-])--(?=[^\s-]))[ —―–-]{0,8}")
_BLANKS: Final = re.compile(r"\s+")
_BLANK_BEFORE: Final = re.compile(r" +(?=[.,!?;:](?!\d))")
_TIGHT: Final = re.compile("(?<=[a-z]),(?=[a-z])")
_MARKS: Final = re.compile(r"[,;:](?: ?[,;:])+|[,;:]+ ?(?=[.!?])")
_LEAD: Final = re.compile(r"\A(?:[\s,;:!?·•…。，、：；)\]]|[.-](?!\d))+")
_OPEN_END: Final = re.compile(r"[\s,;:-]*[:-][\s,;:-]*\Z")
_TERMINAL: Final = ">.!?,;\"'。！？；，、।॥؟۔؛،፧።…"
_END: Final = re.compile(r"\Z")
_ONE_STOP: Final = re.compile(r"(?<![.!?])\.\Z")


def _has_sound(text: str, kept: Kept) -> bool:
    return any(char.isalnum() or char in kept.heard for char in text)


def _apply(lexicon: Lexicon, rewriting: Rewriting, kept: Kept) -> None:
    found = list(lexicon.find(rewriting.text))
    if not found:
        return
    pieces: list[str | Span] = []
    last = 0
    for start, end, words in found:
        pieces += [(last, start), kept.put(words, heard=True) if words else ""]
        last = end
    pieces.append((last, len(rewriting.text)))
    rewriting.sub(_ALL, lambda _: pieces)


_ALL: Final = re.compile(r"\A.*\Z", re.DOTALL)


def _mostly_latin(text: str) -> bool:
    """Whether Latin letters outweigh others; a CJK character weighs two, a text without letters counts as Latin."""
    if text.isascii():
        return True
    latin = other = 0
    for char in text:
        if char.isalpha():
            if char < "\u0250" or "\u1e00" <= char <= "\u1eff":
                latin += 1
            else:
                other += 2 if _WIDE.match(char) else 1
    return latin >= other


def _native_stop(text: str) -> str:
    if _WIDE.search(text):
        return "。"
    return "।" if _INDIC.search(text) else "."


def _tidy(rewriting: Rewriting, stop: str, kept: Kept) -> None:
    """One blank between words, none before a mark, a pause for a dash, and a stop at the end."""
    rewriting.sub(_DASH, ", ")
    rewriting.sub(_BLANKS, lambda match: None if match.group() == " " else " ")
    rewriting.sub(_BLANK_BEFORE, "")
    rewriting.sub(_TIGHT, ", ")
    rewriting.sub(
        _MARKS,
        lambda match: (
            match.group()[0] if match.end() == len(match.string) or match.string[match.end()] not in ".!?" else ""
        ),
    )
    rewriting.sub(_LEAD, "")
    rewriting.sub(_OPEN_END, ",")
    rewriting.sub(_EDGE, "")
    last = kept.text(rewriting.text[-1:])[-1:]
    if last and last not in _TERMINAL:
        rewriting.sub(_END, stop)


_EDGE: Final = re.compile(r"\A\s+|\s+\Z")
