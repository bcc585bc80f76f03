"""What is written and not said: markdown, code, tags, emoji, control characters, special tokens. Sound events are kept.

Every step works on what one chunk holds. The chunker keeps code, links and tags in one piece; emphasis may be cut in two, so
its markers go one by one, with or without a partner. No pattern here backtracks more than its bound: time is linear.
"""

from __future__ import annotations

import html
import re
import unicodedata
from typing import Final

from .rewriting import Pieces, Rewriting, Span

KEPT: Final = "\ue000-\uf8ff\U000f0000-\U000ffffd"
"""Private-use characters as a character class: each stands for a text that no further rule touches (see `Kept`)."""


class Kept:
    """Texts put aside: each is one private-use character until the end. None of them is left in cleaned text."""

    def __init__(self) -> None:
        self._chars: dict[str, str] = {}
        self.heard: set[str] = set()

    def put(self, text: str, *, heard: bool) -> str:
        """The character that stands for ``text``; ``heard`` says whether it alone makes a chunk worth speaking."""
        char = self._chars.get(text)
        if char is None:
            number = len(self._chars)
            char = self._chars[text] = chr(0xE000 + number if number < 6400 else 0xF0000 + number - 6400)
            if heard:
                self.heard.add(char)
        return char

    def text(self, char: str) -> str:
        """What a character stands for; itself if it was not put here."""
        return next((text for text, kept in self._chars.items() if kept == char), char)

    def restore(self, rewriting: Rewriting) -> None:
        texts = {char: text for text, char in self._chars.items()}
        rewriting.sub(_KEPT, lambda match: texts.get(match.group(), ""))


# Higgs Audio's sound events: how they are asked for in a text, and what the model was trained on.
_SOUNDS: Final = {
    "laugh": "<SE>[Laughter]</SE>",
    "humming start": "<SE_s>[Humming]</SE_s>",
    "humming end": "<SE_e>[Humming]</SE_e>",
    "music start": "<SE_s>[Music]</SE_s>",
    "music end": "<SE_e>[Music]</SE_e>",
    "music": "<SE>[Music]</SE>",
    "sing start": "<SE_s>[Singing]</SE_s>",
    "sing end": "<SE_e>[Singing]</SE_e>",
    "applause": "<SE>[Applause]</SE>",
    "cheering": "<SE>[Cheering]</SE>",
    "cough": "<SE>[Cough]</SE>",
}
_SOUND_WORDS: Final = _SOUNDS | {
    "laughs": _SOUNDS["laugh"],
    "laughter": _SOUNDS["laugh"],
    "laughing": _SOUNDS["laugh"],
    "coughs": _SOUNDS["cough"],
    "cheers": _SOUNDS["cheering"],
}

_KEPT: Final = re.compile(f"[{KEPT}]")
_JOINER: Final = re.compile(
    r"(?<=[\u0590-\u08ff\u0900-\u0dff\u0f00-\u109f\u1780-\u17ff])[\u200c\u200d](?=[\u0590-\u17ff])"
)
_UNHEARD: Final = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e"
    "\u2060-\u206f\ufdd0-\ufdef\ufeff\ufff0-\uffff\ud800-\udfff\U000e0000-\U000e0fff\U00100000-\U0010ffff"
    "\U0001fffe-\U0001ffff\U0002fffe-\U0002ffff\U000ffffe-\U000fffff" + KEPT + "]+"
)
_BREAK: Final = re.compile("\r\n|[\r\x0b\x0c\x85\u2028\u2029]")
_BLANK: Final = re.compile(r"[^\S\n]+")
_COMPOSED: Final = re.compile("[^\\W\\d_][\u0300-\u036f]{1,8}")
_STYLED: Final = re.compile("[\U0001d400-\U0001d7ff\uff10-\uff19\uff21-\uff3a\uff41-\uff5a\ufb00-\ufb06\u210e]")
_ENTITY: Final = re.compile(r"&(?:[A-Za-z]{2,8}|#\d{1,6}|#x[0-9a-fA-F]{1,5});")
_TOKEN: Final = re.compile(r"<\|[^|<>\s]{1,60}\|>")
_INFO_FENCE: Final = r"`{3,}(?=[\w+#.-]{0,20}[ \t]{0,8}(?:\n|\Z)).*?(?:`{3,}|\Z)"


