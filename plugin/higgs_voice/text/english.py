"""Written English as it is said: numbers, prices, times, dates, addresses, units, abbreviations, signs.

The rules run in order, each over the whole text; what an earlier one has put into words no later one finds again. Where
writing is ambiguous the choice is stated beside the rule; dates in figures put the month first, in British English the day.
"""

from __future__ import annotations

import re
from typing import Final

from .abbreviations import CALENDAR, STARTERS, words
from .markup import KEPT
from .numbers import amount, cardinal, digits, ordinal, year
from .rewriting import Pieces, Rewriting, Span, Sub

_Match = re.Match[str]
_W: Final = rf"\w{KEPT}"
_NUM: Final = r"(?:\d{1,3}(?:,\d{3}){1,5}(?!\d)|\d+)"
_DEC: Final = rf"{_NUM}(?:\.\d+)?"


def say(rewriting: Rewriting, *, british: bool = False, before: str = "") -> None:
    """Put a text without markup into words; ``before`` is the end of what was written before it."""
    sub = rewriting.sub
    if any(char in rewriting.text for char in "@./#"):
        _addresses(sub)
    _abbreviations(sub)
    if ")" in rewriting.text:
        sub(_LISTED, _listed)
    if "$" in rewriting.text:
        sub(_FORMULA, lambda match: [match.span(1)])
    if "#" in rewriting.text:
        sub(_POUND, " pound")
        sub(_NUMBER_OF, "number")
    if any(char.isnumeric() for char in rewriting.text):
        _figures(sub, british, before)
    _signs(sub)
    _capitals(sub)


# Addresses

_EMAIL: Final = re.compile(
    rf"(?<![{_W}.+-])[{_W}.+-]{{1,64}}@(?:[{_W}-]{{1,63}}\.){{1,6}}[A-Za-z{KEPT}]{{2,24}}(?![{_W}])"
)
_URL: Final = re.compile(rf"(?<![{_W}])(?:[A-Za-z][A-Za-z0-9+]{{1,9}}://|www\.)[^\s<>\"'()\[\]{{}}]{{1,2000}}")
_ENDINGS: Final = (
    "com|org|net|edu|gov|mil|int|info|io|ai|app|dev|co|me|tv|uk|us|eu|de|fr|es|it|nl|ch|at|be|pl|ru|cn|jp|kr|in|br|au|ca|nz|"
    "biz|xyz|tech|online|cloud|store|shop|blog|news|live"
)
_DOMAIN: Final = re.compile(
    rf"(?<![{_W}.@/-])(?:[A-Za-z0-9{KEPT}-]{{1,63}}\.){{1,4}}(?:{_ENDINGS})(?:/[^\s<>\"'()\[\]]{{0,200}})?(?![{_W}])"
)
_FILES: Final = {
    "py": "pie", "js": "J S", "ts": "T S", "tsx": "T S X", "jsx": "J S X", "md": "M D", "txt": "text", "pdf": "P D F", "csv": "C S V",
    "json": "jason", "yaml": "yammel", "yml": "yammel", "toml": "tommel", "html": "H T M L", "css": "C S S", "xml": "X M L",
    "exe": "E X E", "png": "P N G", "jpg": "jay peg", "jpeg": "jay peg", "gif": "gif", "svg": "S V G", "mp3": "M P three", "mp4": "M P four",
    "wav": "wav", "doc": "doc", "docx": "doc X", "xls": "X L S", "xlsx": "X L S X", "zip": "zip", "sh": "S H", "cpp": "C P P",
    "rs": "R S", "go": "go", "java": "java", "log": "log", "ini": "ini", "sql": "S Q L", "ipynb": "I pie N B",
}  # fmt: skip
_FILE: Final = re.compile(
    rf"(?<![{_W}.@/-])([{_W}-]{{1,80}}(?:\.[{_W}-]{{1,40}}){{0,3}})\.({'|'.join(_FILES)})(?![{_W}])"
)
_HANDLE: Final = re.compile(rf"(?<![{_W}.@])@(?=[A-Za-z{KEPT}])")
_NUMBER_TAG: Final = re.compile(
    rf"(\bnumber )?(?<![{_W}&#])#(?=[A-Z][A-Z0-9]{{0,24}}(?:\d[A-Z]|-[A-Z0-9-]{{0,24}}\d))(?=[A-Z0-9-]{{2,60}}(?![{_W}]))"
)
_ORDER_TAG: Final = re.compile(
    rf"(?<![{_W}])((?:order|ticket|invoice|case|issue|booking|reservation|reference|ref|confirmation|tracking|claim|id):? \(?)#"
    rf"(?=[A-Za-z{KEPT}])",
    re.IGNORECASE,
)
_TAG: Final = re.compile(rf"(?<![{_W}&#])#(?=[A-Za-z{KEPT}])")
_DOT_NAME: Final = re.compile(r"(?<![\w.])\.(?=NET\b|[a-z]{2,16}(?![\w.]))")
_SHARP: Final = re.compile(r"(?<![\w])([CFcf])#(?!\w)")
_ADDRESS_SIGN: Final = re.compile(r"[.@_/+&=%~:-]")
_SIGN_NAMES: Final = {
    ".": " dot ", "@": " at ", "_": " underscore ", "/": " slash ", "+": " plus ", "&": " and ", "=": " equals ", "%": " percent ",
    "~": " tilde ", ":": " colon ", "-": " dash ",
}  # fmt: skip
_EDGE_MARKS: Final = ".,;:!?*_…"


