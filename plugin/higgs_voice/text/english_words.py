"""English words and what stands for them: abbreviations, titles, weekdays, numerals, units; see `english`."""

from __future__ import annotations

import re
from typing import Final

from .abbreviations import CALENDAR, STARTERS, words
from .markup import KEPT
from .numbers import cardinal, ordinal
from .rewriting import Pieces, Sub

Match = re.Match[str]
_TITLES: Final = {
    "Mr": "Mister", "Mrs": "Missus", "Ms": "Miz", "Dr": "Doctor", "Prof": "Professor", "Rev": "Reverend", "Gen": "General",
    "Col": "Colonel", "Capt": "Captain", "Lt": "Lieutenant", "Sgt": "Sergeant", "Sen": "Senator", "Rep": "Representative",
    "Gov": "Governor", "Pres": "President", "Hon": "Honorable", "Mt": "Mount", "Ft": "Fort", "Maj": "Major",
}  # fmt: skip
_TITLE: Final = re.compile(rf"(?<![\w.])({'|'.join(_TITLES)})\.?(?=\s[A-Z{KEPT}]|\s(?:and|&) (?:Mrs?|Ms|Dr)\b)")
_SHORT: Final = {
    "e.g": "for example", "i.e": "that is", "etc": "et cetera", "vs": "versus", "approx": "approximately", "dept": "department",
    "est": "estimated", "incl": "including", "excl": "excluding", "jr": "junior", "sr": "senior", "inc": "incorporated", "ltd": "limited",
    "corp": "corporation", "ave": "avenue", "blvd": "boulevard", "rd": "road", "hwy": "highway", "bros": "brothers", "govt": "government",
    "misc": "miscellaneous", "a.k.a": "also known as", "w.r.t": "with respect to", "et al": "and others",
}  # fmt: skip
_SHORT_WORD: Final = re.compile(
    rf"(?<![\w.@-])({'|'.join(re.escape(word) for word in _SHORT)})\.(?![\w])(?:,(?= ))?", re.IGNORECASE
)
_STREET: Final = re.compile(r"(?<![\w.])(St|Dr)\.(?!\w)")
_STREET_NUMBER: Final = re.compile(r"\d{1,3}(?:st|nd|rd|th)\Z")
_NUMBERED: Final = re.compile(
    r"(?<![\w.])(?:([Nn]o|[Nn]os|[Vv]ol|[Ff]ig|[Cc]h|[Ss]ec|[Aa]rt|[Ee]xt|[Pp]p?|[Ff]l)\. ?(?=#?\d)|"
    r"([Aa]pt(?=\.)|[Rr]m(?=\.)|[Ss]te(?=\.)|[Bb]ldg|Apt|Rm|Ste)(?:\. ?| )(?=#?(?:\d|[A-Z](?!\w))))"
)
_NUMBERED_WORDS: Final = {
    "no": "number ", "nos": "numbers ", "vol": "volume ", "fig": "figure ", "ch": "chapter ", "sec": "section ", "art": "article ",
    "p": "page ", "pp": "pages ", "ext": "extension ", "apt": "apartment ", "rm": "room ", "ste": "suite ", "bldg": "building ", "fl": "floor ",
}  # fmt: skip
_WITH: Final = re.compile(r"(?<![\w/])w/(?:(o)(?!\w)|(?=[\s\w]))")
_WORLD_WAR: Final = re.compile(r"(?<!\w)WWI(I)?(?!\w)")
_WEEKDAY: Final = (
    r"(Mon(?:day)?|Tue(?:s(?:day)?)?|Wed(?:nesday)?|Thu(?:r(?:s(?:day)?)?)?|Fri(?:day)?|Sat(?:urday)?|Sun(?:day)?)"
)
DAY_NAME: Final = r"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)(?:s|rs?|day|nesday|rsday|sday|urday)?"
_WEEKDAYS: Final = re.compile(
    rf"(?<!\w){_WEEKDAY}\.?(?: ?[-–—] ?{_WEEKDAY}(?!\w)\.?|(?=,? (?:\d|(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec))))"
)
_WEEKDAY_LIST: Final = re.compile(
    rf"(?<!\w)(?:{DAY_NAME}\.?(?:, (?:and |or )?| and | or | ?[&/] ?)){{1,6}}{DAY_NAME}\b\.?|"
    rf"(?:(?<=\b[Oo]n )|(?<=\b[Cc]losed )|(?<=\b[Oo]pen )){DAY_NAME}\b\.?(?= (?:at|or|and|from|between|through|to|in)\b|[,.;:!?]|\Z)"
)
_MONTH_BEHIND: Final = re.compile(r",? (?:[a-z\d]|(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec))")
_SHORT_WEEKDAY: Final = re.compile(r"\b(Mon|Tues?|Wed|Thu(?:rs?)?|Fri|Sat|Sun)\b(\.?)")
_WEEKDAY_NAMES: Final = {
    "Mo": "Monday", "Tu": "Tuesday", "We": "Wednesday", "Th": "Thursday", "Fr": "Friday", "Sa": "Saturday", "Su": "Sunday",
}  # fmt: skip
_AND_OR: Final = re.compile(r"(?<!\w)and/or(?!\w)")
_DOTTED: Final = re.compile(
    r"(?<![\w.])(?:[A-Za-z]\.){2,8}(?:[A-Za-z](?!\w))?|(?<![\w.])(?:Ph\.D|M\.Sc|B\.Sc)\.?(?!\w)"
)
_INITIAL: Final = re.compile(r"(?<![\w.'])[A-Z]\.(?=(?: ?[A-Z]\.){0,4} ?[A-Z][a-z'])")
_ROMAN: Final = r"(?:X{0,3}(?:IX|IV|V?I{0,3}))(?![\w']|\.\w)"
_LONG_ROMAN: Final = r"(?:(?:XL|XC|LX{0,3}|X{0,3})(?:IX|IV|V?I{0,3}))(?<!\bL)(?![\w']|\.\w)"
_NUMERAL_AFTER: Final = re.compile(
    rf"(?<!\w)(Chapter|Part|Section|Volume|Vol|Act|Scene|Book|Phase|Type|Level|Stage|World War|Article|Appendix|Super Bowl|"
    rf"Episode|Grade|Figure|Table|Mark|Title|Rocky|Apollo|Session|Lesson|Unit|Step|Tier|Class|Division) ({_LONG_ROMAN})"
)
_REGNAL: Final = re.compile(
    r"(?<!\w)(Henry|Louis|George|Edward|Charles|James|William|Richard|John Paul|Pius|Leo|Benedict|Elizabeth|Mary|Catherine|"
    r"Alexander|Frederick|Nicholas|Philip|Napoleon|Ramesses|Gustav|Christian|Haakon|Juan Carlos|Felipe|Alfonso|Gregory|Innocent|"
    rf"Clement|Urban|Paul|John|Peter|Ivan|Otto|Wilhelm|Friedrich|Franz Joseph|Victor Emmanuel) ({_ROMAN})"
)
_ROMAN_VALUES: Final = {"I": 1, "V": 5, "X": 10, "L": 50, "C": 100}
_LEADING_WORD: Final = re.compile(r"[^\W\d_]+")
MONTHS: Final = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December",
)  # fmt: skip
MONTH_OF: Final = {name[:n]: name for name in MONTHS for n in (3, len(name))} | {"Sept": "September"}
MONTH: Final = (
    r"(?:(Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sept?|Oct|Nov|Dec)\b(?:\.(?=,? [a-z\d]))?|(" + "|".join(MONTHS) + r"))"
)
_MONTHS_TO: Final = re.compile(rf"(?<!\w){MONTH}\.? ?[-–—] ?{MONTH}(?!\w)")
UNITS: Final = {
    "km/h": ("kilometer per hour", "kilometers per hour"), "kmh": ("kilometer per hour", "kilometers per hour"),
    "kph": ("kilometer per hour", "kilometers per hour"), "mph": ("mile per hour", "miles per hour"), "GB/s": ("gigabyte per second", "gigabytes per second"), "MB/s": ("megabyte per second", "megabytes per second"),
    "kB/s": ("kilobyte per second", "kilobytes per second"), "KB/s": ("kilobyte per second", "kilobytes per second"), "m/s": ("meter per second", "meters per second"),
    "km": ("kilometer", "kilometers"), "cm": ("centimeter", "centimeters"), "mm": ("millimeter", "millimeters"), "nm": ("nanometer", "nanometers"),
    "µm": ("micrometer", "micrometers"), "m": ("meter", "meters"), "mi": ("mile", "miles"), "ft": ("foot", "feet"), "yd": ("yard", "yards"),
    "kg": ("kilogram", "kilograms"), "mg": ("milligram", "milligrams"), "g": ("gram", "grams"), "lb": ("pound", "pounds"), "lbs": ("pound", "pounds"),
    "oz": ("ounce", "ounces"), "L": ("liter", "liters"), "l": ("liter", "liters"), "ml": ("milliliter", "milliliters"), "mL": ("milliliter", "milliliters"),
    "KB": ("kilobyte", "kilobytes"), "kB": ("kilobyte", "kilobytes"), "MB": ("megabyte", "megabytes"), "GB": ("gigabyte", "gigabytes"),
    "TB": ("terabyte", "terabytes"), "GiB": ("gibibyte", "gibibytes"), "MiB": ("mebibyte", "mebibytes"), "Kbps": ("kilobit per second", "kilobits per second"),
    "kbps": ("kilobit per second", "kilobits per second"), "Mbps": ("megabit per second", "megabits per second"), "Gbps": ("gigabit per second", "gigabits per second"),
    "Hz": ("hertz", "hertz"), "kHz": ("kilohertz", "kilohertz"), "MHz": ("megahertz", "megahertz"), "GHz": ("gigahertz", "gigahertz"),
    "kWh": ("kilowatt hour", "kilowatt hours"), "kW": ("kilowatt", "kilowatts"), "MW": ("megawatt", "megawatts"), "W": ("watt", "watts"), "V": ("volt", "volts"),
    "mAh": ("milliamp hour", "milliamp hours"), "dB": ("decibel", "decibels"), "ms": ("millisecond", "milliseconds"), "s": ("second", "seconds"),
    "sec": ("second", "seconds"), "secs": ("second", "seconds"), "min": ("minute", "minutes"), "mins": ("minute", "minutes"), "h": ("hour", "hours"),
    "hr": ("hour", "hours"), "hrs": ("hour", "hours"), "rpm": ("R P M", "R P M"), "bpm": ("beat per minute", "beats per minute"), "fps": ("frame per second", "frames per second"),
    "px": ("pixel", "pixels"), "ha": ("hectare", "hectares"), "cal": ("calorie", "calories"), "kcal": ("kilocalorie", "kilocalories"),
    "sq ft": ("square foot", "square feet"), "sq. ft": ("square foot", "square feet"), "ft²": ("square foot", "square feet"), "m²": ("square meter", "square meters"),
    "m³": ("cubic meter", "cubic meters"), "km²": ("square kilometer", "square kilometers"), "cm²": ("square centimeter", "square centimeters"),
    "m2": ("square meter", "square meters"), "m3": ("cubic meter", "cubic meters"), "km2": ("square kilometer", "square kilometers"),
    "mpg": ("mile per gallon", "miles per gallon"), "psi": ("P S I", "P S I"), "gal": ("gallon", "gallons"), "tsp": ("teaspoon", "teaspoons"), "tbsp": ("tablespoon", "tablespoons"), "mcg": ("microgram", "micrograms"),
    "µg": ("microgram", "micrograms"), "mg/mL": ("milligram per milliliter", "milligrams per milliliter"), "mg/ml": ("milligram per milliliter", "milligrams per milliliter"),
    "mg/dL": ("milligram per deciliter", "milligrams per deciliter"), "yr": ("year", "years"), "yrs": ("year", "years"), "mo": ("month", "months"),
    "mos": ("month", "months"), "wk": ("week", "weeks"), "wks": ("week", "weeks"), "KG": ("kilogram", "kilograms"), "Kg": ("kilogram", "kilograms"),
    "KM": ("kilometer", "kilometers"), "mbps": ("megabit per second", "megabits per second"), "gbps": ("gigabit per second", "gigabits per second"), "pt": ("point", "points"),
}  # fmt: skip
COUNTED: Final = re.compile(r" ([a-z]{3,20}s|feet|people)\b")
COUNTS: Final = frozenset(many.split()[0] for _, many in UNITS.values()) | words("""
    people users customers dollars euros residents inhabitants items steps words tokens rows records views downloads
""")


