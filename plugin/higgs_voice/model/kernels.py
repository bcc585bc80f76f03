"""Triton kernels of a decode step over paged keys and values.

One row for each of R contexts. `store` rotates the new row's queries and keys and puts keys and values into their page;
`attend` reads each context's pages, several programs side by side over one context, and joins what they found. Nothing
depends on a length that the host knows, so both can be part of a captured graph: lengths come from ``positions`` and pages
from ``table``, both on the device.

Shapes: ``qkv`` [R, HQ + 2 H, D]; ``cos``, ``sin`` [R, D]; ``lines``, ``positions`` [R]; ``table`` [lines, pages] int32; ``keys``,
``values`` [pages, H, PAGE, D]. D is a power of two.

`project` multiplies a few rows by weights of eight bits, which are made floats where they are multiplied: a product reads one
byte a weight.

Triton's compiler looks the parameters' annotations up among a module's constants, where a class is none: they are `typing.Any`
spelled out. Its interpreter does not look; `tests/model/test_kernels.py` compiles them for GPUs, which takes none.
"""

from __future__ import annotations

import typing

import torch
import triton
import triton.language as tl
from torch import Tensor

SPLITS = 16
"""Programs that share one context and key head."""


@triton.jit
def _store(  # pyright: ignore[reportUnknownParameterType]
    qkv: typing.Any,
    cos: typing.Any,
    sin: typing.Any,
    lines: typing.Any,
    positions: typing.Any,
    table: typing.Any,
    keys: typing.Any,
    values: typing.Any,
    query: typing.Any,
    table_width: typing.Any,
    HQ: tl.constexpr,  # noqa: N803
    H: tl.constexpr,  # noqa: N803
    D: tl.constexpr,  # noqa: N803
    PAGE: tl.constexpr,  # noqa: N803
):
    row, head = tl.program_id(0), tl.program_id(1)
    d = tl.arange(0, D)
    source = qkv + (row * (HQ + 2 * H) + head) * D
    x = tl.load(source + d)
    if head < HQ + H:
        rolled = tl.load(source + (d + D // 2) % D).to(tl.float32)
        turned = x.to(tl.float32) * tl.load(cos + row * D + d).to(tl.float32)
        x = (turned + rolled * tl.load(sin + row * D + d).to(tl.float32)).to(x.dtype)
    if head < HQ:
        tl.store(query + (row * HQ + head) * D + d, x)
    else:
        position = tl.load(positions + row)
        page = tl.load(table + tl.load(lines + row) * table_width + position // PAGE).to(tl.int64)
        place = ((page * H + (head - HQ) % H) * PAGE + position % PAGE) * D
        if head < HQ + H:
            tl.store(keys + place + d, x)
        else:
            tl.store(values + place + d, x)


@triton.jit
def _attend(  # pyright: ignore[reportUnknownParameterType]
    query: typing.Any,
    keys: typing.Any,
    values: typing.Any,
    lines: typing.Any,
    positions: typing.Any,
    table: typing.Any,
    sums: typing.Any,
    peaks: typing.Any,
    weights: typing.Any,
    table_width: typing.Any,
    scale: typing.Any,
    H: tl.constexpr,  # noqa: N803
    G: tl.constexpr,  # noqa: N803
    ROWS: tl.constexpr,  # noqa: N803
    D: tl.constexpr,  # noqa: N803
    PAGE: tl.constexpr,  # noqa: N803
    SPLITS: tl.constexpr,  # noqa: N803
):
    row, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length = tl.load(positions + row) + 1
    line = tl.load(lines + row) * table_width
    # The queries of a key head's group, padded to what a matrix unit takes.
    g, d, n = tl.arange(0, ROWS), tl.arange(0, D), tl.arange(0, PAGE)
    q = tl.load(query + ((row * H + head) * G + g)[:, None] * D + d[None, :], mask=(g < G)[:, None], other=0.0)
    peak = tl.full([ROWS], float("-inf"), tl.float32)
    weight = tl.zeros([ROWS], tl.float32)
    total = tl.zeros([ROWS, D], tl.float32)
    for index in range(split, tl.cdiv(length, PAGE), SPLITS):
        page = tl.load(table + line + index).to(tl.int64)
        place = (page * H + head) * PAGE * D + n[:, None] * D + d[None, :]
        k = tl.load(keys + place)
        s = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        s = tl.where((index * PAGE + n < length)[None, :], s, float("-inf"))
        higher = tl.maximum(peak, tl.max(s, 1))
        p = tl.exp(s - higher[:, None])
        fade = tl.exp(peak - higher)
        weight = weight * fade + tl.sum(p, 1)
        v = tl.load(values + place)
        total = total * fade[:, None] + tl.dot(p.to(v.dtype), v, input_precision="ieee")
        peak = higher
    part = ((row * H + head) * SPLITS + split) * ROWS + g
    tl.store(sums + part[:, None] * D + d[None, :], total)
    tl.store(peaks + part, peak)
    tl.store(weights + part, weight)


@triton.jit
def _join(  # pyright: ignore[reportUnknownParameterType]
    sums: typing.Any,
    peaks: typing.Any,
    weights: typing.Any,
    out: typing.Any,
    H: tl.constexpr,  # noqa: N803
    G: tl.constexpr,  # noqa: N803
    ROWS: tl.constexpr,  # noqa: N803
    D: tl.constexpr,  # noqa: N803
    SPLITS: tl.constexpr,  # noqa: N803
):
    row, head = tl.program_id(0), tl.program_id(1)
    split, d = tl.arange(0, SPLITS), tl.arange(0, D)
    part = ((row * H + head // G) * SPLITS + split) * ROWS + head % G
    # A split without a page has peak -inf, which leaves it out; the first one always has a page.
    peak = tl.load(peaks + part)
    share = tl.exp(peak - tl.max(peak, 0))
    weight = tl.sum(share * tl.load(weights + part), 0)
    total = tl.sum(share[:, None] * tl.load(sums + part[:, None] * D + d[None, :]), 0)
    place = out + (row * H * G + head) * D + d
    tl.store(place, (total / weight).to(out.dtype.element_ty))


@triton.jit(do_not_specialize=["rows"])  # a compilation for one row, for sixteen and for the others would be three
def _project(  # pyright: ignore[reportUnknownParameterType]
    x: typing.Any,
    weight: typing.Any,
    scale: typing.Any,
    residual: typing.Any,
    out: typing.Any,
    rows: typing.Any,
    N: typing.Any,  # noqa: N803
    K: typing.Any,  # noqa: N803
    ADD: tl.constexpr,  # noqa: N803
    ROWS: tl.constexpr,  # noqa: N803
    OUTPUTS: tl.constexpr,  # noqa: N803
    DEPTH: tl.constexpr,  # noqa: N803
):
    r = tl.arange(0, ROWS)
    n = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    total = tl.zeros([ROWS, OUTPUTS], tl.float32)
    for start in range(0, K, DEPTH):
        k = start + tl.arange(0, DEPTH)
        here = tl.load(x + r[:, None] * K + k[None, :], mask=(r < rows)[:, None] & (k < K)[None, :], other=0.0)
        w = tl.load(weight + n[:, None] * K + k[None, :], mask=(n < N)[:, None] & (k < K)[None, :], other=0)
        total += tl.dot(here, tl.trans(w.to(here.dtype)), input_precision="ieee")
    total = total * tl.load(scale + n, mask=n < N, other=0.0)[None, :]
    place, there = r[:, None] * N + n[None, :], (r < rows)[:, None] & (n < N)[None, :]
    if ADD:
        total += tl.load(residual + place, mask=there, other=0.0).to(tl.float32)
    tl.store(out + place, total.to(out.dtype.element_ty), mask=there)


@triton.jit
def _probe(out: typing.Any, N: tl.constexpr):  # noqa: N803  # pyright: ignore[reportUnknownParameterType]
    n = tl.arange(0, N)
    tl.store(out + n, n)


def _launch(kernel: typing.Any, grid: tuple[int, ...]) -> typing.Any:
    """A kernel over a grid; its launch takes options that its signature does not name."""
    return kernel[grid]


def probe(device: torch.device) -> bool:
    """Whether a kernel is compiled, runs and is right."""
    out = torch.zeros(16, dtype=torch.int32, device=device)
    _launch(_probe, (1,))(out, 16)
    return out.tolist() == list(range(16))


def store(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    lines: Tensor,
    positions: Tensor,
    table: Tensor,
    keys: Tensor,
    values: Tensor,
) -> Tensor:
    """Rotate and put away the new rows; the rotated queries [R, HQ, D]."""
    _, heads, page, dim = keys.shape
    rows, heads_q = qkv.shape[0], qkv.shape[1] - 2 * heads
    query = torch.empty((rows, heads_q, dim), dtype=qkv.dtype, device=qkv.device)
    _launch(_store, (rows, heads_q + 2 * heads))(
        qkv,
        cos,
        sin,
        lines,
        positions,
        table,
        keys,
        values,
        query,
        table.shape[1],
        heads_q,
        heads,
        dim,
        page,
        num_warps=1,
    )
    return query


def attend(query: Tensor, lines: Tensor, positions: Tensor, table: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attention of one row over its context, its own row included: [R, HQ * D]."""
    _, heads, page, dim = keys.shape
    rows, heads_q, _ = query.shape
    group = heads_q // heads
    padded = max(16, 1 << (group - 1).bit_length())
    parts = (rows, heads, SPLITS, padded)
    sums = torch.empty((*parts, dim), dtype=torch.float32, device=query.device)
    peaks, weights = (torch.empty(parts, dtype=torch.float32, device=query.device) for _ in range(2))
    _launch(_attend, (rows, heads, SPLITS))(
        query,
        keys,
        values,
        lines,
        positions,
        table,
        sums,
        peaks,
        weights,
        table.shape[1],
        dim**-0.5,
        heads,
        group,
        padded,
        dim,
        page,
        SPLITS,
        num_warps=4,
    )
    out = torch.empty((rows, heads_q * dim), dtype=query.dtype, device=query.device)
    _launch(_join, (rows, heads_q))(sums, peaks, weights, out, heads, group, padded, dim, SPLITS, num_warps=4)
    return out


def stages(size: int) -> int:
    """How many loads of `project` are under way at once, for numbers of so many bytes: what a consumer's GPU has shared memory
    for."""
    return 4 if size == 2 else 2


def project(x: Tensor, weight: Tensor, scale: Tensor, residual: Tensor | None = None) -> Tensor:
    """x Wᵀ times ``scale``, plus ``residual``: [R, K] by int8 [N, K] to [R, N]. Sums are float32, rounded once."""
    (rows, depth), outputs = x.shape, weight.shape[0]
    out = torch.empty((rows, outputs), dtype=x.dtype, device=x.device)
    # Few outputs are shared by more programs, so that all of the GPU reads.
    block = 16 if outputs <= 8192 else 32
    _launch(_project, ((outputs + block - 1) // block,))(
        x.contiguous(),
        weight,
        scale,
        out if residual is None else residual.contiguous(),
        out,
        rows,
        outputs,
        depth,
        residual is not None,
        max(16, 1 << (rows - 1).bit_length()),
        block,
        128,
        num_warps=4,
        num_stages=stages(x.element_size()),
    )
    return out