def _fences(line_start: str) -> re.Pattern[str]:
    """Fenced code: from a line's beginning, or in a line with nothing behind the marks but the code's language."""
    line = rf"{line_start}[ \t]*(?:`{{3,}}.*?(?:`{{3,}}|\Z)|~{{3,}}.*?(?:~{{3,}}|\Z))"
    return re.compile(f"{line}|{_INFO_FENCE}", re.DOTALL | re.MULTILINE)


_FENCE: Final = _fences("^")
_FENCE_IN_LINE: Final = _fences("(?<=\n)")  # where the text itself begins in a line
_THOUGHT: Final = re.compile(r"<(think|thinking)>.*?(?:</\1>|\Z)", re.DOTALL)
_COMMENT: Final = re.compile(r"<!--(?:[^-]|-(?!->)){0,400}-->")
_AUTOLINK: Final = re.compile(r"<((?:https?://|mailto:)?[^\s<>|]{1,300}[.@:/][^\s<>|]{1,300})>")
_BREAK_TAG: Final = re.compile(
    r"</?(?:br|p|div|li|ul|ol|tr|h[1-6]|table|blockquote)(?:\s[^<>\n]{0,300})?/?>", re.IGNORECASE
)
_CELL: Final = re.compile(r"</t[dh]>\s{0,64}<t[dh](?:\s[^<>\n]{0,300})?>", re.IGNORECASE)
_WORD_TAG: Final = re.compile(
    r"</?(?:a|abbr|b|code|del|em|font|i|ins|kbd|mark|s|small|span|strong|sub|sup|u|wbr)(?:\s[^<>\n]{0,300})?/?>",
    re.IGNORECASE,
)
_TAG: Final = re.compile(r"</?[A-Za-z][^<>\n]{0,300}>|<[!?][A-Za-z][^<>\n]{0,300}>")
_SE: Final = re.compile(r"<(SE|SE_s|SE_e)>\[[A-Za-z ]{1,30}\]</\1>")
_LINK: Final = re.compile(
    r"!?\[([^\[\]]{0,400})\](?:\((?:[^()\s]++|\((?:[^()\s]++|\([^()\s]*+\))*+\))*+"
    r"""(?:\s(?:"[^"\n]{0,300}"|'[^'\n]{0,300}'))?\s?\)|\[[^\[\]\n]{0,100}\])"""
)
_DEFINITION: Final = re.compile(r"^[ \t]{0,3}\[[^\[\]\n]{1,100}\]:[ \t]*\S[^\n]*$", re.MULTILINE)
_FOOTNOTE: Final = re.compile(r"\[\^[^\[\]\s]{1,30}\]|(?<=[^\W_])\[\d{1,3}\]|(?<=[.,!?;:\"”'’)\]])\[\d{1,3}\]")
_SPEAKER: Final = re.compile(r"\[SPEAKER\d{1,4}\]")
_SOUND: Final = re.compile(
    r"\[[ ]?(" + "|".join(sorted(_SOUND_WORDS, key=len, reverse=True)) + r")[ ]?\]", re.IGNORECASE
)
_RULE: Final = re.compile(r"^[ \t]*([-*_=])(?:[ \t]*\1){2,}[ \t]*$", re.MULTILINE)
_ROW: Final = re.compile(r"^[ \t]*\|[^\n]*$|^[ \t]*:?-{3,}[ \t:|-]*$", re.MULTILINE)
_LINE_START: Final = re.compile(r"(\A ?| ?\n\s*)((?:#{1,6} |[-*+•‣◦▪] (?:\[[ xX]\] )?|>(?![$€£]?\d) ?){0,8})")
_ORDERED: Final = re.compile(r"\d{1,3}[.)] ")
_BLOCK_LINE: Final = re.compile(r"[ \t]*(?:#{1,6} |[-*+•‣◦▪] |\d{1,3}[.)] )")
_STRUCK: Final = re.compile(r"~~(?=[^\s~])[^~]{1,400}~~")
_ESCAPED: Final = re.compile(r"\\([\\`*_{}\[\]()#+\-.!|~>$])")
_STARS: Final = re.compile(r"\*+")
_UNDERSCORES: Final = re.compile("_+")
_TICKS: Final = re.compile("`+|~~+")
_EMOTICON: Final = re.compile(r"(?<!\S)(?:[:;=]['-]?[)(DPpO/\\|*]|<3|\^_+\^|[xX]D)(?![^\s.,!?])")
_KEYCAP: Final = re.compile("[0-9#*]\ufe0f?\u20e3")
_KEYS: Final = {"#": "pound", "*": "star"}
_KEY: Final = re.compile(
    r"(\b(?:press|dial|hit|enter|push|tap|by|the|and|or|then) [\"'“‘(`]?(?:\*\*(?=#)|__)?)\\?(#|(?<!\*)\*(?!\*))"
    r"([\"'”’)`]?(?:\*\*|__)?[\"'”’)`]?(?=[\s.,;:!?]|\Z))(?! of\b)",
    re.IGNORECASE,
)
_STAR_CODE: Final = re.compile(r"(?:(?<=\b[Pp]ress )|(?<=\b[Dd]ial ))\*(?=\d{1,3}(?![\d*]))")
_EMOJI: Final = re.compile(
    "[\U0001f000-\U0001faff\u2600-\u27bf\u2b00-\u2bff\u2300-\u23ff\u2500-\u25ff\u2800-\u28ff\u3030\u303d\u3297\u3299"
    "\u203c\u2049\u2139\u24c2\u2934\u2935\ufe00-\ufe0f\u200d\u20d0-\u20ff\U000e0100-\U000e01ef™®℠]+"
)
_DOUBLE: Final = {"‼": "!!", "⁉": "!?"}


