"""English dates and times of day as they are said, in their order among the rules of `english_figures`."""

from __future__ import annotations

import re
from typing import Final

from .english_words import COUNTED, DAY_NAME, MONTH, MONTH_OF, MONTHS, Match, ends_sentence, plural
from .numbers import amount, cardinal, ordinal, year
from .rewriting import Pieces, Span, Sub

_DAY: Final = r"(\d{1,2})(?:st|nd|rd|th)?(?![\w:%]|[.,]\d)"
_YEAR: Final = r"(?:,? (\d{4})(?![\w-]|[.,]\d))?"
_MONTH_DAY: Final = re.compile(rf"(?<!\w){MONTH} {_DAY}(?: ?[-–] ?{_DAY})?{_YEAR}")
_DAY_MONTH: Final = re.compile(rf"(?<![\w.,:/$-])(the )?{_DAY} (?:of )?{MONTH}(?!\w){_YEAR}")
_MONTH_YEAR: Final = re.compile(rf"(?<!\w){MONTH},? ([12]\d{{3}})(?![\w-]|[.,]\d)")
_DATES_TO: Final = re.compile(
    rf"(?<!\w)({MONTH} (?:\d{{4}}|\d{{1,2}}(?:st|nd|rd|th)?(?:,? \d{{4}})?)) ?[-–—] ?(?=(?:{DAY_NAME}\.?,? )?{MONTH}(?!\w))"
)
_FIGURE_DATES_TO: Final = re.compile(
    r"(?<![\w/.-])(\d{1,2}/\d{1,2}/(?:\d{4}|\d{2})|\d{4}-\d{2}-\d{2}) ?[-–—] ?(?=(?:\d{1,2}/\d{1,2}/(?:\d{4}|\d{2})|\d{4}-\d{2}-\d{2})(?![\w/-]))"
)
_DAY_FIGURES: Final = (
    r"(\d{1,2})/(\d{1,2})(?![\w/]|[.,]\d| (?:stars?|points?|of|cups?|inch(?:es)?|miles?|(?:tea|table)spoons?)\b)"
)
_DAY_FIGURES_TO: Final = rf"{_DAY_FIGURES}(?:( ?[-–—] ?| to | through | thru | until | and ){_DAY_FIGURES})?"
_DUE: Final = (
    rf"(?<!\w)(?:{DAY_NAME}|on|by|due|for|from|since|until|till|starting|check[- ]?(?:in|out)|dates?|expires|exp|arrives|"
    rf"arriving|departs|departing)[.,:]?(?: is)?"
)
_DUE_DATE: Final = re.compile(rf"({_DUE} ){_DAY_FIGURES_TO}", re.IGNORECASE)
_DUE_BEFORE: Final = re.compile(rf"{_DUE}\s\Z", re.IGNORECASE)
_DUE_FIRST: Final = re.compile(rf"\A(){_DAY_FIGURES_TO}")
_ZERO_DATE: Final = re.compile(rf"(?<![\w.,/$€£-])(){_DAY_FIGURES_TO}")
_SHARED: Final = frozenset({(1, 2), (1, 3), (2, 3), (1, 4), (3, 4)})
_NO_DATES: Final = frozenset({(24, 7), (9, 11)})
_ISO: Final = re.compile(
    r"(?<![\w/-])(\d{4})([/-])(\d{2})\2(\d{2})(?:[T ](\d{2}):(\d{2})(?::\d{2}(?:\.\d{1,9})?)?(?:Z|[+-]\d{2}:?\d{2})?)?(?![\w/-])"
)
_FIGURE_DATE: Final = re.compile(r"(?<![\w/.-])(\d{1,2})([/.-])(\d{1,2})\2(\d{4}|\d{2})(?![\w/-]|\.\d)")
_CLOCK: Final = re.compile(r"(?<![\w:.])(\d{1,2}):([0-5]\d)(?::([0-5]\d))?(?: ?([AaPp])\.?[Mm]\b\.?)?(?![\w:])")
_HOUR: Final = re.compile(r"(?<![\w:.,$€£])(\d{1,2}) ?([AaPp])\.?[Mm]\b\.?(?!\w)")
_TIME: Final = r"\d{1,2}(?::[0-5]\d)?(?: ?[AaPp]\.?[Mm]\b\.?)?"
_TIMES_TO: Final = re.compile(rf"(?<![\w:.,$€£/-])({_TIME}) ?[-–—] ?(?=({_TIME})(?![\w:/-]|[.,]\d))")
_HOURS_BEFORE: Final = re.compile(r"(?:from|open|hours:?|daily|days?,?|weekdays,?|between) \Z", re.IGNORECASE)
_DECADE: Final = re.compile(r"(?<![\w.,])(1[1-9]|20)(\d)0'?s(?!\w)")
_SHORT_DECADE: Final = re.compile(
    r"(?<!\w)(?:'|(\b(?:the|her|his|our|my|your|their|early|late|mid)[ -]|(?<=[2-9]0s )(?:and|or|to) ))([2-9])0'?s(?!\w)|"
    r"(?<!\w)([2-9])0'?s(?!\w)",
    re.IGNORECASE,
)
_LASTS: Final = re.compile(
    r"(?:\b(?:in|for|after|within|every|about|around|wait|waits|takes?|took|lasts?|is|are|was|only|another|first|last|next|than|under|over|to|"
    r"and|by|of)|[:=<>~≈(]|\d ?[hm])[ ,]?\Z",
    re.IGNORECASE,
)
_OF_TIME: Final = re.compile(
    r"[ -](?:timeouts?|delays?|limits?|windows?|timers?|intervals?|breaks?|clips?|videos?|ads?|before|after|later|ago|long)\b"
)
_YEAR_RANGE: Final = re.compile(r"(?<![\w.,-])(1[1-9]\d\d|20\d\d) ?[-–/] ?(\d{4}|\d{2})(?![\w-]|[.,]\d)")
_SHARE_BEHIND: Final = re.compile(
    r"(?: of)?(?: an?)? ?(?:percent|%|points?|time|inch|inches|mile|cup|second|ounce|acre|full)(?!\w)|(?: to| -) \d/\d"
)
_CHANGED: Final = re.compile(
    r"(?:ros|ris|fall|fell|drop|grow|grew|cut|reduc|increas|decreas|multipl|divid|scal|chang)\w{0,6}(?: (?:it|this|that|them))? \Z",
    re.IGNORECASE,
)


