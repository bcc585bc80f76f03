"""English figures as they are said: prices, units, fractions, ranges, numbers; dates and codes are in modules of their own.

The rules run in order, each over the whole text; what an earlier one has put into words no later one finds again.
"""

from __future__ import annotations

import re
from typing import Final

from .english_codes import codes, postal_and_dialled, telephones
from .english_dates import clocks, dates_in_figures, dates_in_words, decades, spans_of_time
from .english_words import COUNTED, COUNTS, UNITS, Match, is_word
from .numbers import amount, cardinal, digits, ordinal, year
from .rewriting import Pieces, Span, Sub

_NUM: Final = r"(?:\d{1,3}(?:,\d{3}){1,5}(?!\d)|\d+)"
_DEC: Final = rf"{_NUM}(?:\.\d+)?"
_RATIO: Final = re.compile(r"(?<![\w:.,])(\d{1,3}):(\d{1,3})(?![\w:])")
_MINUS_RANGE: Final = re.compile(
    r"(?<![\w.,:/-])((?:[$€£¥₹] ?)?\d[\d,.:]{0,12}(?: ?[ap]\.?m\.?|%| ?°[CF]?|[kKM](?=[ –-]))?)([–—-]| [–—-] )(?=([$€£¥₹] ?)?\d[\d,.:]{0,12}(?![\d-]))"
)
_CURRENCIES: Final = {
    "$": ("dollar", "dollars", "cent", "cents"), "€": ("euro", "euros", "cent", "cents"), "£": ("pound", "pounds", "penny", "pence"),
    "¥": ("yen", "yen", "", ""), "₹": ("rupee", "rupees", "paisa", "paise"), "₩": ("won", "won", "", ""), "₽": ("ruble", "rubles", "kopek", "kopeks"),
    "₺": ("lira", "liras", "kurush", "kurush"), "₪": ("shekel", "shekels", "agora", "agorot"), "₿": ("bitcoin", "bitcoins", "", ""),
    "USD": ("U S dollar", "U S dollars", "cent", "cents"), "EUR": ("euro", "euros", "cent", "cents"), "GBP": ("British pound", "British pounds", "penny", "pence"),
    "JPY": ("yen", "yen", "", ""), "INR": ("Indian rupee", "Indian rupees", "paisa", "paise"), "CHF": ("Swiss franc", "Swiss francs", "rappen", "rappen"),
    "CAD": ("Canadian dollar", "Canadian dollars", "cent", "cents"), "AUD": ("Australian dollar", "Australian dollars", "cent", "cents"),
}  # fmt: skip
_NATIONS: Final = {
    "US": "U S ",
    "CA": "Canadian ",
    "C": "Canadian ",
    "AU": "Australian ",
    "A": "Australian ",
    "NZ": "New Zealand ",
    "HK": "Hong Kong ",
}
_SCALES: Final = {
    "k": "thousand", "K": "thousand", "m": "million", "M": "million", "mm": "million", "MM": "million", "b": "billion", "B": "billion",
    "bn": "billion", "Bn": "billion", "t": "trillion", "T": "trillion", "tn": "trillion",
}  # fmt: skip
_SCALE: Final = r"(?:(?: ?|-(?=[tmbl][a-z]{3}))(thousand|million|billion|trillion|lakh|crore|k|K|mm|MM|m|M|bn|Bn|b|B|tn|t|T)(?!\w))?"
_SYMBOL: Final = "[$€£¥₹₩₽₺₪₿]"
_PRICE: Final = re.compile(
    rf"(?<!\w)(-)?(US|CA|C|AU|A|NZ|HK)?({_SYMBOL}) ?(-)?(?=[.\d])({_NUM})?(\.\d+)?{_SCALE}(?:s(?!\w))?(?!\d)"
)
_PRICE_BEHIND: Final = re.compile(
    rf"(?<![\w.,])({_NUM})([.,]\d{{2}})?{_SCALE} ?([€£¥₹₽₺]|\$(?!\d)|(?:USD|EUR|GBP|JPY|INR|CHF|CAD|AUD)(?!\w))"
)
_PRICE_CODE: Final = re.compile(rf"(?<!\w)(USD|EUR|GBP|JPY|INR|CHF|CAD|AUD) ?({_NUM})(\.\d+)?{_SCALE}(?!\d)")
_EUROPEAN: Final = re.compile(r"(?<![\w.,])\d{1,3}(?:\.\d{3}){1,4},\d{2}(?!\d)")
_A_PERIOD: Final = re.compile(r"(?<=\w)-(an?)-(?=(?:night|day|week|month|year|hour|minute|person|piece|seat|head)\b)")
_EACH: Final = re.compile(
    r"-| (?!(?:a|an|the|and|or|for|per|to|in|on|at|is|was|will|of|from|off|each|more|less|every|with|by|if|when|that|as|but|so|"
    r"plus|back|here|there|than|until|into|you|we|I|he|she|they|it|this|your|my)\b)[a-z]"
)
_ARTICLE: Final = re.compile(r"\b(?:[Aa]|[Aa]n) \Z")
_CENTS: Final = re.compile(rf"(?<![\w.,])({_DEC}) ?¢")
_PERCENT: Final = re.compile(r" ?%")
_PER_MILLE: Final = re.compile(" ?‰")
_UNIT: Final = re.compile(
    rf"(?<![\w.,])({_DEC}|\d+/\d+|[½¼¾⅓⅔])( ?-?)({'|'.join(re.escape(unit) for unit in sorted(UNITS, key=len, reverse=True))})(?![\w²³])(\.(?= [a-z0-9]|[,;:]))?"
)
_DURATION: Final = re.compile(
    r"(?<![\w.,])(\d{1,3}) ?(d|h|hrs?|m|mins?) (?=\d)(\d{1,2}) ?(h|hrs?|m|mins?|s|secs?)(?: (\d{1,2}) ?(m|mins?|s|secs?))?(?!\w)|"
    r"(?<![\w.,])(\d{1,3})(d|h|m)(\d{1,2})(h|m|s)(?!\w)"
)
_DURATIONS: Final = {"d": "day", "h": "hour", "m": "minute", "s": "second"}
_PENSION: Final = re.compile(r"(?<![\w.,$€£])(40[13]|457|529)(?:\(([A-Za-z])\)|([KkBb])(?!\w))")
_MILLIONS: Final = re.compile(
    rf"(?<![\w.,])({_DEC})(?:m|(B))(?= (?:users|people|customers|downloads|views|subscribers|followers|households|rows|records|tokens|"
    r"dollars|euros|pounds|parameters|params|devices|messages|requests)\b)"
)
_INCHES: Final = re.compile(rf"(?<![\w.,'\"])({_DEC})[\"″](?: ?(?:x|×|by) ?({_DEC})[\"″]|(?= [a-z]{{3}}))(?!\w)")
_DEGREES: Final = re.compile(r" ?(?:°|º) ?(C|F|K)?(?!\w)|℃|℉")
_PER: Final = re.compile(
    r"(?<=[\d%a-zA-Z]) ?/ ?(month|mo|year|yr|week|wk|day|hour|hr|h|minute|min|second|sec|person|user|night|kg|lb|gallon|mile|km|unit|seat|token|GB|month)(?!\w)"
)
_PER_WORDS: Final = {
    "mo": "month", "yr": "year", "wk": "week", "hr": "hour", "h": "hour", "min": "minute", "sec": "second", "kg": "kilogram", "lb": "pound",
    "km": "kilometer", "GB": "gigabyte",
}  # fmt: skip
_FEET: Final = re.compile(r"(?<![\w.,])(\d{1,2})['′] ?(\d{1,2})(?:[\"″]|'')?(?!\w)")
_BY: Final = re.compile(rf"(?<![\w.,])({_DEC})(?: ?x ?|×)(?={_DEC}(?![\w.,]\w))")
_TIMES: Final = re.compile(r"(?<=\d)x(?!\w)")
_UNKNOWN: Final = re.compile(r"(?<=\d)([xyzn])( ?[-+=*^²³](?! ?\d{1,6}x\b))( (?=\d))?")
_TERM: Final = re.compile(r" ?(?:\d|\(|[a-z](?!\w))")
_EQUATION: Final = re.compile(r"(?<=\d) ?- ?(?=\d{1,9} ?=)")
_ZONE: Final = re.compile(r"(?<=\b(?:GMT|UTC)) ?([+-])(?=\d)")
_HALVES: Final = {
    "½": (1, 2), "⅓": (1, 3), "⅔": (2, 3), "¼": (1, 4), "¾": (3, 4), "⅕": (1, 5), "⅖": (2, 5), "⅗": (3, 5), "⅘": (4, 5), "⅙": (1, 6), "⅚": (5, 6),
    "⅛": (1, 8), "⅜": (3, 8), "⅝": (5, 8), "⅞": (7, 8), "⅐": (1, 7), "⅑": (1, 9), "⅒": (1, 10),
}  # fmt: skip
_VULGAR: Final = re.compile(rf"(?:(?<![\w.,])(\d{{1,6}}) ?)?([{''.join(_HALVES)}])")
_FRACTION: Final = re.compile(r"(?<![\w.,/])(?:(\d{1,4}) )?(\d{1,3})/(\d{1,4})(?![\w/]|[.,]\d)")
_RATING: Final = re.compile(
    r"((?<!\w)(?:rated|ratings?|scored?|scores?|grade|reviews?|steps?|page|part|slide|chapter|question|level|stage|phase)"
    r"(?: (?:is|was|of|it|this|us|them|at|a))?:? )?(?<![\w.,/])(\d{1,3}(?:\.\d{1,2})?)/(\d{1,4})( (?:stars?|points?|rating)\b)?(?![\w/]|[.,]\d)",
    re.IGNORECASE,
)
_MEASURED: Final = re.compile(
    r" (?:cups?|inch(?:es)?|miles?|full|empty|done|of|(?:tea|table)spoons?|pounds?|ounces?|the|as)\b"
)
_PART_OF: Final = re.compile(r" (?:of|the|as|scale|inch|inches|mile|cup|second|ounce|acre)\b")
_MIXED_FRACTION: Final = re.compile(r"(?<![\w.,/-])(\d{1,3})-(\d{1,2})/(\d{1,3})(?![\w/]|[.,]\d)")
_PARTS: Final = {2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 15, 16, 20, 24, 25, 30, 32, 40, 50, 60, 64, 100, 1000}
_ORDINAL: Final = re.compile(rf"(?<![\w.,])({_NUM})(st|nd|rd|th)(?!\w)", re.IGNORECASE)
_VERSION: Final = re.compile(r"(?<![\w.])([vV](?:ersion )?\.? ?)?(\d+(?:\.\d+){2,8})(?![\w]|\.\d)")
_V: Final = re.compile(r"(?<![\w.])(?:v(?=\d{1,4}(?:\.\d{1,4})?(?!\w))|V(?=\d{1,4}\.\d{1,4}(?!\w)))")
_HASH: Final = re.compile(r"(?<!\w)(?:#|№) ?(?=\d)")
_MIXED: Final = re.compile(
    r"(?<![\w.,'-])(?=[A-Z0-9-]{0,24}\d)(?=[A-Z0-9-]{0,24}[A-Z])[A-Z0-9]{1,24}(?:-[A-Z0-9]{1,12}){0,4}(?![\w])"
)
_SCALED: Final = re.compile(
    rf"(?<![\w.,])({_DEC})(k|M|bn|K(?<!\b[48]K)(?! (?:run|race|TV|video|display|monitor|resolution)s?\b))(?!\w)"
)
_MINUS: Final = re.compile(r"(?<![\w)\]%.,])-(?=\.?\d)")
_JOINED: Final = re.compile(r"(?<=[\w.])-(?=\d)")
_APPROXIMATELY: Final = re.compile(r"(?<!\w)~ ?(?=[$€£]?\d)")
_SCIENTIFIC: Final = re.compile(r"(?<![\w.,])(\d{1,9}(?:\.\d{1,9})?)(?:e|E(?=[+-]))([+-]?)(\d{1,3})(?![\w-]|\.\d)")
_POWER: Final = re.compile(r"(?<=[\w)])\^(\d{1,3}|[a-z](?!\w))")
_SUPERSCRIPT: Final = re.compile("(?<=[\\w)])[⁰¹²³⁴⁵⁶⁷⁸⁹]{1,3}")
_SUPERSCRIPTS: Final = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789")
_NUMBER: Final = re.compile(rf"(?<![\d.]){_NUM}(?:\.\d+)?|\.\d+|\d+")
_YEAR_BEFORE: Final = re.compile(
    r"(?:\b(?:in|since|by|from|until|the|before|after|during|around|circa)|(?<!\w)[A-Z]\w{0,12}) \Z"
)