def strip(rewriting: Rewriting, kept: Kept, *, before: str = "") -> None:
    """Take out what is not said. Speaker tags and sound events are put aside in ``kept``."""
    sub = rewriting.sub
    in_line = bool(before) and bool(before[max(before.rfind(char) for char in "\n\r\u2028\u2029") + 1 :].strip())
    _clean(rewriting)
    if "&" in rewriting.text:
        sub(_ENTITY, lambda match: html.unescape(match.group()))
        _clean(rewriting)
    if "<" in rewriting.text:
        # A blank stays, so that two halves do not become the token that stood around the one taken out.
        sub(_TOKEN, " ")
        sub(_THOUGHT, lambda match: " " if opens_thought(before + match.string[: match.start()]) else None)
    if "`" in rewriting.text or "~" in rewriting.text:
        sub(_FENCE_IN_LINE if in_line else _FENCE, "\n")
    if "<" in rewriting.text:
        sub(_SE, lambda match: kept.put(match.group(), heard=True))
        sub(_COMMENT, " ")
        sub(_AUTOLINK, lambda match: [match.span(1)])
        sub(_CELL, ", ")
        sub(_BREAK_TAG, "\n")
        sub(_WORD_TAG, "")
        sub(_TAG, " ")
    if "[" in rewriting.text:
        sub(_SPEAKER, lambda match: kept.put(match.group(), heard=False))
        sub(_SOUND, lambda match: kept.put(_SOUND_WORDS[match.group(1).lower()], heard=True))
        sub(_LINK, lambda match: [match.span(1)])
        sub(_LINK, lambda match: [match.span(1)])  # an image inside a link
        sub(_DEFINITION, "")
        sub(_FOOTNOTE, "")
    sub(_KEYCAP, " ")
    sub(_KEY, lambda match: [match.span(1), _KEYS[match.group(2)], match.span(3)])
    sub(_STAR_CODE, "star ")
    sub(_EMOTICON, " ")
    sub(_EMOJI, lambda match: _DOUBLE.get(match.group()[0], "" if match.group() in "™®℠" else " "))
    _lines(rewriting)
    if "~" in rewriting.text:
        sub(_STRUCK, " ")
    sub(_STARS, _star)
    sub(_UNDERSCORES, _underscore)
    sub(_TICKS, "")
    if "\\" in rewriting.text:
        sub(_ESCAPED, lambda match: [match.span(1)])


