"""Triton kernels for what stands around a decode step's layers: the rows that it feeds, and those that it draws.

The sampler's torch functions are some seventy launches of a captured step, each of a few thousand numbers; here they are three, which do
the same in the same order. `start` reads each line's last row from the tables and makes it what the layers take; `draw` is
`sampling.Sampler.sample`: a program for each codebook of each line draws its code, and one for each line puts them together and moves the
tables on.

Shapes: R lines of the tables, K codebooks, V codes, H hidden numbers, D those of a head; ``index`` [R] which lines, ``nobody`` the one
that pads a batch, any number of times, and that is left as it is.
"""

from __future__ import annotations

import typing
from collections.abc import Callable
from itertools import product

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from ..config import Sampling
from .kernels import _launch, _launched  # pyright: ignore[reportPrivateUsage]
from .sampling import BLOCK, EOS_AGE, LAST, NOTHING, POSITION, PRODUCED, Sampler

PART = 512
"""Hidden numbers of a row that one program adds up."""
DRAWS = (
    (0.7, None, 0.95),
    (1.0, 50, 0.95),
    (1.5, 3, 1.0),
    (1.3, None, 1.0),
    (0.0, None, 1.0),
    (1.0, 1, 1.0),
    (0.9, 200, 0.3),
)
"""Temperatures, top-k and top-p that `otherwise` looks at."""


@triton.jit
def _start(  # pyright: ignore[reportUnknownParameterType]
    ints: typing.Any,
    index: typing.Any,
    embedding: typing.Any,
    cos: typing.Any,
    sin: typing.Any,
    x: typing.Any,
    cosines: typing.Any,
    sines: typing.Any,
    positions: typing.Any,
    width: typing.Any,
    H: typing.Any,  # noqa: N803
    V: typing.Any,  # noqa: N803
    K: tl.constexpr,  # noqa: N803
    D: tl.constexpr,  # noqa: N803
    PART: tl.constexpr,  # noqa: N803
    POSITION: tl.constexpr,  # noqa: N803
    LAST: tl.constexpr,  # noqa: N803
):
    row, part = tl.program_id(0), tl.program_id(1)
    state = ints + tl.load(index + row) * width
    h = part * PART + tl.arange(0, PART)
    total = tl.zeros([PART], tl.float32)
    for book in tl.static_range(K):
        code = tl.load(state + LAST + book)
        total += tl.load(embedding + (code + book * V) * H + h, mask=h < H, other=0.0).to(tl.float32)
    tl.store(x + row * H + h, total.to(x.dtype.element_ty), mask=h < H)
    if part == 0:
        position, d = tl.load(state + POSITION), tl.arange(0, D)
        tl.store(positions + row, position)
        tl.store(cosines + row * D + d, tl.load(cos + position * D + d))
        tl.store(sines + row * D + d, tl.load(sin + position * D + d))


@triton.jit
def _ordered(x: typing.Any):  # pyright: ignore[reportUnknownParameterType]
    """Between floats and whole numbers that are in the same order, either way."""
    return x ^ ((x >> 31) & 0x7FFFFFFF)


@triton.jit
def _keys(score: typing.Any, codes: typing.Any):  # pyright: ignore[reportUnknownParameterType]
    """Numbers in the order of scores; of two that are as large the smaller code has the larger one. A code is in the lower half."""
    score = tl.where(score == 0.0, 0.0, score)  # -0 is as large as 0
    return (_ordered(score.to(tl.int32, bitcast=True)).to(tl.int64) << 32) | (0x7FFFFFFF - codes).to(tl.int64)


@triton.jit
def _score(keys: typing.Any):  # pyright: ignore[reportUnknownParameterType]
    return _ordered((keys >> 32).to(tl.int32)).to(tl.float32, bitcast=True)