def figures(sub: Sub, british: bool, before: str) -> None:
    sub(
        _SCIENTIFIC,
        lambda match: [
            match.span(1),
            " times ten to the " + ("minus " if match.group(2) == "-" else ""),
            match.span(3),
        ],
    )
    sub(_APPROXIMATELY, "about ")
    sub(_EUROPEAN, lambda match: match.group().replace(".", "").replace(",", "."))
    sub(_ZONE, lambda match: " minus " if match.group(1) == "-" else " plus ")
    telephones(sub)
    dates_in_figures(sub, british, before)
    sub(_RATING, _rating)
    sub(_MIXED_FRACTION, _mixed_fraction)
    codes(sub, before)
    dates_in_words(sub, british)
    postal_and_dialled(sub)
    spans_of_time(sub)
    sub(_EQUATION, " minus ")
    sub(_MINUS_RANGE, _range)
    clocks(sub)
    sub(_RATIO, lambda match: f"{cardinal(int(match.group(1)))} to {cardinal(int(match.group(2)))}")
    sub(_PRICE, lambda match: _price(match, match.group(3), match.group(5), match.group(6), match.group(7), british))
    sub(
        _PRICE_CODE,
        lambda match: _price(match, match.group(1), match.group(2), match.group(3), match.group(4), british),
    )
    sub(
        _PRICE_BEHIND,
        lambda match: _price(match, match.group(4), match.group(1), match.group(2), match.group(3), british),
    )
    sub(_A_PERIOD, lambda match: f" {match.group(1)} ")
    decades(sub)
    sub(_DURATION, _duration)
    sub(_PENSION, _pension)
    sub(_MILLIONS, lambda match: [match.span(1), " billion" if match.group(2) else " million"])
    sub(_INCHES, _inches)
    sub(_CENTS, lambda match: amount(match.group(1)) + (" cent" if match.group(1) == "1" else " cents"))
    sub(_FEET, lambda match: f"{cardinal(int(match.group(1)))} foot {cardinal(int(match.group(2)))}")
    sub(_UNIT, _unit)
    sub(_DEGREES, _degrees)
    sub(_VULGAR, _vulgar)
    sub(_FRACTION, _fraction)
    sub(_PER, lambda match: " per " + _PER_WORDS.get(match.group(1), match.group(1)))
    sub(_UNKNOWN, _unknown)
    sub(_BY, lambda match: [match.span(1), " by "])
    sub(_TIMES, " times")
    sub(_PERCENT, " percent")
    sub(_PER_MILLE, " per mille")
    sub(
        _ORDINAL,
        lambda match: ordinal(int(match.group(1).replace(",", "")), british) if len(match.group(1)) < 16 else None,
    )
    sub(_VERSION, _version)
    sub(_V, "version ")
    sub(_HASH, "number ")
    sub(_SCALED, lambda match: [match.span(1), " " + _SCALES[match.group(2)]])
    sub(_MIXED, _mixed)
    sub(_POWER, lambda match: _power(match.group(1)))
    sub(_SUPERSCRIPT, lambda match: _power(match.group().translate(_SUPERSCRIPTS)))
    sub(_MINUS, "minus ")
    sub(_JOINED, " ")
    sub(_NUMBER, lambda match: _number(match, british))