def abbreviations(sub: Sub) -> None:
    sub(_NUMBERED, lambda match: _NUMBERED_WORDS[(match.group(1) or match.group(2)).lower()])
    sub(_STREET, _street)
    sub(_TITLE, lambda match: _TITLES[match.group(1)])
    sub(_SHORT_WORD, _short)
    sub(_AND_OR, "and or")
    sub(_MONTHS_TO, _months_to)
    sub(_WORLD_WAR, lambda match: "World War " + ("two" if match.group(1) else "one"))
    sub(_WEEKDAYS, _weekdays)
    sub(_WEEKDAY_LIST, _weekday_list)
    sub(_WITH, lambda match: "without" if match.group(1) else "with ")
    sub(_DOTTED, _dotted)
    sub(_NUMERAL_AFTER, lambda match: _numeral(match, regnal=False))
    sub(_REGNAL, lambda match: _numeral(match, regnal=True))
    sub(_INITIAL, _initial)


def _weekday_list(match: Match) -> Pieces:
    said = _SHORT_WEEKDAY.sub(lambda day: _WEEKDAY_NAMES[day.group(1)[:2]], match.group()).rstrip(".")
    said = ", ".join(day.strip() for day in said.split("/"))
    return said + _day_stop(match)


def _day_stop(match: Match) -> str:
    return "." if match.group().endswith(".") and _MONTH_BEHIND.match(match.string, match.end()) is None else ""


