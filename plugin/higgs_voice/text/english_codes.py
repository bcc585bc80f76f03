"""English telephone numbers, codes and other figures that are read digit by digit; see `english_figures`."""

from __future__ import annotations

import re
from typing import Final

from .english_words import COUNTED, COUNTS, Match
from .numbers import digits
from .rewriting import Pieces, Sub

_INTERNATIONAL: Final = re.compile(r"(?<![\w+])\+\d[\d ().-]{5,20}\d(?!\w)")
_PHONE: Final = re.compile(
    r"(?<![\w.,$€£+/-])(?:(1)[ .-])?(?:\((\d{3})\) ?|(\d{3})[ .-])(\d{3})[ .-](\d{4})(?![\w-]|[.,]\d)"
)
_TRUNK: Final = re.compile(r"(?<![\w.,$€£+/-])(?:0\d{1,4}|\(0\d{1,4}\))(?:[ -]\d{2,8}){1,4}(?![\w-]|[.,]\d)")
_LOCAL: Final = re.compile(r"(?<![\w.,$€£+/-])(\d{3})-(\d{4})(?![\w-]|[.,]\d)")
_DIALLED: Final = re.compile(
    r"(?<!\w)((?:[Cc]all|[Dd]ial|[Tt]ext|[Pp]ress|[Rr]ing|[Pp]hone|[Rr]each(?= (?:us|me|them|him|her)\b)|[Ee]nter(?! (?:19|20)\d\d\b(?!#)))(?: (?:us|me|them|him|her))?(?: back)?(?: at| on)? )"
    r"(\d{3} \d{4}|\d{3,6})(?![\w,.]\w|\w|[.,:/-]\d)"
)
_ZIP: Final = re.compile(r"(?<!\w)([A-Z]{2}) (\d{5})(?:-(\d{4}))?(?![\w-]|[.,]\d)")
_CODE_FIGURE: Final = r"(?P<figure>\d{3,20}(?:(?:-\d{2,8}| \d{3,8}){1,5})?)(?![\w/]|[.,:-]\d)"
_CODE_WORD: Final = (
    r"(?:(?:pass|post)?codes?|password|PIN|OTP|SSN|social security number|digits|(?:number|ID)(?! of\b))\b"
)
_CODE_IS: Final = r"(?: (?:is|are|was|be|reads)(?: now| as follows)?)"
# Between a code's name and its figure there may be words: "the code I have for you is".
_CODE_HEAD: Final = rf"(?<!\w){_CODE_WORD}(?:(?P<between>(?:,? [a-z']{{1,15}}){{1,6}}?){_CODE_IS}|{_CODE_IS}?)"
_CODE: Final = re.compile(
    rf"({_CODE_HEAD}(?: ?[:=,])?\s{{0,4}}[\"'(]?(?:#|number |no\. )?(?<!\w)){_CODE_FIGURE}", re.IGNORECASE
)
_BARE_NUMBER: Final = re.compile(r"number\b", re.IGNORECASE)
_WHOSE_NUMBER: Final = re.compile(
    r"\b(?:account|order|phone|telephone|mobile|cell|fax|case|ticket|confirmation|reference|tracking|serial|flight|room|booking|reservation|"
    r"invoice|member(?:ship)?|policy|claim|routing|card|license|licence|passport|model|part|PIN|ID|customer|contact|patient|employee|our|your|my|"
    r"his|her|their) \Z",
    re.IGNORECASE,
)
_CODE_LABEL: Final = re.compile(
    r"((?<!\w)(?:(?:area|zip|dialing|country) code|extension|ext\.?|(?:ending|ends)(?: in| with)?|end (?:in|with)) )"
    r"(\d{3,20})(?![\w/]|[.,:-]\d)|"
    r"((?<!\w)(?:zip|account|order|confirmation|reference|tracking|ticket|case|serial|flight|room|booking|reservation|invoice|"
    r"member(?:ship)?|routing|(?:policy|claim)(?= (?:#|number|ID)))(?: code| ID)?(?: number)?(?: is|:|,)? ?\(?(?:#|number )?(?<!\w))"
    r"(\d{4,20}(?:-\d{2,8}){0,5})(?![\w/]|[.,:-]\d)",
    re.IGNORECASE,
)
_UNTIL: Final = re.compile(r"(?:ending|ends) \Z", re.IGNORECASE)
_CODE_BEFORE: Final = re.compile(
    rf"(?:{_CODE_HEAD}(?: ?:)?|(?<!\w)(?:account|order|confirmation|reference|tracking|ticket|booking|reservation|invoice)"
    rf"(?: is| ?:))[\s*_`\"'(#]{{0,12}}\Z",
    re.IGNORECASE,
)
_CODE_FIRST: Final = re.compile(rf"\A(\W{{0,8}})(?=(?:\d[ -]?){{4}}){_CODE_FIGURE}")
_SECURITY: Final = re.compile(
    r"(?<![\w.,$€£+/-])(?:\d{3}-\d{2}-\d{4}|\d{4}([ -])\d{4}\1\d{4}\1\d{4}|\d{4}([ -])\d{6}\2\d{5})(?![\w-]|[.,]\d)"
)
_ISBN: Final = re.compile(
    r"(?<!\w)(ISBN(?:-1[03])?(?: is)?:? )(97[89][ -]?(?:\d[ -]?){9}\d|(?:\d[ -]?){9}[\dX])(?![\w-])"
)
_UUID: Final = re.compile(r"(?<![\w-])[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}(?![\w-])")
_LONG_HASH: Final = re.compile(r"(?<!\w)(?:#|№) ?(\d{4,20})(?![\w/]|[.,:-]\d)")