def opens_thought(before: str) -> bool:
    """Whether a ``<think>`` behind this text begins a model's thoughts: in the middle of a sentence it is spoken of."""
    line = before.rpartition("\n")[2].rstrip(" ")
    return not line or (line[-1] in ".!?…。！？>" and line[-1:] == before.rstrip(" ")[-1:])


def _clean(rewriting: Rewriting) -> None:
    """Characters without a sound go, white space becomes a blank or a line feed, letters get their plain form."""
    text = rewriting.text
    if text.isascii():
        if not text.isprintable():
            rewriting.sub(_BREAK, "\n")
            rewriting.sub(_UNHEARD, "")
    else:
        rewriting.sub(_BREAK, "\n")
        joined = {match.start() for match in _JOINER.finditer(rewriting.text)}
        if joined:
            rewriting.sub(_UNHEARD, lambda match: None if match.start() in joined and len(match.group()) == 1 else "")
        else:
            rewriting.sub(_UNHEARD, lambda match: None if match.group() == "\u200d" else "")
        rewriting.sub(_COMPOSED, lambda match: unicodedata.normalize("NFC", match.group()))
        rewriting.sub(_STYLED, lambda match: unicodedata.normalize("NFKC", match.group()))
    rewriting.sub(_BLANK, lambda match: None if match.group() == " " else " ")


def _lines(rewriting: Rewriting) -> None:
    """Rules and rows of tables, marks at the beginnings of lines; a line that is a sentence of its own gets a stop."""
    rewriting.sub(_RULE, "")
    rewriting.sub(_ROW, _row)
    rewriting.sub(_LINE_START, _line_start)


def _row(match: re.Match[str]) -> Pieces:
    row = match.group()
    if not row.strip(" \t|:-"):
        return ""
    pieces: list[str | Span] = []
    at = match.start()
    for cell in row.split("|"):
        if cell.strip():
            if pieces:
                pieces.append(", ")
            lead = len(cell) - len(cell.lstrip())
            pieces.append((at + lead, at + len(cell.rstrip())))
        at += len(cell) + 1
    pieces.append(".")
    return pieces


def _line_start(match: re.Match[str]) -> Pieces:
    if "\n" not in match.group(1):
        return "" if match.group(2) else None
    text, start, end = match.string, match.start(), match.end()
    last, following = text[start - 1 : start], text[end : end + 1]
    if not last or not following:
        return " "
    line = text[text.rfind("\n", 0, start) + 1 : start]
    marked = bool(match.group(2)) or match.group(1).count("\n") > 1 or _ORDERED.match(text, end) is not None
    goes_on = following.islower() or (len(line) >= 45 and not _BLOCK_LINE.match(line))
    if last in ".,!?:;…。！？：；，、।॥؟\"'”’)»" or (not marked and goes_on and not line.startswith("#")):
        return " "
    return ". "


def _star(match: re.Match[str]) -> str | None:
    """Emphasis goes; a star between blanks, digits or closing brackets is a sign of its own."""
    text, (start, end) = match.string, match.span()
    before, behind = text[start - 1 : start], text[end : end + 1]
    if (before.isdigit() and (behind.isdigit() or behind == "(")) or (before == ")" and behind.isdigit()):
        return " to the power of " if end - start == 2 else " times "
    if text[start - 1 : start] == "\\":
        return None
    if before.isspace() and behind.isspace() and end - start == 1:
        left, right = text[start - 2 : start - 1], text[end + 1 : end + 2]
        return "times" if left.isalnum() and right.isalnum() and (left.isdigit() or right.isdigit()) else ""
    return ""


def _underscore(match: re.Match[str]) -> str | None:
    """Between letters it parts words; in an address it stays, anywhere else it is a marker."""
    text, (start, end) = match.string, match.span()
    before, behind = text[start - 1 : start], text[end : end + 1]
    if before == "\\":
        return None
    if not (before.isalnum() and behind.isalnum()):
        return ""
    return None if _in_address(text, start) else " "


def _in_address(text: str, i: int) -> bool:
    """Whether index i lies in a word with an ``@`` or ``://``."""
    first = i
    while first > 0 and i - first < 80 and not text[first - 1].isspace():
        first -= 1
    last = i
    while last < len(text) and last - i < 80 and not text[last].isspace():
        last += 1
    word = text[first:last]
    return "@" in word or "://" in word or "www." in word