def _pension(match: Match) -> Pieces:
    """``401(k)`` by its digits, as everybody says it."""
    figure, letter = match.group(1), (match.group(2) or match.group(3)).upper()
    said = {"401": "four oh one", "403": "four oh three", "457": "four fifty-seven", "529": "five twenty-nine"}[figure]
    return f"{said} {letter}" if match.group(2) or figure + letter in ("401K", "403B") else None


def _range(match: Match) -> Pieces:
    """A hyphen or dash between two figures: "to" if they rise or are a score, between blanks a minus, else nothing."""
    start, end = match.span(1)
    left, right = match.group(1), re.match(r"[$€£¥₹]? ?([\d,.]*\d)", match.string[match.end() :])
    if left[-1] in ".,:" or right is None:
        return None
    if _value(left) >= _value(right.group(1)):
        if match.group(2) == " - ":
            return [(start, end), " minus "]
        if _value(left) >= 100:
            return [(start, end), " "]
    symbol = left[0] if left[0] in "$€£¥₹" else ""
    if symbol and not match.group(3):
        # "$5-10" is "five to ten dollars"
        return [(start + 1, end), " to " + symbol]
    return [(start, end), " to "]


def _value(text: str) -> float:
    figure = re.search(r"\d[\d,]*(?:\.\d+)?", text)
    return float(figure.group().replace(",", "")) if figure else 0.0