def _addresses(sub: Sub) -> None:
    sub(_EMAIL, lambda match: _spell_address(match, match.start(), match.end()))
    sub(_URL, _url)
    sub(_DOMAIN, _domain)
    sub(_FILE, lambda match: [*_spell_address(match, *match.span(1)), " dot " + _FILES[match.group(2)]])
    sub(_SHARP, lambda match: [match.span(1), " sharp"])
    sub(_NUMBER_TAG, lambda match: [match.span(1), ""] if match.group(1) else "number ")
    sub(_ORDER_TAG, lambda match: [match.span(1), "number "])
    sub(_TAG, "hashtag ")
    sub(_DOT_NAME, "dot ")
    sub(_HANDLE, "at ")


def _spell_address(match: _Match, start: int, end: int) -> list[str | Span]:
    """The characters from start to end of the text, signs by their names."""
    pieces: list[str | Span] = []
    at = start
    for sign in _ADDRESS_SIGN.finditer(match.string, start, end):
        pieces += [(at, sign.start()), _SIGN_NAMES[sign.group()]]
        at = sign.end()
    pieces.append((at, end))
    return pieces


def _url(match: _Match) -> Pieces:
    """Host and path without scheme, ``www``, query and fragment; a path of more than 40 characters is left out."""
    text, start = match.string, match.start()
    end = start + len(match.group().rstrip(_EDGE_MARKS))
    host = text.find("://", start, end)
    first = start if host < 0 else host + 3
    if text.startswith("www.", first):
        first += 4
    path = _first_of(text, "/?#", first, end)
    last = _first_of(text, "?#", path, end)
    if last - path > 40:
        last = path
    if last > path and text[last - 1] == "/":
        last -= 1
    if first >= last:
        return " "
    return [*_spell_address(match, first, last), (end, match.end())]


def _first_of(text: str, chars: str, start: int, end: int) -> int:
    found = [i for i in (text.find(char, start, end) for char in chars) if i >= 0]
    return min(found, default=end)


def _domain(match: _Match) -> Pieces:
    body = match.group()
    # "end.In" with a forgotten blank is no address
    if body[body.rfind(".") + 1 :] in STARTERS or all(not char.isalpha() for char in body.split(".")[0]):
        return None
    end = match.start() + len(body.rstrip(_EDGE_MARKS + "/"))
    return [*_spell_address(match, match.start(), end), (end, match.end())]