@triton.jit
def _draw(  # pyright: ignore[reportUnknownParameterType]
    logits: typing.Any,
    ints: typing.Any,
    ahead: typing.Any,
    parameters: typing.Any,
    uniforms: typing.Any,
    index: typing.Any,
    drawn: typing.Any,
    width: typing.Any,
    V: typing.Any,  # noqa: N803
    AHEAD: tl.constexpr,  # noqa: N803
    K: tl.constexpr,  # noqa: N803
    CODES: tl.constexpr,  # noqa: N803
    MOST: tl.constexpr,  # noqa: N803
    FEW: tl.constexpr,  # noqa: N803
    WINDOW: tl.constexpr,  # noqa: N803
    SPAN: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
    PRODUCED: tl.constexpr,  # noqa: N803
    LAST: tl.constexpr,  # noqa: N803
    NOTHING: tl.constexpr,  # noqa: N803
):
    row, book = tl.program_id(0), tl.program_id(1)
    if AHEAD:
        gdc_wait()
        gdc_launch_dependents()
    line = tl.load(index + row)
    state = ints + line * width
    produced = tl.load(state + PRODUCED)
    numbers = uniforms + ((line * BLOCK + (produced - 1) % BLOCK) * K + book) * 2
    source = logits + (row * K + book) * V
    v = tl.arange(0, CODES)
    code = tl.load(ahead + (line * K + tl.minimum(produced, K) - 1) * K + book).to(tl.int32)
    if code == NOTHING:
        parameters += line * 5
        temperature = tl.load(parameters)
        if temperature > 0.0:
            top_k, top_p = tl.load(parameters + 1).to(tl.int32), tl.load(parameters + 2)
            # Most codes are sorted, which takes a power of two of them; the few behind these (BOS, EOS) are compared with all.
            i, f = tl.arange(0, MOST), MOST + tl.arange(0, FEW)
            one = tl.div_rn(tl.load(source + i, mask=i < V, other=float("-inf")), temperature)
            two = tl.div_rn(tl.load(source + f, mask=f < V, other=float("-inf")), temperature)
            ones, twos = tl.sort(_keys(one, i), descending=True), _keys(two, f)
            one = _score(ones)
            peak = tl.maximum(tl.max(one, 0), tl.max(two, 0))
            behind = twos[None, :] > ones[:, None]  # [MOST, FEW]: the sorted one is
            among = twos[:, None] > twos[None, :]  # [FEW, FEW]: the second one is
            # Those as probable as the k-th stay.
            place = i + tl.sum(behind.to(tl.int32), 1)
            few = tl.sum((~behind).to(tl.int32), 0) + tl.sum(among.to(tl.int32), 0)
            smallest = tl.max(tl.where(place == top_k - 1, one, float("-inf")), 0)
            smallest = tl.maximum(smallest, tl.max(tl.where(few == top_k - 1, two, float("-inf")), 0))
            one = tl.where(one < smallest, 0.0, tl.exp(one - peak))
            two = tl.where(two < smallest, 0.0, tl.exp(two - peak))
            # What is before each in the order, of all of them.
            before = tl.cumsum(one, 0) - one + tl.sum(tl.where(behind, two[None, :], 0.0), 1)
            first = tl.sum(tl.where(behind, 0.0, one[:, None]), 0) + tl.sum(tl.where(among, two[:, None], 0.0), 0)
            enough = tl.maximum(top_p, 1.2e-38) * (tl.sum(one, 0) + tl.sum(two, 0))
            one = tl.where(before < enough, one, 0.0)
            two = tl.where(first < enough, two, 0.0)
            # The last in the order that has no more before it than the uniform number says.
            reached = tl.load(numbers) * (tl.sum(one, 0) + tl.sum(two, 0))
            chosen = tl.min(tl.where((one > 0.0) & (before <= reached), ones, 0x7FFFFFFFFFFFFFFF), 0)
            chosen = tl.minimum(chosen, tl.min(tl.where((two > 0.0) & (first <= reached), twos, 0x7FFFFFFFFFFFFFFF), 0))
            code = 0x7FFFFFFF - (chosen & 0x7FFFFFFF).to(tl.int32)
        else:
            code = tl.argmax(tl.load(source + v, mask=v < V, other=float("-inf")), 0).to(tl.int32)
        code = tl.minimum(code, V - 1)  # of logits that are no numbers too
        # A line without repetition-aware sampling looks at no row, and at least one repeat is needed.
        w, window, repeats = tl.arange(0, SPAN), tl.load(parameters + 3), tl.load(parameters + 4)
        looked = (w < WINDOW) & (WINDOW - w <= window)
        stood = tl.load(state + LAST + K + w * K + book, mask=looked, other=NOTHING)
        if tl.sum((stood == code).to(tl.int32), 0) >= repeats:
            p = tl.load(source + v, mask=v < V, other=float("-inf"))
            p = tl.exp(p - tl.max(p, 0))
            before = tl.cumsum(p, 0) - p
            reached = tl.load(numbers + 1) * tl.sum(p, 0)
            code = tl.max(tl.where((p > 0.0) & (before <= reached), v, 0), 0)
    tl.store(drawn + row * K + book, code.to(tl.int64))