def _price(
    match: Match, symbol: str, whole: str | None, fraction: str | None, scale: str | None, british: bool
) -> Pieces:
    one, many, cent, cents = _CURRENCIES[symbol]
    if _EACH.match(match.string, match.end()) and _ARTICLE.search(
        match.string[max(match.start() - 3, 0) : match.start()]
    ):
        many, cents = one, cent
    whole = whole or "0"
    if whole.isdigit() and 6 < len(whole) < 16:
        whole = f"{int(whole):,}"
    nation = ""
    if match.re is _PRICE:
        nation = _NATIONS.get(match.group(2) or "", "")
    minus = "minus " if match.re is _PRICE and (match.group(1) or match.group(4)) else ""
    decimals = (fraction or "")[1:]
    number = whole + ("." + decimals if decimals else "")
    if scale:
        return f"{minus}{amount(number, british)} {_SCALES.get(scale, scale)} {nation}{many}"
    if len(decimals) != 2 or not cent:
        singular = whole == "1" and not decimals
        return f"{minus}{amount(number, british)} {nation}{one if singular else many}"
    minor = int(decimals)
    parts: list[str] = []
    if whole.strip("0,") or not minor:
        parts.append(f"{amount(whole, british)} {nation}{one if whole == '1' else many}")
    if minor:
        parts.append(f"{cardinal(minor)} {cent if minor == 1 else cents}")
    return minus + " and ".join(parts)


