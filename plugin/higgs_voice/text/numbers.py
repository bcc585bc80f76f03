"""Numbers as words, by num2words."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

from num2words import CONVERTER_CLASSES, num2words

from .rewriting import Rewriting

DIGITS: Final = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_MAX_DIGITS: Final = 15  # longer numbers are read digit by digit
# A stop behind a figure makes it an ordinal in German; four digits may be a year or a code, figures side by side a number to
# be dialled.
_WHOLE: Final = re.compile(r"(?<![\w.,:/-])(?<!\d )\d{1,3}(?![\w:/]|[.,-]\d| \d|\.(?!\Z))")


@lru_cache(maxsize=4096)
def cardinal(number: int, british: bool = False) -> str:
    """``42`` as "forty-two"; "and" only in British English."""
    words = str(num2words(number)).replace(",", "")
    return words if british else words.replace(" and ", " ")


@lru_cache(maxsize=1024)
def ordinal(number: int, british: bool = False) -> str:
    words = str(num2words(number, to="ordinal")).replace(",", "")
    return words if british else words.replace(" and ", " ")


@lru_cache(maxsize=1024)
def year(number: int) -> str:
    """``1905`` as "nineteen oh five", ``2024`` as "twenty twenty-four", ``2005`` as "two thousand five"."""
    return str(num2words(number, to="year")).replace("oh-", "oh ").replace(" and ", " ").replace(",", "")


def digits(text: str) -> str:
    """Each digit of a text as a word; other characters are left out."""
    return " ".join(DIGITS[int(char)] for char in text if char.isascii() and char.isdigit())


def amount(text: str, british: bool = False) -> str:
    """``1,234.50`` as "one thousand two hundred thirty-four point five zero"; a leading zero or too many digits: one by one."""
    whole, point, fraction = text.replace(",", "").partition(".")
    grouped = "," in text or whole.endswith("000")
    long = len(whole) > (_MAX_DIGITS if grouped else 6)
    if not whole:
        words = ""
    elif long or (len(whole) > 1 and whole[0] == "0"):
        words = digits(whole)
    else:
        words = cardinal(int(whole), british)
    return f"{words} point {digits(fraction)}".strip() if point and fraction else words


def cardinals(rewriting: Rewriting, language: str) -> None:
    """Whole numbers that stand alone, in any language num2words knows; what may be a date, a price or a decimal stays."""
    code = _converter(language)
    if code is not None:
        rewriting.sub(_WHOLE, lambda match: _cardinal_in(int(match.group()), code) if match.group()[0] != "0" else None)


@lru_cache(maxsize=4096)
def _cardinal_in(number: int, code: str) -> str:
    return str(num2words(number, lang=code))


@lru_cache(maxsize=64)
def _converter(language: str) -> str | None:
    base, _, region = language.replace("-", "_").partition("_")
    for code in (f"{base.lower()}_{region.upper()}", base.lower()):
        if code in CONVERTER_CLASSES:
            return code
    return None