def _weekdays(match: Match) -> Pieces:
    first, last = _WEEKDAY_NAMES[match.group(1)[:2]], match.group(2)
    return f"{first} to {_WEEKDAY_NAMES[last[:2]]}" + _day_stop(match) if last else first


def ends_sentence(match: Match, *, loose: bool = False) -> bool:
    """Whether the stop that a match ends with is a sentence's end, too.

    Behind most abbreviations it is before a word that opens sentences, behind some (``loose``: a time, "etc.") before any
    capital but a day's or a time zone's. The chunker decides by the same.
    """
    rest = match.string[match.end() : match.end() + 40].lstrip()
    if not rest or (rest[0] in "\"'(" and match.string[match.end()] == " "):
        return True
    word = _LEADING_WORD.match(rest)
    if word is None or not rest[0].isupper():
        return False
    return word.group() not in CALENDAR if loose else word.group() in STARTERS


def _street(match: Match) -> Pieces:
    text, end = match.string, match.end()
    following = re.match(r" ([A-Z]\w*)", text[end : end + 24])
    before = re.search(r"(?:(\w+) )?(\w+) \Z", text[max(match.start() - 40, 0) : match.start()])
    named = before is not None and (
        (before.group(2)[:1].isupper() and before.group(2) not in STARTERS)
        or _STREET_NUMBER.match(before.group(2)) is not None
    )
    if following is not None and not (named and following.group(1) in STARTERS):
        numbered = before is not None and (before.group(1) or before.group(2))[:1].isdigit()
        if match.group(1) == "St" and not (named and numbered):
            return "Saint"
        return "Doctor" if match.group(1) == "Dr" else "Street"
    word = "Street" if match.group(1) == "St" else "Drive"
    return word + ("." if ends_sentence(match) else "") if named else None