def telephones(sub: Sub) -> None:
    """Telephone numbers that can be nothing else."""
    sub(_INTERNATIONAL, _international)
    sub(_PHONE, lambda match: ", ".join(digits(group) for group in match.groups() if group))


def codes(sub: Sub, before: str) -> None:
    """What the words before it, in `before` too, say to be a code; telephone numbers without an area code."""
    sub(_UUID, lambda match: _spelled(match.group()))
    sub(_ISBN, lambda match: [match.span(1), _spelled(match.group(2))])
    sub(_SECURITY, lambda match: _grouped(match.group()))
    if _CODE_BEFORE.search(before):
        sub(_CODE_FIRST, lambda match: [match.span(1), _grouped(match.group(2))])
    sub(_CODE, _code)
    sub(_CODE_LABEL, _labelled)
    sub(_LONG_HASH, lambda match: "number " + digits(match.group(1)))
    sub(_TRUNK, _trunk)
    sub(_LOCAL, lambda match: f"{digits(match.group(1))}, {digits(match.group(2))}")


def postal_and_dialled(sub: Sub) -> None:
    """Behind a state, and behind what one dials."""
    sub(_ZIP, lambda match: [match.span(1), *(f" {digits(group)}" for group in match.groups()[1:] if group)])
    sub(_DIALLED, _dialled)


def _grouped(code: str) -> str:
    """A code's digits, a pause between its groups."""
    return ", ".join(digits(group) for group in re.split("[ -]", code))


def _spelled(code: str) -> str:
    """Digits and letters one by one, a pause between groups."""
    return ", ".join(
        " ".join(digits(char) if char.isdigit() else char.upper() for char in group) for group in re.split("[ -]", code)
    )


def _code(match: Match) -> Pieces:
    """Three figures alone may be a quantity where the word before them does not say what they are."""
    head, figure = match.group(1), match.group("figure")
    if len(figure) == 3 and (match.group("between") or "number" in head.lower()):
        return None
    if (
        _BARE_NUMBER.match(head)
        and _WHOSE_NUMBER.search(match.string[max(match.start() - 24, 0) : match.start()]) is None
    ):
        return None  # any number
    counted = COUNTED.match(match.string, match.end())
    if counted is not None and counted.group(1) in COUNTS:
        return None
    return [match.span(1), _grouped(figure)]


def _dialled(match: Match) -> Pieces:
    return [match.span(1), _grouped(match.group(2))] if COUNTED.match(match.string, match.end()) is None else None


def _labelled(match: Match) -> Pieces:
    label = 1 if match.group(2) else 3
    figure = match.group(label + 1)
    if COUNTED.match(match.string, match.end()) is not None:
        return None
    if _UNTIL.match(match.group(label)) and len(figure) == 4 and "1100" <= figure <= "2099":
        return None  # a year
    return [match.span(label), _grouped(figure)]


def _international(match: Match) -> Pieces:
    text = match.group()
    if not 8 <= sum(char.isdigit() for char in text) <= 15:
        return None
    groups: list[str] = []
    runs = re.findall(r"\d+", text)
    if len(runs) == 1 and len(runs[0]) == 11 and runs[0][0] == "1":
        runs = ["1", runs[0][1:]]
    for run in runs:
        while len(run) > 4:
            groups.append(run[:3])
            run = run[3:]
        groups.append(run)
    return "plus " + ", ".join(digits(group) for group in groups)


def _trunk(match: Match) -> Pieces:
    """A number with its area code and leading zero, as outside North America."""
    groups = re.findall(r"\d+", match.group())
    return ", ".join(digits(group) for group in groups) if 8 <= sum(map(len, groups)) <= 13 else None
