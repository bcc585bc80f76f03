"""Written English as it is said: numbers, prices, times, dates, addresses, units, abbreviations, signs.

The rules run in order, each over the whole text; what an earlier one has put into words no later one finds again. Where
writing is ambiguous the choice is stated beside the rule; dates in figures put the month first, in British English the day.
"""

from __future__ import annotations

import re
from typing import Final

from .abbreviations import STARTERS, words
from .english_figures import figures
from .english_words import Match, abbreviations, is_word
from .markup import KEPT
from .rewriting import Pieces, Rewriting, Span, Sub

_W: Final = rf"\w{KEPT}"


def say(rewriting: Rewriting, *, british: bool = False, before: str = "") -> None:
    """Put a text without markup into words; ``before`` is the end of what was written before it."""
    sub = rewriting.sub
    if any(char in rewriting.text for char in "@./#"):
        _addresses(sub)
    abbreviations(sub)
    if ")" in rewriting.text:
        sub(_LISTED, _listed)
        sub(_OR_MORE, lambda match: [match.span(1)])
    if "$" in rewriting.text:
        sub(_FORMULA, lambda match: [match.span(1)])
    if "#" in rewriting.text:
        sub(_POUND, " pound")
        sub(_NUMBER_OF, "number")
    if any(char.isnumeric() for char in rewriting.text):
        figures(sub, british, before)
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


def _spell_address(match: Match, start: int, end: int) -> list[str | Span]:
    """The characters from start to end of the text, signs by their names."""
    pieces: list[str | Span] = []
    at = start
    for sign in _ADDRESS_SIGN.finditer(match.string, start, end):
        pieces += [(at, sign.start()), _SIGN_NAMES[sign.group()]]
        at = sign.end()
    pieces.append((at, end))
    return pieces


def _url(match: Match) -> Pieces:
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


def _domain(match: Match) -> Pieces:
    body = match.group()
    # "end.In" with a forgotten blank is no address
    if body[body.rfind(".") + 1 :] in STARTERS or all(not char.isalpha() for char in body.split(".")[0]):
        return None
    end = match.start() + len(body.rstrip(_EDGE_MARKS + "/"))
    return [*_spell_address(match, match.start(), end), (end, match.end())]


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
_OR_MORE: Final = re.compile(r"(?<=[a-z])\((e?s)\)(?!\w)")
_FORMULA: Final = re.compile(r"(?<![\w$])\$(?=[A-Za-z(\\])([^$\n]{1,80})(?<=\S)\$(?![\w$])")
_UNSAID: Final = re.compile(r"[$#\\@]")
_CAPITALS: Final = re.compile(r"(?<![\w.'-])([A-Z]{2,6})(s|'s)?(?![\w'])")
_SPELLED: Final = words("""
    FBI CIA NSA USA UK EU UN UAE AI API URL URI CEO CFO CTO COO CIO USB ATM IP UI UX OS IBM UFO IPO IOU ETA DIY EV GPU CPU TPU IDE
    AWS GUI CLI ISP IRS IQ EQ ID UTC EST EDT CET NBA NFL UCLA MIT USC UPS AC DC AM PM SEO SOS RIP AKA USD EUR AUD ECG EKG EEG MRI DNA
    RNA HIV IVF ADHD ACLU YMCA VIP FAQ DOB IOT LED OLED OEM ERP AOL FYI EOD TBA OOO USPS USDA EPA SUV UPC KPI ROI SLA NDA APR APY ACH EIN
    ICU EMT IUD UTI IVR EHR MBA GPA HOA IST ISBN AEST AEDT CEST IMO UUID AARP
""")
_INTERJECTIONS: Final = words("HMM HM SHH SH PSST PFFT BRR GRR TSK MM MHM ZZZ MR MRS MS DR ST JR SR")


def _listed(match: Match) -> Pieces:
    """``1) Billing`` is a list's item unless a bracket is open."""
    head = match.string[max(match.start() - 40, 0) : match.start()]
    return None if _OPEN.search(head) else [match.span(1), ", "]


def _capitals(sub: Sub) -> None:
    sub(_CAPITALS, _spell)


def _spell(match: Match) -> Pieces:
    """Capitals without a vowel, and some known ones with: letter by letter."""
    word = match.group(1)
    if word in _INTERJECTIONS or (is_word(word) and word not in _SPELLED):
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
