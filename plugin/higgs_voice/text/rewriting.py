"""A text that is rewritten step by step and remembers where each character came from."""

from __future__ import annotations

import re
from collections.abc import Callable

Span = tuple[int, int]
Pieces = str | list[str | Span] | None
"""What takes a match's place: new text, or a list of new texts and spans of the present text that stay; None keeps it."""

Sub = Callable[[re.Pattern[str], "str | Callable[[re.Match[str]], Pieces]"], None]


class Rewriting:
    """The text as it stands, and for each of its characters the written span it stands for.

    Starts and ends never decrease: what stays keeps its order, and new text stands for all that it replaced.
    """

    def __init__(self, written: str) -> None:
        self.text = written
        self.starts: list[int] = list(range(len(written)))
        self.ends: list[int] = list(range(1, len(written) + 1))

    def sub(self, pattern: re.Pattern[str], replace: str | Callable[[re.Match[str]], Pieces]) -> None:
        """Replace every match by a text or by what a function of the match says."""
        at = 0
        texts: list[str] = []
        starts: list[int] = []
        ends: list[int] = []
        for match in pattern.finditer(self.text):
            first, last = match.span()
            pieces = replace if isinstance(replace, str) else replace(match)
            if pieces is None:
                continue
            texts.append(self.text[at:first])
            starts += self.starts[at:first]
            ends += self.ends[at:first]
            parts = [pieces] if isinstance(pieces, str) else pieces
            at = first
            for number, part in enumerate(parts):
                if isinstance(part, str):
                    kept = next((after[0] for after in parts[number + 1 :] if not isinstance(after, str)), last)
                    start, end = self._origin(at, kept)
                    texts.append(part)
                    starts += [start] * len(part)
                    ends += [end] * len(part)
                else:
                    texts.append(self.text[part[0] : part[1]])
                    starts += self.starts[part[0] : part[1]]
                    ends += self.ends[part[0] : part[1]]
                    at = part[1]
            at = last
        if texts:
            texts.append(self.text[at:])
            starts += self.starts[at:]
            ends += self.ends[at:]
            self.text, self.starts, self.ends = "".join(texts), starts, ends

    def _origin(self, first: int, last: int) -> Span:
        """The written span that characters ``first`` to ``last`` stand for; between two characters it is empty."""
        if first < last:
            return self.starts[first], self.ends[last - 1]
        here = self.ends[first - 1] if first else 0
        return here, here