def _unit(match: Match) -> Pieces:
    one, many = UNITS[match.group(3)]
    joined = "-" in match.group(2)
    mixed = match.string[max(match.start() - 2, 0) : match.start()].strip().isdigit()
    single = joined or match.group(1) == "1" or match.group(1) in _HALVES or ("/" in match.group(1) and not mixed)
    of = " of a " if match.group(1) in "½¼¾⅓⅔" and match.group(3) not in ("tsp", "tbsp") else " "
    return [match.span(1), of + (one if single else many)]


def _inches(match: Match) -> Pieces:
    """``12" pizza``; behind a quotation's beginning the mark is its end."""
    if match.group(2):
        return [match.span(1), " by ", match.span(2), " inches"]
    if match.string.count('"', 0, match.start()) % 2 or not _EACH.match(match.string, match.end()):
        return None
    return [match.span(1), " inch"]


def _duration(match: Match) -> Pieces:
    found = [group for group in match.groups() if group]
    if [unit[0] for unit in found[1::2]] != sorted({unit[0] for unit in found[1::2]}, key="dhms".index):
        return None
    parts = zip(found[::2], found[1::2], strict=True)
    return " ".join(f"{cardinal(int(n))} {_DURATIONS[unit[0]]}{'' if n == '1' else 's'}" for n, unit in parts)


def _degrees(match: Match) -> Pieces:
    scale = match.group(1) or {"℃": "C", "℉": "F"}.get(match.group(), "")
    return " degrees" + {"C": " Celsius", "F": " Fahrenheit", "K": " Kelvin", "": ""}[scale]


def _vulgar(match: Match) -> Pieces:
    top, bottom = _HALVES[match.group(2)]
    if match.group(1):
        return f"{amount(match.group(1))} and {_parts(top, bottom, article=True)}"
    return _parts(top, bottom)


def _rating(match: Match) -> Pieces:
    """``4/5`` beside a word that counts, or of ten or a hundred, is "four out of five"."""
    top, bottom = match.group(2), match.group(3)
    if not (match.group(1) or match.group(4) or "." in top):
        tenth = bottom in ("10", "100") and not _PART_OF.match(match.string, match.end())
        if not tenth or float(top) >= float(bottom) or top[0] == "0":
            return None
    if match.group(1) and not match.group(4) and _MEASURED.match(match.string, match.end()):
        return None
    pieces: list[str | Span] = [match.span(1)] if match.group(1) else []
    pieces += [f"{amount(top)} out of {amount(bottom)}"]
    return [*pieces, match.span(4)] if match.group(4) else pieces