def dates_in_figures(sub: Sub, british: bool, before: str) -> None:
    """Dates without a month's name; `before` is the end of what was written before the text."""
    sub(_DATES_TO, lambda match: [match.span(1), " to "])
    sub(_FIGURE_DATES_TO, lambda match: [match.span(1), " to "])
    sub(_ISO, _iso_date)
    sub(_FIGURE_DATE, lambda match: _figure_date(match, british))
    due = _DUE_BEFORE.search(before)
    if due is not None:
        sub(_DUE_FIRST, lambda match: _due_date(match, british, due.group().strip()))
    sub(_DUE_DATE, lambda match: _due_date(match, british, match.group(1).strip()))
    sub(_ZERO_DATE, lambda match: _due_date(match, british, ""))


def dates_in_words(sub: Sub, british: bool) -> None:
    """Dates with a month's name."""
    sub(_MONTH_DAY, lambda match: _month_day(match, british))
    sub(_DAY_MONTH, lambda match: _day_month(match))
    sub(_MONTH_YEAR, lambda match: f"{MONTH_OF[match.group(1) or match.group(2)]} {year(int(match.group(3)))}")


def spans_of_time(sub: Sub) -> None:
    """From one year or time of day to another."""
    sub(_YEAR_RANGE, _year_range)
    sub(_TIMES_TO, _times_to)


def clocks(sub: Sub) -> None:
    """Times of day."""
    sub(_CLOCK, _clock)
    sub(_HOUR, lambda match: f"{cardinal(int(match.group(1)))} {match.group(2).upper()} M" + _kept_stop(match))


def decades(sub: Sub) -> None:
    """ "1990s", "the '90s"."""
    sub(_DECADE, lambda match: _decade(int(match.group(1)), int(match.group(2))))
    sub(_SHORT_DECADE, _short_decade)


def _kept_stop(match: Match) -> str:
    """The sentence's stop, if an abbreviation's stop was it."""
    return "." if match.group().endswith(".") and ends_sentence(match, loose=True) else ""


def _iso_date(match: Match) -> Pieces:
    said = _date(int(match.group(4)), int(match.group(3)), match.group(1))
    if said is None:
        return None
    if match.group(5):
        said += " at " + _time(int(match.group(5)), int(match.group(6)))
    return said


def _figure_date(match: Match, british: bool) -> Pieces:
    first, second = int(match.group(1)), int(match.group(3))
    if match.group(2) == ".":
        day_first = True  # as the Continent writes it
    else:
        day_first = first > 12 or (british and second <= 12)
    day, month = (first, second) if day_first else (second, first)
    written = match.group(4)
    if len(written) == 2:
        if match.group(2) != "/":
            return None
        written = ("20" if int(written) < 70 else "19") + written
    return _date(day, month, written)


def _due_date(match: Match, british: bool, lead: str) -> Pieces:
    """``12/25`` behind a word that a date follows, or with a leading zero."""
    first = _day(match.group(2), match.group(3), british)
    second = _day(match.group(5), match.group(6), british) if match.group(4) else None
    if first is None or (match.group(4) and second is None):
        return None
    figures = [match.group(i) for i in (2, 3, 5, 6) if match.group(i)]
    zero = any(figure[0] == "0" for figure in figures)
    pairs = {(int(a), int(b)) for a, b in zip(figures[::2], figures[1::2], strict=True)}
    shared = lead.lower() in ("by", "for", "from") and pairs <= _SHARED
    if not zero and (not lead or shared or pairs & _NO_DATES or COUNTED.match(match.string, match.end())):
        return None
    if not zero and lead.lower() in ("by", "for", "from", "on", "since") and _is_share(match, lead, pairs):
        return None
    pieces: list[str | Span] = [match.span(1), first]
    if second is not None:
        joint = match.group(4).strip()
        pieces.append(f" to {second}" if joint in "-–—" else f" {joint} {second}")
    return pieces


