"""The user's own words: how they are written, and how they are said."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from ..errors import SettingsError


class Lexicon:
    """Written words or phrases and what is said for them, e.g. ``Lexicon({"SQL": "sequel", "k8s": "kubernetes"})``.

    Whole words only; of several that fit the longest counts. An entry in small letters fits any case, one with a capital
    only its own. What is said is taken as it stands: no other rule of the normaliser touches it.
    """

    def __init__(self, entries: Mapping[str, str]) -> None:
        self.entries: Final[dict[str, str]] = dict(entries)
        self._exact: dict[str, str] = {}
        self._folded: dict[str, str] = {}
        for written, spoken in self.entries.items():
            key = " ".join(written.split())
            if not key:
                raise SettingsError("Lexicon: a written form is empty; every entry needs one")
            if any("\ud800" <= char <= "\udfff" for char in key + spoken):
                raise SettingsError(
                    f"Lexicon: the entry {written!r} holds half a character (a lone surrogate); remove it"
                )
            table = self._folded if key == key.lower() else self._exact
            table[key] = " ".join(spoken.split())
        self._first = {char for key in self._folded for char in (key[0], key[0].upper())} | {
            key[0] for key in self._exact
        }
        self._lengths = sorted({len(key) for key in (*self._folded, *self._exact)}, reverse=True)

    def __len__(self) -> int:
        return len(self.entries)

    def find(self, text: str) -> Iterator[tuple[int, int, str]]:
        """The entries in a text, in order: start, end, what is said."""
        i, n = 0, len(text)
        while i < n:
            found = self._at(text, i) if text[i] in self._first else None
            if found is None:
                i += 1
            else:
                yield i, found[0], found[1]
                i = max(found[0], i + 1)

    def _at(self, text: str, i: int) -> tuple[int, str] | None:
        if i and _is_word(text[i - 1]) and _is_word(text[i]):
            return None
        for length in self._lengths:
            end = i + length
            if end > len(text) or (end < len(text) and _is_word(text[end]) and _is_word(text[end - 1])):
                continue
            part = text[i:end]
            spoken = self._exact.get(part)
            if spoken is None:
                spoken = self._folded.get(part.lower())
            if spoken is not None:
                return end, spoken
        return None


def _is_word(char: str) -> bool:
    return char.isalnum() or char == "_"