def _mixed_fraction(match: Match) -> Pieces:
    top, bottom = int(match.group(2)), int(match.group(3))
    if not 0 < top < bottom or bottom not in _PARTS:
        return None
    return f"{amount(match.group(1))} and {_parts(top, bottom, article=True)}"


def _fraction(match: Match) -> Pieces:
    top, bottom = int(match.group(2)), int(match.group(3))
    if match.group(1) is None and (top, bottom) in ((24, 7), (9, 11)):
        return f"{cardinal(top)} {cardinal(bottom)}"
    if match.group(1) is None and top == bottom:
        return f"{cardinal(top)} {cardinal(bottom)}"
    if 0 < top < bottom and bottom in _PARTS:
        if match.group(1):
            return f"{amount(match.group(1))} and {_parts(top, bottom, article=True)}"
        return _parts(top, bottom)
    whole = f"{amount(match.group(1))} " if match.group(1) else ""
    return f"{whole}{amount(match.group(2))} {'over' if top > bottom else 'out of'} {amount(match.group(3))}"


def _unknown(match: Match) -> Pieces:
    if match.group(2)[0] == " " and not (match.group(3) or _TERM.match(match.string, match.end())):
        return None  # "ten times - really"
    sign = " minus " if match.group(2).strip() == "-" else match.span(2)
    return [" ", match.span(1), sign]


def _parts(top: int, bottom: int, *, article: bool = False) -> str:
    name = {2: "half", 4: "quarter"}.get(bottom) or ordinal(bottom)
    if top == 1:
        return f"{'a' if article else 'one'} {name}"
    return f"{cardinal(top)} {'halves' if bottom == 2 else name + 's'}"


def _version(match: Match) -> Pieces:
    said = " point ".join(amount(part) for part in match.group(2).split("."))
    parts = match.group(2).split(".")
    if len(parts) == 4 and all(len(part) <= 3 for part in parts):
        said = " dot ".join(amount(part) for part in parts)  # an address on the net
    return ("version " if match.group(1) else "") + said


def _mixed(match: Match) -> Pieces:
    """Capitals and figures in one: ``MP3`` "M P three", ``X7K9-22`` character by character."""
    token = match.group()
    runs = re.findall(r"[A-Z]+|\d+", token)
    if token.replace("-", "").isdigit():
        return None
    if len(runs) > 3 or (len(runs) == 3 and len(token) > 4):
        return " ".join(digits(char) if char.isdigit() else char for char in token if char != "-")
    parts: list[str] = []
    for run in runs:
        if run.isdigit():
            parts.append(
                digits(run)
                if len(run) > 4 or (run[0] == "0" and len(run) > 1)
                else year(int(run))
                if len(run) == 4
                else cardinal(int(run))
            )
        else:
            parts.append(run if len(run) > 3 and is_word(run) else " ".join(run))
    return " ".join(parts)


def _power(exponent: str) -> str:
    named = {"2": " squared", "3": " cubed"}.get(exponent)
    return named or f" to the power of {amount(exponent) if exponent.isdigit() else exponent}"


def _number(match: Match, british: bool) -> Pieces:
    """What is left: years where four figures without a comma look like one, else the number; blanks between letters and it."""
    token, text = match.group(), match.string
    before, behind = text[match.start() - 1 : match.start()], text[match.end() : match.end() + 1]
    if len(token) == 4 and token.isdigit() and "1100" <= token <= "2099":
        counted = token < "1900" and token[2:] != "00" and COUNTED.match(text, match.end()) is not None
        counted = counted and _YEAR_BEFORE.search(text[max(match.start() - 16, 0) : match.start()]) is None
        said = cardinal(int(token), british) if counted else year(int(token))
    elif len(token) > 5 and token.isdigit() and not token.endswith("000"):
        word = COUNTED.match(text, match.end())
        counted = len(token) < 16 and word is not None and word.group(1) in COUNTS
        said = cardinal(int(token), british) if counted else digits(token)
    else:
        said = amount(token, british)
    return f"{' ' if before.isalnum() else ''}{said}{' ' if behind.isalnum() else ''}"