def _is_share(match: Match, lead: str, pairs: set[tuple[int, int]]) -> bool:
    """Whether it is a part of something: "rose by 3/8 percent", "on 3/4 time", "from 1/16 to 1/2 inch"."""
    before = match.string[max(match.start() - 24, 0) : match.start()]
    return (
        (lead.lower() != "on" and all(a < b and b in (2, 4, 8, 16) for a, b in pairs))
        or _SHARE_BEHIND.match(match.string, match.end()) is not None
        or _CHANGED.search(before) is not None
    )


def _day(first: str, second: str, british: bool) -> str | None:
    month, day = (int(second), int(first)) if british else (int(first), int(second))
    if month > 12:
        month, day = day, month
    return f"{MONTHS[month - 1]} {ordinal(day)}" if 1 <= month <= 12 and 1 <= day <= 31 else None


def _date(day: int, month: int, written_year: str) -> str | None:
    if not (1 <= day <= 31 and 1 <= month <= 12):
        return None
    return f"{MONTHS[month - 1]} {ordinal(day)}, {_year(written_year)}"


def _year(written: str) -> str:
    number = int(written)
    return year(number) if 1000 <= number <= 2999 else amount(written)


def _month_day(match: Match, british: bool) -> Pieces:
    month = MONTH_OF[match.group(1) or match.group(2)]
    day, last = int(match.group(3)), match.group(4)
    if not 1 <= day <= 31 or (last and not 1 <= int(last) <= 31):
        return None
    said = f"{month} {'the ' if british else ''}{ordinal(day)}"
    if last:
        said += f" to {ordinal(int(last))}"
    return said + (f", {_year(match.group(5))}" if match.group(5) else "")


def _day_month(match: Match) -> Pieces:
    day, month = int(match.group(2)), MONTH_OF[match.group(3) or match.group(4)]
    if not 1 <= day <= 31:
        return None
    return f"the {ordinal(day)} of {month}" + (f", {_year(match.group(5))}" if match.group(5) else "")


def _year_range(match: Match) -> Pieces:
    first, last = int(match.group(1)), match.group(2)
    if len(last) == 2:
        if int(last) <= first % 100:
            return f"{MONTHS[int(last) - 1]} {year(first)}" if 1 <= int(last) <= 12 else None
        return f"{year(first)} to {cardinal(int(last)) if int(last) > 9 else 'oh ' + cardinal(int(last))}"
    return f"{year(first)} to {_year(last)}"


def _times_to(match: Match) -> Pieces:
    """Between two times a dash is "to", whichever of them is the later one."""
    first, last = match.group(1), match.group(2)
    apart = match.string[match.end() - 1] == " "
    if (
        last[-1] in "Mm."
        or (":" in last and (":" in first or first[-1] in "Mm."))
        or (first[-1] in "Mm." and not apart)
    ):
        return [match.span(1), " to "]
    head = match.string[max(match.start() - 12, 0) : match.start()]
    return [match.span(1), " to "] if _HOURS_BEFORE.search(head) else None


def _clock(match: Match) -> Pieces:
    hour, minute = int(match.group(1)), int(match.group(2))
    half = f" {match.group(4).upper()} M" if match.group(4) else ""
    if match.group(3):
        said = f"{cardinal(hour)} {_minutes(minute)} and {cardinal(int(match.group(3)))} seconds"
    elif hour > 24:
        return f"{cardinal(hour)} {cardinal(minute)}"
    else:
        said = _time(hour, minute, clock=not half)
    return said + half + _kept_stop(match)


def _minutes(minute: int) -> str:
    return cardinal(minute) if minute > 9 else f"oh {cardinal(minute)}"


def _time(hour: int, minute: int, *, clock: bool = True) -> str:
    if minute:
        return f"{cardinal(hour)} {_minutes(minute)}"
    if not clock:
        return cardinal(hour)
    return f"{cardinal(hour)} o'clock" if 1 <= hour <= 12 else f"{cardinal(hour)} hundred"


def _decade(century: int, tens: int) -> str:
    if tens:
        return f"{cardinal(century)} {plural(cardinal(tens * 10))}"
    return "two thousands" if century == 20 else f"{cardinal(century)} hundreds"


def _short_decade(match: Match) -> Pieces:
    """``80s``, but seconds behind what lasts."""
    if match.group(3) and match.group().endswith("0s"):
        before = match.string[max(match.start() - 12, 0) : match.start()]
        alone = not before and not match.string[match.end() : match.end() + 2].strip().isalnum()
        if alone or _LASTS.search(before) or _OF_TIME.match(match.string, match.end()):
            return None
    said = plural(cardinal(int(match.group(2) or match.group(3)) * 10))
    return [match.span(1), said] if match.group(1) else said