def _short(match: Match) -> Pieces:
    if match.group(1) == "EST":  # the time zone
        return None
    word = _SHORT[match.group(1).lower()]
    if match.group(1)[:1].isupper() and match.group(1).lower() in (
        "inc",
        "ltd",
        "corp",
        "ave",
        "blvd",
        "rd",
        "jr",
        "sr",
    ):
        word = word.capitalize()
    if match.group().endswith(","):
        return word if match.group(1).lower() in ("e.g", "i.e") else word + ","
    ends = match.group(1).lower() not in ("e.g", "i.e", "vs", "approx", "a.k.a", "incl", "excl") and ends_sentence(
        match, loose=match.group(1).lower() == "etc"
    )
    return word + ("." if ends else "")


def _initial(match: Match) -> Pieces:
    word = re.match(r" ([A-Za-z]+)", match.string[match.end() : match.end() + 24])
    return None if word is not None and word.group(1) in STARTERS else match.group()[0] + ("" if word else " ")


def _dotted(match: Match) -> Pieces:
    """``U.S.`` as "U S"; small letters are spelled, too (``a.m.`` is a time's and comes later)."""
    token = match.group()
    if token.lower().rstrip(".") in ("a.m", "p.m"):
        return None
    letters = " ".join(char.upper() for char in token if char.isalpha())
    rest = match.string[match.end() :].lstrip()
    word = re.match(r"[A-Za-z]+", rest[:24])
    ends = token.endswith(".") and (not rest or (word is not None and word.group() in STARTERS))
    return letters + ("." if ends else "")


def _numeral(match: Match, *, regnal: bool) -> Pieces:
    roman = match.group(2)
    # "I" alone is the pronoun more often than the number, and so is "John V" a name
    if (
        not roman
        or (roman == "I" and (regnal or not _closes(match)))
        or (regnal and roman in ("V", "X") and match.group(1) in ("John", "Mary", "Paul"))
    ):
        return None
    values = [_ROMAN_VALUES[char] for char in roman]
    number = sum(-a if a < b else a for a, b in zip(values, [*values[1:], 0], strict=True))
    return [match.span(1), f" the {ordinal(number)}" if regnal else f" {cardinal(number)}"]


def _closes(match: Match) -> bool:
    return not match.string[match.end() : match.end() + 2].strip(" .,:;)") or match.string[match.end()] in ".,:;)"


def _months_to(match: Match) -> Pieces:
    first, last = (MONTH_OF[match.group(i) or match.group(i + 1)] for i in (1, 3))
    return f"{first} to {last}"


def plural(word: str) -> str:
    return word[:-1] + "ies" if word.endswith("y") else word + "s"


def is_word(capitals: str) -> bool:
    """Whether capitals can be read as a word: they have a vowel."""
    return any(char in "AEIOUY" for char in capitals)