@triton.jit
def _finish(  # pyright: ignore[reportUnknownParameterType]
    drawn: typing.Any,
    ints: typing.Any,
    index: typing.Any,
    rows: typing.Any,
    nobody: typing.Any,
    width: typing.Any,
    bos: typing.Any,
    eos: typing.Any,
    AHEAD: tl.constexpr,  # noqa: N803
    K: tl.constexpr,  # noqa: N803
    BOOKS: tl.constexpr,  # noqa: N803
    KEPT: tl.constexpr,  # noqa: N803
    WINDOW: tl.constexpr,  # noqa: N803
    PRODUCED: tl.constexpr,  # noqa: N803
    EOS_AGE: tl.constexpr,  # noqa: N803
    POSITION: tl.constexpr,  # noqa: N803
    LAST: tl.constexpr,  # noqa: N803
    NOTHING: tl.constexpr,  # noqa: N803
):
    row = tl.program_id(0)
    if AHEAD:
        gdc_wait()
        gdc_launch_dependents()
    line = tl.load(index + row)
    state = ints + line * width
    book, there = tl.arange(0, BOOKS), tl.arange(0, BOOKS) < K
    age = tl.load(state + EOS_AGE)
    codes = tl.load(drawn + row * K + book, mask=there, other=NOTHING)
    codes = tl.where(book < age, eos, codes)
    # The first codebook that says EOS, where one does.
    first = tl.min(tl.where(there & (codes == eos), book, K), 0)
    begins = (first < K) & (age == 0)
    codes = tl.where(begins & (book < first), eos, codes)
    tl.store(rows + row * K + book, codes, mask=there)
    if line != nobody:
        i = tl.arange(0, KEPT)
        history = state + LAST + K
        older = tl.load(history + K + i, mask=i < (WINDOW - 1) * K, other=NOTHING)
        produced, position = tl.load(state + PRODUCED), tl.load(state + POSITION)
        tl.debug_barrier()  # all of it is read before any of it is written
        tl.store(history + i, older, mask=i < (WINDOW - 1) * K)
        tl.store(history + (WINDOW - 1) * K + book, tl.where(codes >= bos, NOTHING, codes), mask=there)
        tl.store(state + LAST + book, codes, mask=there)
        tl.store(state + PRODUCED, produced + 1)
        tl.store(state + POSITION, position + 1)
        tl.store(state + EOS_AGE, tl.where(begins, first + 1, tl.where(age > 0, age + 1, 0)))


def _padded(count: int) -> int:
    """The next power of two."""
    return 1 << max(count - 1, 0).bit_length()


def shares(codes: int) -> tuple[int, int]:
    """How many codes `draw` sorts, and how many it compares with all of these: powers of two."""
    most = 1 << (codes.bit_length() - 1)
    few = _padded(codes - most)
    return (most, few) if few <= 8 else (2 * most, 1)


