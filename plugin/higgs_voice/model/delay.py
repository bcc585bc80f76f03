"""The delay pattern: codebook k of a frame is fed and generated k rows later than codebook 0.

    row      0    1    2    3    …            (K = 3, T = 2; B is BOS, E is EOS)
    book 0   B    a0   a1   E    E    E
    book 1   B    B    b0   b1   E    E
    book 2   B    B    B    c0   c1   E

Frames of T steps become T + K + 1 rows. The first row is all BOS, the last one all EOS. What a model generates need not
end as neatly as this: `revert_delay` and `DelayReverter` say what a row sequence means, whatever it holds.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.int16]


def build_delay(codes: Codes, *, bos: int, eos: int) -> Codes:
    """Codes [K, T] to delayed rows [T + K + 1, K], as transformers' processor builds them for a clip."""
    books, frames = codes.shape
    rows = np.full((frames + books + 1, books), eos, dtype=np.int16)
    for book in range(books):
        rows[: book + 1, book] = bos
        rows[book + 1 : book + 1 + frames, book] = codes[book]
    return rows


def begun_delay(codes: Codes, *, bos: int) -> tuple[Codes, Codes, Codes]:
    """Where a generation that has given frames [K, T] stands: the rows before the last one that is complete [T, K], that row [K],
    and for the K rows after it the codes [K, K] that are already said, -1 where one is yet to be drawn.

    With no frames that is the beginning: nothing before it, the all-BOS row, and BOS where a codebook has not begun.
    """
    books, frames = codes.shape
    rows = build_delay(codes, bos=bos, eos=-1)
    ahead = np.full((books, books), -1, dtype=np.int16)
    ahead[: books - 1] = rows[frames + 1 : frames + books]
    return rows[:frames], rows[frames], ahead


def revert_delay(rows: Codes, *, bos: int, eos: int) -> Codes:
    """Delayed rows [R, K], the first of them all BOS, to the codes [K, T] that are complete in them.

    The sound ends before the first frame in which any codebook says EOS. A BOS inside a frame is no code; it becomes the
    last code, as in transformers' `batch_decode`.
    """
    count, books = rows.shape
    frames = max(count - books, 0)
    codes = np.empty((books, frames), dtype=np.int16)
    for book in range(books):
        codes[book] = rows[book + 1 : book + 1 + frames, book]
    ends = (codes == eos).any(axis=0)
    if ends.any():
        codes = codes[:, : int(ends.argmax())]
    return np.minimum(codes, bos - 1)


class DelayReverter:
    """`revert_delay` row by row. Push every row after the all-BOS row; a frame [K] is complete K rows after it began."""

    def __init__(self, num_codebooks: int, *, bos: int, eos: int) -> None:
        self._bos, self._eos = bos, eos
        self._books = num_codebooks
        self._rows: Codes = np.zeros((num_codebooks, num_codebooks), dtype=np.int16)  # a ring of the last K rows
        self._diagonal = np.arange(num_codebooks)
        self._count = 0
        self.ended = False
        """Whether a frame with an EOS was seen; no frame comes after it."""

    def push(self, row: Codes) -> Codes | None:
        """Take a delayed row [K]; return the frame [K] that it completes, if it does."""
        books = self._books
        self._rows[self._count % books] = row
        self._count += 1
        if self.ended or self._count < books:
            return None
        # Codebook k of the frame stands k rows after the ring's oldest row.
        frame = self._rows[(self._count + self._diagonal) % books, self._diagonal]
        if (frame == self._eos).any():
            self.ended = True
            return None
        return np.minimum(frame, self._bos - 1).astype(np.int16)