# Abbreviations

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
_NUMBERED: Final = re.compile(r"(?<![\w.])([Nn]o|[Nn]os|[Vv]ol|[Ff]ig|[Cc]h|[Ss]ec|[Aa]rt|[Ee]xt|[Pp]p?)\. ?(?=#?\d)")
_NUMBERED_WORDS: Final = {
    "no": "number ", "nos": "numbers ", "vol": "volume ", "fig": "figure ", "ch": "chapter ", "sec": "section ", "art": "article ",
    "p": "page ", "pp": "pages ", "ext": "extension ",
}  # fmt: skip
_WITH: Final = re.compile(r"(?<![\w/])w/(?:(o)(?!\w)|(?=[\s\w]))")
_WORLD_WAR: Final = re.compile(r"(?<!\w)WWI(I)?(?!\w)")
_WEEKDAY: Final = (
    r"(Mon(?:day)?|Tue(?:s(?:day)?)?|Wed(?:nesday)?|Thu(?:r(?:s(?:day)?)?)?|Fri(?:day)?|Sat(?:urday)?|Sun(?:day)?)"
)
_DAY_NAME: Final = r"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)(?:s|rs?|day|nesday|rsday|sday|urday)?"
_WEEKDAYS: Final = re.compile(
    rf"(?<!\w){_WEEKDAY}\.?(?: ?[-–—] ?{_WEEKDAY}(?!\w)\.?|(?=,? (?:\d|(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec))))"
)
_WEEKDAY_LIST: Final = re.compile(
    rf"(?<!\w)(?:{_DAY_NAME}\.?(?:, (?:and |or )?| and | or | ?[&/] ?)){{1,6}}{_DAY_NAME}\b\.?|"
    rf"(?<=\b[Oo]n ){_DAY_NAME}\b\.?(?= (?:at|or|and|from|between|through|to|in)\b|[,.;:!?]|\Z)"
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
_NUMERAL_AFTER: Final = re.compile(
    rf"(?<!\w)(Chapter|Part|Section|Volume|Vol|Act|Scene|Book|Phase|Type|Level|Stage|World War|Article|Appendix|Super Bowl|"
    rf"Episode|Grade|Figure|Table|Mark|Title|Rocky|Apollo|Session|Lesson|Unit|Step|Tier|Class|Division) ({_ROMAN})"
)
_REGNAL: Final = re.compile(
    r"(?<!\w)(Henry|Louis|George|Edward|Charles|James|William|Richard|John Paul|Pius|Leo|Benedict|Elizabeth|Mary|Catherine|"
    r"Alexander|Frederick|Nicholas|Philip|Napoleon|Ramesses|Gustav|Christian|Haakon|Juan Carlos|Felipe|Alfonso|Gregory|Innocent|"
    rf"Clement|Urban|Paul|John|Peter|Ivan|Otto|Wilhelm|Friedrich|Franz Joseph|Victor Emmanuel) ({_ROMAN})"
)
_ROMAN_VALUES: Final = {"I": 1, "V": 5, "X": 10}


def _abbreviations(sub: Sub) -> None:
    sub(_NUMBERED, lambda match: _NUMBERED_WORDS[match.group(1).lower()])
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


def _weekday_list(match: _Match) -> Pieces:
    said = _SHORT_WEEKDAY.sub(lambda day: _WEEKDAY_NAMES[day.group(1)[:2]], match.group()).rstrip(".")
    said = ", ".join(day.strip() for day in said.split("/"))
    return said + _day_stop(match)


def _day_stop(match: _Match) -> str:
    return "." if match.group().endswith(".") and _MONTH_BEHIND.match(match.string, match.end()) is None else ""


def _weekdays(match: _Match) -> Pieces:
    first, last = _WEEKDAY_NAMES[match.group(1)[:2]], match.group(2)
    return f"{first} to {_WEEKDAY_NAMES[last[:2]]}" + _day_stop(match) if last else first


def _ends_sentence(match: _Match, *, loose: bool = False) -> bool:
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


_LEADING_WORD: Final = re.compile(r"[^\W\d_]+")


def _street(match: _Match) -> Pieces:
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
    return word + ("." if _ends_sentence(match) else "") if named else None


def _short(match: _Match) -> Pieces:
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
    ends = match.group(1).lower() not in ("e.g", "i.e", "vs", "approx", "a.k.a", "incl", "excl") and _ends_sentence(
        match, loose=match.group(1).lower() == "etc"
    )
    return word + ("." if ends else "")


def _initial(match: _Match) -> Pieces:
    word = re.match(r" ([A-Za-z]+)", match.string[match.end() : match.end() + 24])
    return None if word is not None and word.group(1) in STARTERS else match.group()[0] + ("" if word else " ")


def _dotted(match: _Match) -> Pieces:
    """``U.S.`` as "U S"; small letters are spelled, too (``a.m.`` is a time's and comes later)."""
    token = match.group()
    if token.lower().rstrip(".") in ("a.m", "p.m"):
        return None
    letters = " ".join(char.upper() for char in token if char.isalpha())
    rest = match.string[match.end() :].lstrip()
    word = re.match(r"[A-Za-z]+", rest[:24])
    ends = token.endswith(".") and (not rest or (word is not None and word.group() in STARTERS))
    return letters + ("." if ends else "")


def _numeral(match: _Match, *, regnal: bool) -> Pieces:
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


def _closes(match: _Match) -> bool:
    return not match.string[match.end() : match.end() + 2].strip(" .,:;)") or match.string[match.end()] in ".,:;)"


# Figures

_MONTHS: Final = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December",
)  # fmt: skip
_MONTH_OF: Final = {name[:n]: name for name in _MONTHS for n in (3, len(name))} | {"Sept": "September"}
_MONTH: Final = (
    r"(?:(Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sept?|Oct|Nov|Dec)\b(?:\.(?=,? [a-z\d]))?|(" + "|".join(_MONTHS) + r"))"
)
_DAY: Final = r"(\d{1,2})(?:st|nd|rd|th)?(?![\w:%]|[.,]\d)"
_YEAR: Final = r"(?:,? (\d{4})(?![\w-]|[.,]\d))?"
_MONTH_DAY: Final = re.compile(rf"(?<!\w){_MONTH} {_DAY}(?: ?[-–] ?{_DAY})?{_YEAR}")
_DAY_MONTH: Final = re.compile(rf"(?<![\w.,:/$-])(the )?{_DAY} (?:of )?{_MONTH}(?!\w){_YEAR}")
_MONTH_YEAR: Final = re.compile(rf"(?<!\w){_MONTH},? ([12]\d{{3}})(?![\w-]|[.,]\d)")
_MONTHS_TO: Final = re.compile(rf"(?<!\w){_MONTH}\.? ?[-–—] ?{_MONTH}(?!\w)")
_DATES_TO: Final = re.compile(
    rf"(?<!\w)({_MONTH} (?:\d{{4}}|\d{{1,2}}(?:st|nd|rd|th)?(?:,? \d{{4}})?)) ?[-–—] ?(?=(?:{_DAY_NAME}\.?,? )?{_MONTH}(?!\w))"
)
_FIGURE_DATES_TO: Final = re.compile(
    r"(?<![\w/.-])(\d{1,2}/\d{1,2}/(?:\d{4}|\d{2})|\d{4}-\d{2}-\d{2}) ?[-–—] ?(?=(?:\d{1,2}/\d{1,2}/(?:\d{4}|\d{2})|\d{4}-\d{2}-\d{2})(?![\w/-]))"
)
_DAY_FIGURES: Final = (
    r"(\d{1,2})/(\d{1,2})(?![\w/]|[.,]\d| (?:stars?|points?|of|cups?|inch(?:es)?|miles?|(?:tea|table)spoons?)\b)"
)
_DAY_FIGURES_TO: Final = rf"{_DAY_FIGURES}(?:( ?[-–—] ?| to | through | thru | until | and ){_DAY_FIGURES})?"
_DUE: Final = (
    rf"(?<!\w)(?:{_DAY_NAME}|on|by|due|for|from|since|until|till|starting|check[- ]?(?:in|out)|dates?|expires|exp|arrives|"
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

_INTERNATIONAL: Final = re.compile(r"(?<![\w+])\+\d[\d ().-]{5,20}\d(?!\w)")
_PHONE: Final = re.compile(
    r"(?<![\w.,$€£+/-])(?:(1)[ .-])?(?:\((\d{3})\) ?|(\d{3})[ .-])(\d{3})[ .-](\d{4})(?![\w-]|[.,]\d)"
)
_TRUNK: Final = re.compile(r"(?<![\w.,$€£+/-])0\d{1,4}(?:[ -]\d{2,8}){1,4}(?![\w-]|[.,]\d)")
_LOCAL: Final = re.compile(r"(?<![\w.,$€£+/-])(\d{3})-(\d{4})(?![\w-]|[.,]\d)")
_DIALLED: Final = re.compile(
    r"(?<!\w)((?:[Cc]all|[Dd]ial|[Tt]ext|[Pp]ress|[Rr]ing|[Pp]hone|[Rr]each(?= (?:us|me|them|him|her)\b)|[Ee]nter(?! (?:19|20)\d\d\b(?!#)))(?: (?:us|me|them|him|her))?(?: back)?(?: at| on)? )"
    r"(\d{3} \d{4}|\d{3,6})(?![\w,.]\w|\w|[.,:/-]\d)"
)

_CLOCK: Final = re.compile(r"(?<![\w:.])(\d{1,2}):([0-5]\d)(?::([0-5]\d))?(?: ?([AaPp])\.?[Mm]\b\.?)?(?![\w:])")
_HOUR: Final = re.compile(r"(?<![\w:.,$€£])(\d{1,2}) ?([AaPp])\.?[Mm]\b\.?(?!\w)")
_TIME: Final = r"\d{1,2}(?::[0-5]\d)?(?: ?[AaPp]\.?[Mm]\b\.?)?"
_TIMES_TO: Final = re.compile(rf"(?<![\w:.,$€£/-])({_TIME}) ?[-–—] ?(?=({_TIME})(?![\w:/-]|[.,]\d))")
_HOURS_BEFORE: Final = re.compile(r"(?:from|open|hours:?|daily|days?,?|weekdays,?|between) \Z", re.IGNORECASE)
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

_UNITS: Final = {
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
    "hr": ("hour", "hours"), "hrs": ("hour", "hours"), "rpm": ("R P M", "R P M"), "fps": ("frame per second", "frames per second"),
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
_UNIT: Final = re.compile(
    rf"(?<![\w.,])({_DEC}|\d+/\d+|[½¼¾⅓⅔])( ?-?)({'|'.join(re.escape(unit) for unit in sorted(_UNITS, key=len, reverse=True))})(?![\w²³])(\.(?= [a-z0-9]|[,;:]))?"
)
_DURATION: Final = re.compile(
    r"(?<![\w.,])(\d{1,3}) ?(d|h|hrs?|m|mins?) (?=\d)(\d{1,2}) ?(h|hrs?|m|mins?|s|secs?)(?: (\d{1,2}) ?(m|mins?|s|secs?))?(?!\w)|"
    r"(?<![\w.,])(\d{1,3})(d|h|m)(\d{1,2})(h|m|s)(?!\w)"
)
_DURATIONS: Final = {"d": "day", "h": "hour", "m": "minute", "s": "second"}
_MILLIONS: Final = re.compile(
    rf"(?<![\w.,])({_DEC})m(?= (?:users|people|customers|downloads|views|subscribers|followers|households|rows|records|tokens|"
    r"dollars|euros|pounds)\b)"
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
_VERSION: Final = re.compile(r"(?<![\w.])([vV](?:ersion )?\.? ?)?(\d+(?:\.\d+){2,8})(?![\w]|\.\d)")
_V: Final = re.compile(r"(?<![\w.])(?:v(?=\d{1,4}(?:\.\d{1,4})?(?!\w))|V(?=\d{1,4}\.\d{1,4}(?!\w)))")
_HASH: Final = re.compile(r"(?<!\w)(?:#|№) ?(?=\d)")
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
_LONG_HASH: Final = re.compile(r"(?<!\w)(?:#|№) ?(\d{4,20})(?![\w/]|[.,:-]\d)")
_MIXED: Final = re.compile(
    r"(?<![\w.,'-])(?=[A-Z0-9-]{0,24}\d)(?=[A-Z0-9-]{0,24}[A-Z])[A-Z0-9]{1,24}(?:-[A-Z0-9]{1,12}){0,4}(?![\w])"
)
_SCALED: Final = re.compile(
    rf"(?<![\w.,])({_DEC})(k|M|bn|K(?<!\b[48]K)(?! (?:run|race|TV|video|display|monitor|resolution)))(?!\w)"
)
_MINUS: Final = re.compile(r"(?<![\w)\]%.,])-(?=\.?\d)")
_JOINED: Final = re.compile(r"(?<=[\w.])-(?=\d)")
_YEAR_RANGE: Final = re.compile(r"(?<![\w.,-])(1[1-9]\d\d|20\d\d) ?[-–/] ?(\d{4}|\d{2})(?![\w-]|[.,]\d)")
_APPROXIMATELY: Final = re.compile(r"(?<!\w)~ ?(?=[$€£]?\d)")
_POWER: Final = re.compile(r"(?<=[\w)])\^(\d{1,3}|[a-z](?!\w))")
_SUPERSCRIPT: Final = re.compile("(?<=[\\w)])[⁰¹²³⁴⁵⁶⁷⁸⁹]{1,3}")
_SUPERSCRIPTS: Final = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789")
_NUMBER: Final = re.compile(rf"(?<![\d.]){_NUM}(?:\.\d+)?|\.\d+|\d+")


def _figures(sub: Sub, british: bool, before: str) -> None:
    sub(_APPROXIMATELY, "about ")
    sub(_EUROPEAN, lambda match: match.group().replace(".", "").replace(",", "."))
    sub(_ZONE, lambda match: " minus " if match.group(1) == "-" else " plus ")
    sub(_INTERNATIONAL, _international)
    sub(_PHONE, lambda match: ", ".join(digits(group) for group in match.groups() if group))
    sub(_DATES_TO, lambda match: [match.span(1), " to "])
    sub(_FIGURE_DATES_TO, lambda match: [match.span(1), " to "])
    sub(_ISO, _iso_date)
    sub(_FIGURE_DATE, lambda match: _figure_date(match, british))
    due = _DUE_BEFORE.search(before)
    if due is not None:
        sub(_DUE_FIRST, lambda match: _due_date(match, british, due.group().strip()))
    sub(_DUE_DATE, lambda match: _due_date(match, british, match.group(1).strip()))
    sub(_ZERO_DATE, lambda match: _due_date(match, british, ""))
    sub(_RATING, _rating)
    sub(_MIXED_FRACTION, _mixed_fraction)
    sub(_SECURITY, lambda match: _grouped(match.group()))
    if _CODE_BEFORE.search(before):
        sub(_CODE_FIRST, lambda match: [match.span(1), _grouped(match.group(2))])
    sub(_CODE, _code)
    sub(_CODE_LABEL, _labelled)
    sub(_LONG_HASH, lambda match: "number " + digits(match.group(1)))
    sub(_TRUNK, _trunk)
    sub(_LOCAL, lambda match: f"{digits(match.group(1))}, {digits(match.group(2))}")
    sub(_MONTH_DAY, lambda match: _month_day(match, british))
    sub(_DAY_MONTH, lambda match: _day_month(match))
    sub(_MONTH_YEAR, lambda match: f"{_MONTH_OF[match.group(1) or match.group(2)]} {year(int(match.group(3)))}")
    sub(_ZIP, lambda match: [match.span(1), *(f" {digits(group)}" for group in match.groups()[1:] if group)])
    sub(_DIALLED, _dialled)
    sub(_YEAR_RANGE, _year_range)
    sub(_TIMES_TO, _times_to)
    sub(_EQUATION, " minus ")
    sub(_MINUS_RANGE, _range)
    sub(_CLOCK, _clock)
    sub(_HOUR, lambda match: f"{cardinal(int(match.group(1)))} {match.group(2).upper()} M" + _kept_stop(match))
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
    sub(_DECADE, lambda match: _decade(int(match.group(1)), int(match.group(2))))
    sub(_SHORT_DECADE, _short_decade)
    sub(_DURATION, _duration)
    sub(_MILLIONS, lambda match: [match.span(1), " million"])
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


def _grouped(code: str) -> str:
    """A code's digits, a pause between its groups."""
    return ", ".join(digits(group) for group in re.split("[ -]", code))


def _code(match: _Match) -> Pieces:
    """Three figures alone may be a quantity where the word before them does not say what they are."""
    head, figure = match.group(1), match.group("figure")
    if len(figure) == 3 and (match.group("between") or "number" in head.lower()):
        return None
    if (
        _BARE_NUMBER.match(head)
        and _WHOSE_NUMBER.search(match.string[max(match.start() - 24, 0) : match.start()]) is None
    ):
        return None  # any number
    counted = _COUNTED.match(match.string, match.end())
    if counted is not None and counted.group(1) in _COUNTS:
        return None
    return [match.span(1), _grouped(figure)]


def _dialled(match: _Match) -> Pieces:
    return [match.span(1), _grouped(match.group(2))] if _COUNTED.match(match.string, match.end()) is None else None


def _labelled(match: _Match) -> Pieces:
    label = 1 if match.group(2) else 3
    figure = match.group(label + 1)
    if _COUNTED.match(match.string, match.end()) is not None:
        return None
    if _UNTIL.match(match.group(label)) and len(figure) == 4 and "1100" <= figure <= "2099":
        return None  # a year
    return [match.span(label), _grouped(figure)]


def _kept_stop(match: _Match) -> str:
    """The sentence's stop, if an abbreviation's stop was it."""
    return "." if match.group().endswith(".") and _ends_sentence(match, loose=True) else ""


def _international(match: _Match) -> Pieces:
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


def _trunk(match: _Match) -> Pieces:
    """A number with its area code and leading zero, as outside North America."""
    groups = re.split("[ -]", match.group())
    return ", ".join(digits(group) for group in groups) if 8 <= sum(map(len, groups)) <= 13 else None


def _iso_date(match: _Match) -> Pieces:
    said = _date(int(match.group(4)), int(match.group(3)), match.group(1))
    if said is None:
        return None
    if match.group(5):
        said += " at " + _time(int(match.group(5)), int(match.group(6)))
    return said


def _figure_date(match: _Match, british: bool) -> Pieces:
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


def _due_date(match: _Match, british: bool, lead: str) -> Pieces:
    """``12/25`` behind a word that a date follows, or with a leading zero."""
    first = _day(match.group(2), match.group(3), british)
    second = _day(match.group(5), match.group(6), british) if match.group(4) else None
    if first is None or (match.group(4) and second is None):
        return None
    figures = [match.group(i) for i in (2, 3, 5, 6) if match.group(i)]
    zero = any(figure[0] == "0" for figure in figures)
    pairs = {(int(a), int(b)) for a, b in zip(figures[::2], figures[1::2], strict=True)}
    shared = lead.lower() in ("by", "for", "from") and pairs <= _SHARED
    if not zero and (not lead or shared or pairs & _NO_DATES or _COUNTED.match(match.string, match.end())):
        return None
    if not zero and lead.lower() in ("by", "for", "from", "on", "since") and _is_share(match, lead, pairs):
        return None
    pieces: list[str | Span] = [match.span(1), first]
    if second is not None:
        joint = match.group(4).strip()
        pieces.append(f" to {second}" if joint in "-–—" else f" {joint} {second}")
    return pieces


def _is_share(match: _Match, lead: str, pairs: set[tuple[int, int]]) -> bool:
    """Whether it is a part of something: "rose by 3/8 percent", "on 3/4 time", "from 1/16 to 1/2 inch"."""
    before = match.string[max(match.start() - 24, 0) : match.start()]
    return (
        (lead.lower() != "on" and all(a < b and b in (2, 4, 8, 16) for a, b in pairs))
        or _SHARE_BEHIND.match(match.string, match.end()) is not None
        or _CHANGED.search(before) is not None
    )


_SHARE_BEHIND: Final = re.compile(
    r"(?: of)?(?: an?)? ?(?:percent|%|points?|time|inch|inches|mile|cup|second|ounce|acre|full)(?!\w)|(?: to| -) \d/\d"
)
_CHANGED: Final = re.compile(
    r"(?:ros|ris|fall|fell|drop|grow|grew|cut|reduc|increas|decreas|multipl|divid|scal|chang)\w{0,6}(?: (?:it|this|that|them))? \Z",
    re.IGNORECASE,
)


def _day(first: str, second: str, british: bool) -> str | None:
    month, day = (int(second), int(first)) if british else (int(first), int(second))
    if month > 12:
        month, day = day, month
    return f"{_MONTHS[month - 1]} {ordinal(day)}" if 1 <= month <= 12 and 1 <= day <= 31 else None


def _date(day: int, month: int, written_year: str) -> str | None:
    if not (1 <= day <= 31 and 1 <= month <= 12):
        return None
    return f"{_MONTHS[month - 1]} {ordinal(day)}, {_year(written_year)}"


def _year(written: str) -> str:
    number = int(written)
    return year(number) if 1000 <= number <= 2999 else amount(written)


def _months_to(match: _Match) -> Pieces:
    first, last = (_MONTH_OF[match.group(i) or match.group(i + 1)] for i in (1, 3))
    return f"{first} to {last}"


def _month_day(match: _Match, british: bool) -> Pieces:
    month = _MONTH_OF[match.group(1) or match.group(2)]
    day, last = int(match.group(3)), match.group(4)
    if not 1 <= day <= 31 or (last and not 1 <= int(last) <= 31):
        return None
    said = f"{month} {'the ' if british else ''}{ordinal(day)}"
    if last:
        said += f" to {ordinal(int(last))}"
    return said + (f", {_year(match.group(5))}" if match.group(5) else "")


def _day_month(match: _Match) -> Pieces:
    day, month = int(match.group(2)), _MONTH_OF[match.group(3) or match.group(4)]
    if not 1 <= day <= 31:
        return None
    return f"the {ordinal(day)} of {month}" + (f", {_year(match.group(5))}" if match.group(5) else "")


def _year_range(match: _Match) -> Pieces:
    first, last = int(match.group(1)), match.group(2)
    if len(last) == 2:
        if int(last) <= first % 100:
            return f"{_MONTHS[int(last) - 1]} {year(first)}" if 1 <= int(last) <= 12 else None
        return f"{year(first)} to {cardinal(int(last)) if int(last) > 9 else 'oh ' + cardinal(int(last))}"
    return f"{year(first)} to {_year(last)}"


def _times_to(match: _Match) -> Pieces:
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


def _range(match: _Match) -> Pieces:
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


def _clock(match: _Match) -> Pieces:
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


def _price(
    match: _Match, symbol: str, whole: str | None, fraction: str | None, scale: str | None, british: bool
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


def _unit(match: _Match) -> Pieces:
    one, many = _UNITS[match.group(3)]
    joined = "-" in match.group(2)
    mixed = match.string[max(match.start() - 2, 0) : match.start()].strip().isdigit()
    single = joined or match.group(1) == "1" or match.group(1) in _HALVES or ("/" in match.group(1) and not mixed)
    of = " of a " if match.group(1) in "½¼¾⅓⅔" and match.group(3) not in ("tsp", "tbsp") else " "
    return [match.span(1), of + (one if single else many)]


def _inches(match: _Match) -> Pieces:
    """``12" pizza``; behind a quotation's beginning the mark is its end."""
    if match.group(2):
        return [match.span(1), " by ", match.span(2), " inches"]
    if match.string.count('"', 0, match.start()) % 2 or not _EACH.match(match.string, match.end()):
        return None
    return [match.span(1), " inch"]


def _duration(match: _Match) -> Pieces:
    found = [group for group in match.groups() if group]
    if [unit[0] for unit in found[1::2]] != sorted({unit[0] for unit in found[1::2]}, key="dhms".index):
        return None
    parts = zip(found[::2], found[1::2], strict=True)
    return " ".join(f"{cardinal(int(n))} {_DURATIONS[unit[0]]}{'' if n == '1' else 's'}" for n, unit in parts)


def _degrees(match: _Match) -> Pieces:
    scale = match.group(1) or {"℃": "C", "℉": "F"}.get(match.group(), "")
    return " degrees" + {"C": " Celsius", "F": " Fahrenheit", "K": " Kelvin", "": ""}[scale]


def _vulgar(match: _Match) -> Pieces:
    top, bottom = _HALVES[match.group(2)]
    if match.group(1):
        return f"{amount(match.group(1))} and {_parts(top, bottom, article=True)}"
    return _parts(top, bottom)


def _rating(match: _Match) -> Pieces:
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


def _mixed_fraction(match: _Match) -> Pieces:
    top, bottom = int(match.group(2)), int(match.group(3))
    if not 0 < top < bottom or bottom not in _PARTS:
        return None
    return f"{amount(match.group(1))} and {_parts(top, bottom, article=True)}"


def _fraction(match: _Match) -> Pieces:
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


def _unknown(match: _Match) -> Pieces:
    if match.group(2)[0] == " " and not (match.group(3) or _TERM.match(match.string, match.end())):
        return None  # "ten times - really"
    sign = " minus " if match.group(2).strip() == "-" else match.span(2)
    return [" ", match.span(1), sign]


def _parts(top: int, bottom: int, *, article: bool = False) -> str:
    name = {2: "half", 4: "quarter"}.get(bottom) or ordinal(bottom)
    if top == 1:
        return f"{'a' if article else 'one'} {name}"
    return f"{cardinal(top)} {'halves' if bottom == 2 else name + 's'}"


def _decade(century: int, tens: int) -> str:
    if tens:
        return f"{cardinal(century)} {_plural(cardinal(tens * 10))}"
    return "two thousands" if century == 20 else f"{cardinal(century)} hundreds"


def _short_decade(match: _Match) -> Pieces:
    """``80s``, but seconds behind what lasts."""
    if match.group(3) and match.group().endswith("0s"):
        before = match.string[max(match.start() - 12, 0) : match.start()]
        alone = not before and not match.string[match.end() : match.end() + 2].strip().isalnum()
        if alone or _LASTS.search(before) or _OF_TIME.match(match.string, match.end()):
            return None
    said = _plural(cardinal(int(match.group(2) or match.group(3)) * 10))
    return [match.span(1), said] if match.group(1) else said


def _plural(word: str) -> str:
    return word[:-1] + "ies" if word.endswith("y") else word + "s"


def _version(match: _Match) -> Pieces:
    said = " point ".join(amount(part) for part in match.group(2).split("."))
    parts = match.group(2).split(".")
    if len(parts) == 4 and all(len(part) <= 3 for part in parts):
        said = " dot ".join(amount(part) for part in parts)  # an address on the net
    return ("version " if match.group(1) else "") + said


def _mixed(match: _Match) -> Pieces:
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
            parts.append(run if len(run) > 3 and _is_word(run) else " ".join(run))
    return " ".join(parts)


def _power(exponent: str) -> str:
    named = {"2": " squared", "3": " cubed"}.get(exponent)
    return named or f" to the power of {amount(exponent) if exponent.isdigit() else exponent}"


def _number(match: _Match, british: bool) -> Pieces:
    """What is left: years where four figures without a comma look like one, else the number; blanks between letters and it."""
    token, text = match.group(), match.string
    before, behind = text[match.start() - 1 : match.start()], text[match.end() : match.end() + 1]
    if len(token) == 4 and token.isdigit() and "1100" <= token <= "2099":
        counted = token < "1900" and token[2:] != "00" and _COUNTED.match(text, match.end()) is not None
        counted = counted and _YEAR_BEFORE.search(text[max(match.start() - 16, 0) : match.start()]) is None
        said = cardinal(int(token), british) if counted else year(int(token))
    elif len(token) > 5 and token.isdigit() and not token.endswith("000"):
        word = _COUNTED.match(text, match.end())
        counted = len(token) < 16 and word is not None and word.group(1) in _COUNTS
        said = cardinal(int(token), british) if counted else digits(token)
    else:
        said = amount(token, british)
    return f"{' ' if before.isalnum() else ''}{said}{' ' if behind.isalnum() else ''}"


_YEAR_BEFORE: Final = re.compile(
    r"(?:\b(?:in|since|by|from|until|the|before|after|during|around|circa)|(?<!\w)[A-Z]\w{0,12}) \Z"
)
_COUNTED: Final = re.compile(r" ([a-z]{3,20}s|feet|people)\b")
_COUNTS: Final = frozenset(many.split()[0] for _, many in _UNITS.values()) | words("""
    people users customers dollars euros residents inhabitants items steps words tokens rows records views downloads
""")

# Signs and capitals

_SLASH: Final = re.compile(rf"(?<=[{_W}]) ?/ ?(?=[{_W}])")
_EITHER: Final = re.compile(
    r"(?<=\b[Hh]e)/(?=she\b)|(?<=\b[Ss]he)/(?=he\b)|(?<=\b[Hh]is)/(?=her)|(?<=\b[Hh]im)/(?=her\b)|(?<=\b[Yy]es)/(?=no\b)|"
    r"(?<=\b[Ee]ither)/(?=or\b)|(?<=\b[Oo]n)/(?=off\b)"
)
_LETTERS_AND: Final = re.compile(r"(?<!\w)([A-Z]{1,3})&([A-Z]{1,3})(?!\w)")
_AMPERSAND: Final = re.compile(" ?& ?")
_PLUS: Final = re.compile(r"(?<=[\w)]) ?\+ ?(?=[\w(])|(?<=\w)\+(?=[\s.,!?]|\Z)|(?<!\S)\+(?=\w)")
_SIGNS: Final = {
    "=": " equals ", "≠": " is not equal to ", "≤": " at most ", "≥": " at least ", "≈": " about ", "±": " plus or minus ", "×": " times ",
    "÷": " divided by ", "→": " to ", "←": " from ", "⇒": " so ", "∞": " infinity ", "√": " square root of ", "§": " section ", "©": " copyright ",
    "%": " percent", "€": " euros", "£": " pounds", "°": " degrees", "@": " at ", "π": " pi ", "µ": " micro", "•": ", ",
}  # fmt: skip
_SIGN: Final = re.compile("[" + "".join(re.escape(sign) for sign in _SIGNS) + "]")
_LESS: Final = re.compile(r"(?<=[\w)]) < (?=\S)|(?<!\S)<(?=\w)")
_MORE: Final = re.compile(r"(?<=[\w)]) > (?=\S)|(?<!\S)>(?=\w)")
_OPERATOR: Final = re.compile(r" ?(<=|>=|!=|==|=>|->|<-) ?|(?<=[A-Za-z])\+\+(?!\w)")
_OPERATORS: Final = {
    "<=": " at most ", ">=": " at least ", "!=": " is not ", "==": " equals ", "=>": " to ", "->": " to ", "<-": " from ",
}  # fmt: skip
_FLAG: Final = re.compile(r"(?<!\S)--?(?=[A-Za-z])")
_DOLLAR: Final = re.compile(r"\$(?=\s|\Z)")
_NUMBER_OF: Final = re.compile(r"(?<!\w)#(?= of\b)")
_POUND: Final = re.compile(r"(?<=\d)#(?!\w)")
_OPEN: Final = re.compile(r"\([^()]*\Z")
_LISTED: Final = re.compile(r"(?<!\S)(\d{1,2}|[A-Za-z])\) (?=[A-Z])")
_FORMULA: Final = re.compile(r"(?<![\w$])\$(?=[A-Za-z(\\])([^$\n]{1,80})(?<=\S)\$(?![\w$])")
_UNSAID: Final = re.compile(r"[$#\\@]")

_CAPITALS: Final = re.compile(r"(?<![\w.'-])([A-Z]{2,6})(s|'s)?(?![\w'])")
_SPELLED: Final = words("""
    FBI CIA NSA USA UK EU UN UAE AI API URL URI CEO CFO CTO COO CIO USB ATM IP UI UX OS IBM UFO IPO IOU ETA DIY EV GPU CPU TPU IDE
    AWS GUI CLI ISP IRS IQ EQ ID UTC EST EDT CET NBA NFL UCLA MIT USC UPS AC DC AM PM SEO SOS RIP AKA USD EUR AUD ECG EKG EEG MRI DNA
    RNA HIV IVF ADHD ACLU YMCA VIP FAQ DOB IOT LED OLED OEM ERP AOL
""")
_INTERJECTIONS: Final = words("HMM HM SHH SH PSST PFFT BRR GRR TSK MM MHM ZZZ MR MRS MS DR ST JR SR")


def _listed(match: _Match) -> Pieces:
    """``1) Billing`` is a list's item unless a bracket is open."""
    head = match.string[max(match.start() - 40, 0) : match.start()]
    return None if _OPEN.search(head) else [match.span(1), ", "]


def _is_word(capitals: str) -> bool:
    """Whether capitals can be read as a word: they have a vowel."""
    return any(char in "AEIOUY" for char in capitals)


def _capitals(sub: Sub) -> None:
    sub(_CAPITALS, _spell)


def _spell(match: _Match) -> Pieces:
    """Capitals without a vowel, and some known ones with: letter by letter."""
    word = match.group(1)
    if word in _INTERJECTIONS or (_is_word(word) and word not in _SPELLED):
        return None
    return " ".join(word) + (match.group(2) or "")


def _signs(sub: Sub) -> None:
    sub(_OPERATOR, lambda match: _OPERATORS.get(match.group(1) or "", " plus plus"))
    sub(_FLAG, "")
    sub(_EITHER, " or ")
    sub(_SLASH, " slash ")
    sub(_LETTERS_AND, lambda match: f"{' '.join(match.group(1))} and {' '.join(match.group(2))}")
    sub(_AMPERSAND, " and ")
    sub(_PLUS, " plus ")
    sub(_LESS, " less than ")
    sub(_MORE, " greater than ")
    sub(_SIGN, lambda match: _SIGNS[match.group()])
    sub(_UNSAID, " ")