def start(
    sampler: Sampler, index: Tensor, embedding: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What the layers take for the rows that lines produced last: their embeddings [R, H], ``cos`` and ``sin`` [R, 1, D] of the tables
    [P, 1, D] at their positions, and these [R]. ``embedding`` [K * V, H]."""
    rows, hidden, dim, device = len(index), embedding.shape[1], cos.shape[-1], index.device
    x = torch.empty((rows, hidden), dtype=embedding.dtype, device=device)
    cosines, sines = (torch.empty((rows, 1, dim), dtype=table.dtype, device=device) for table in (cos, sin))
    positions = torch.empty_like(index)
    _launch(_start, (rows, (hidden + PART - 1) // PART))(
        sampler.ints,
        index,
        embedding,
        cos,
        sin,
        x,
        cosines,
        sines,
        positions,
        sampler.ints.shape[1],
        hidden,
        sampler.vocabulary,
        sampler.num_codebooks,
        dim,
        PART,
        POSITION,
        LAST,
        num_warps=4,
    )
    return x, cosines, sines, positions


def draw(sampler: Sampler, logits: Tensor, index: Tensor, nobody: int, *, ahead: bool = False) -> Tensor:
    """`Sampler.sample`: the next rows [R, K] of lines from ``logits`` [R, K, V] float32, for whatever settings the lines have.

    The same but for rounding, where a uniform number is next to a border between two codes. ``ahead``: as for `kernels.project`.
    """
    rows, books, codes = logits.shape
    width, window = sampler.ints.shape[1], sampler.window
    drawn, out = (torch.empty((rows, books), dtype=torch.int64, device=logits.device) for _ in range(2))
    _launch(_draw, (rows, books))(
        logits.contiguous(),
        sampler.ints,
        sampler.ahead,
        sampler.parameters,
        sampler.uniforms,
        index,
        drawn,
        width,
        codes,
        ahead,
        books,
        _padded(codes),
        *shares(codes),
        window,
        _padded(window),
        BLOCK,
        PRODUCED,
        LAST,
        NOTHING,
        num_warps=8,
        **_launched(ahead),
    )
    _launch(_finish, (rows,))(
        drawn,
        sampler.ints,
        index,
        out,
        nobody,
        width,
        sampler.bos,
        sampler.eos,
        ahead,
        books,
        _padded(books),
        _padded((window - 1) * books),
        window,
        PRODUCED,
        EOS_AGE,
        POSITION,
        LAST,
        NOTHING,
        num_warps=4,
        **_launched(ahead),
    )
    return out


def otherwise(make: Callable[..., Sampler], device: torch.device, *, ahead: bool = False, steps: int = 4) -> float:
    """Share of codes that `draw` draws otherwise than `Sampler.sample` from the same logits and tables, for lines of many settings in
    one batch, with nobody's beside them; 1 where the tables are not moved on alike. ``make`` gives a sampler by ``count`` and
    ``device``."""
    rng = np.random.default_rng(0)
    settings = [
        Sampling(temperature=temperature, top_k=top_k, top_p=top_p, ras_win_len=window, ras_win_max_num_repeat=repeats)
        for (temperature, top_k, top_p), (window, repeats) in product(DRAWS, ((None, 1), (7, 2), (3, 1)))
    ]
    lines, nobody = len(settings), len(settings)
    ours, theirs = (make(count=lines + 1, device=device) for _ in range(2))
    books, codes = ours.num_codebooks, ours.vocabulary
    for line, sampling in enumerate([*settings, Sampling()]):
        past = rng.integers(0, min(codes, 8), size=(30, books)).astype(np.int16)
        spoken = rng.integers(0, ours.bos, size=(books, line % 5)).astype(np.int16) if line % 2 else None
        numbers = rng.bit_generator.state
        for sampler in (ours, theirs):
            rng.bit_generator.state = numbers
            sampler.begin(line, sampling, past, 100 + line, spoken)
            sampler.refill(line, rng)
            if line < nobody and not line % 2:  # as in the middle of a chunk, where repetitions count
                sampler.ahead[line] = NOTHING
                stood = rng.integers(0, min(codes, 8), size=sampler.window * books)
                sampler.ints[line, sampler.history :] = torch.from_numpy(stood).to(device)
    index = torch.tensor([*range(lines), nobody, nobody], device=device)
    kept, wrong = ours.ints[nobody].clone(), 0.0
    for step in range(steps):
        logits = torch.from_numpy(rng.normal(0, 2, size=(lines + 2, books, codes)).astype(np.float32))
        logits[:, :, :8] += (2.0, 5.0)[step % 2]  # codes that come again
        logits[:, ::2] = (logits[:, ::2] * 2).round() / 2  # and that are as probable as others
        logits[step::2, :, ours.bos :] += 4.0
        logits[step::5, step % books, ours.eos] += 20.0
        logits = logits.to(device)
        found = draw(ours, logits, index, nobody, ahead=ahead)[:lines]
        wanted = theirs.sample(logits[:lines], theirs.gather(index[:lines]))
        alike = (found == wanted).all(dim=1)
        if not (
            torch.equal(ours.ints[:lines][alike], theirs.ints[:lines][alike]) and torch.equal(ours.ints[nobody], kept)
        ):
            return 1.0
        wrong += float((found != wanted).float().mean().item()) / steps
        ours.ints[:lines] = theirs.ints[:lines]
    return wrong
