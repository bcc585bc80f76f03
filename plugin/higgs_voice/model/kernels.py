"""Triton kernels of a decode step over paged keys and values.

One row for each of R contexts. `store` rotates the new row's queries and keys and puts keys and values into their page;
`attend` reads each context's pages, several programs side by side over one context, and joins what they found. Nothing
depends on a length that the host knows, so both can be part of a captured graph: lengths come from ``positions`` and pages
from ``table``, both on the device.

Shapes: ``qkv`` [R, HQ + 2 H, D]; ``cos``, ``sin`` [R, D]; ``lines``, ``positions`` [R]; ``table`` [lines, pages] int32; ``keys``,
``values`` [pages, H, PAGE, D]. D is a power of two.

`project` multiplies a few rows by weights, together with the norm before and what is done to the product after it. Weights of eight
bits are made floats where they are multiplied, so that a product reads one byte a weight.

Triton's compiler looks the parameters' annotations up among a module's constants, where a class is none: they are `typing.Any`
spelled out. Its interpreter does not look; `tests/model/test_kernels.py` compiles them for GPUs, which takes none.
"""

from __future__ import annotations

import typing

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

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
    cos: typing.Any,
    sin: typing.Any,
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
    NEW: tl.constexpr,  # noqa: N803
    AHEAD: tl.constexpr,  # noqa: N803
    H: tl.constexpr,  # noqa: N803
    G: tl.constexpr,  # noqa: N803
    ROWS: tl.constexpr,  # noqa: N803
    D: tl.constexpr,  # noqa: N803
    PAGE: tl.constexpr,  # noqa: N803
    SPLITS: tl.constexpr,  # noqa: N803
):
    row, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    if AHEAD:
        gdc_wait()
        gdc_launch_dependents()
    length = tl.load(positions + row) + 1
    line = tl.load(lines + row) * table_width
    # The queries of a key head's group, padded to what a matrix unit takes.
    g, d, n = tl.arange(0, ROWS), tl.arange(0, D), tl.arange(0, PAGE)
    heads = H * G + 2 * H if NEW else H * G
    mine = query + (row * heads + head * G + g)[:, None] * D
    q = tl.load(mine + d[None, :], mask=(g < G)[:, None], other=0.0)
    if NEW:
        # `query` is qkv before rotation. Whoever of the splits has the last page puts the new row into it; nobody reads it from there.
        cosine, sine = tl.load(cos + row * D + d).to(tl.float32), tl.load(sin + row * D + d).to(tl.float32)
        turned = (d + D // 2) % D
        rolled = tl.load(mine + turned[None, :], mask=(g < G)[:, None], other=0.0).to(tl.float32)
        q = (q.to(tl.float32) * cosine[None, :] + rolled * sine[None, :]).to(q.dtype)
        own = query + (row * heads + H * G + head) * D
        fresh = tl.load(own + d).to(tl.float32) * cosine + tl.load(own + turned).to(tl.float32) * sine
        fresh = fresh.to(keys.dtype.element_ty)
        value = tl.load(own + H * D + d).to(values.dtype.element_ty)
        last = (length - 1) // PAGE
        if last % SPLITS == split:
            page = tl.load(table + line + last).to(tl.int64)
            where = ((page * H + head) * PAGE + (length - 1) % PAGE) * D
            tl.store(keys + where + d, fresh)
            tl.store(values + where + d, value)
    peak = tl.full([ROWS], float("-inf"), tl.float32)
    weight = tl.zeros([ROWS], tl.float32)
    total = tl.zeros([ROWS, D], tl.float32)
    for index in range(split, tl.cdiv(length, PAGE), SPLITS):
        page = tl.load(table + line + index).to(tl.int64)
        place = (page * H + head) * PAGE * D + n[:, None] * D + d[None, :]
        k = tl.load(keys + place)
        if NEW:
            k = tl.where((index * PAGE + n == length - 1)[:, None], fresh[None, :], k)
        s = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        s = tl.where((index * PAGE + n < length)[None, :], s, float("-inf"))
        higher = tl.maximum(peak, tl.max(s, 1))
        p = tl.exp(s - higher[:, None])
        fade = tl.exp(peak - higher)
        weight = weight * fade + tl.sum(p, 1)
        v = tl.load(values + place)
        if NEW:
            v = tl.where((index * PAGE + n == length - 1)[:, None], value[None, :], v)
        total = total * fade[:, None] + tl.dot(p.to(v.dtype), v, input_precision="ieee")
        peak = higher
    part = ((row * H + head) * SPLITS + split) * G + g
    tl.store(sums + part[:, None] * D + d[None, :], total, mask=(g < G)[:, None])
    tl.store(peaks + part, peak, mask=g < G)
    tl.store(weights + part, weight, mask=g < G)


@triton.jit
def _join(  # pyright: ignore[reportUnknownParameterType]
    sums: typing.Any,
    peaks: typing.Any,
    weights: typing.Any,
    out: typing.Any,
    AHEAD: tl.constexpr,  # noqa: N803
    H: tl.constexpr,  # noqa: N803
    G: tl.constexpr,  # noqa: N803
    D: tl.constexpr,  # noqa: N803
    SPLITS: tl.constexpr,  # noqa: N803
):
    row, head = tl.program_id(0), tl.program_id(1)
    if AHEAD:
        gdc_wait()
        gdc_launch_dependents()
    split, d = tl.arange(0, SPLITS), tl.arange(0, D)
    part = ((row * H + head // G) * SPLITS + split) * G + head % G
    # A split without a page has peak -inf, which leaves it out; the first one always has a page.
    peak = tl.load(peaks + part)
    share = tl.exp(peak - tl.max(peak, 0))
    weight = tl.sum(share * tl.load(weights + part), 0)
    total = tl.sum(share[:, None] * tl.load(sums + part[:, None] * D + d[None, :]), 0)
    place = out + (row * H * G + head) * D + d
    tl.store(place, (total / weight).to(out.dtype.element_ty))


@triton.jit
def _fetch(lines: typing.Any):  # pyright: ignore[reportUnknownParameterType]
    """Bring lines of 128 bytes into the second-level cache, without waiting for them."""
    tl.inline_asm_elementwise("prefetch.global.L2 [$1]; // $0", "=r,l", [lines], dtype=tl.int32, is_pure=False, pack=1)


@triton.jit(do_not_specialize=["rows"])  # a compilation for one row, for sixteen and for the others would be three
def _project(  # pyright: ignore[reportUnknownParameterType]
    x: typing.Any,
    norm: typing.Any,
    weight: typing.Any,
    scale: typing.Any,
    residual: typing.Any,
    out: typing.Any,
    rows: typing.Any,
    N: typing.Any,  # noqa: N803
    K: typing.Any,  # noqa: N803
    eps: typing.Any,
    NORM: tl.constexpr,  # noqa: N803
    SCALED: tl.constexpr,  # noqa: N803
    GATED: tl.constexpr,  # noqa: N803
    ADD: tl.constexpr,  # noqa: N803
    AHEAD: tl.constexpr,  # noqa: N803
    ROWS: tl.constexpr,  # noqa: N803
    OUTPUTS: tl.constexpr,  # noqa: N803
    DEPTH: tl.constexpr,  # noqa: N803
):
    r = tl.arange(0, ROWS)
    n = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    if AHEAD:
        # No kernel writes weights: the first of them are on their way while the kernel before ends.
        line: tl.constexpr = 1024 // weight.dtype.element_ty.primitive_bitwidth
        pieces: tl.constexpr = 4 * DEPTH // line
        first = tl.minimum(tl.arange(0, pieces) * line, K - 1)
        lines = weight + tl.minimum(n, N - 1)[:, None] * K + first[None, :]
        _fetch(lines)
        if GATED:
            _fetch(lines + N * K)
        gdc_wait()
        gdc_launch_dependents()
    total = tl.zeros([ROWS, OUTPUTS], tl.float32)
    upper = tl.zeros([ROWS, OUTPUTS], tl.float32)
    squares = tl.zeros([ROWS], tl.float32)
    for start in range(0, K, DEPTH):
        k = start + tl.arange(0, DEPTH)
        here = tl.load(x + r[:, None] * K + k[None, :], mask=(r < rows)[:, None] & (k < K)[None, :], other=0.0)
        place, there = n[:, None] * K + k[None, :], (n < N)[:, None] & (k < K)[None, :]
        w = tl.load(weight + place, mask=there, other=0)
        if GATED:
            u = tl.load(weight + N * K + place, mask=there, other=0)
        if NORM:
            # The length, by which a norm divides, is known at the end only, and divides the sums as well.
            exact = here.to(tl.float32)
            squares += tl.sum(exact * exact, 1)
            here = (exact * tl.load(norm + k, mask=k < K, other=0.0).to(tl.float32)[None, :]).to(here.dtype)
        total = tl.dot(here, tl.trans(w.to(here.dtype)), total, input_precision="ieee")
        if GATED:
            upper = tl.dot(here, tl.trans(u.to(here.dtype)), upper, input_precision="ieee")
    if NORM:
        length = tl.rsqrt(squares / K + eps)[:, None]
        total *= length
        upper *= length
    if SCALED:
        total *= tl.load(scale + n, mask=n < N, other=0.0)[None, :]
        if GATED:
            upper *= tl.load(scale + N + n, mask=n < N, other=0.0)[None, :]
    if GATED:
        total *= upper * tl.sigmoid(total)
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


def _launched(ahead: bool) -> dict[str, bool]:
    """Of a launch: whether it may begin before the kernel before it has ended. Only GPUs that can take the option."""
    return {"launch_pdl": True} if ahead else {}


def can_overlap(device: torch.device) -> bool:
    """Whether a GPU begins a kernel before the one before it has ended (programmatic dependent launch, since Hopper), in a captured
    graph too (since CUDA 12.3)."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (9, 0):
        return False
    return torch._C._cuda_getDriverVersion() >= 12030  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]


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


def pages_ahead(size: int) -> int:
    """Pages that `attend` has under way, for numbers of so many bytes: what a consumer's GPU has shared memory for."""
    return 3 if size == 2 else 1


def attend(
    query: Tensor,
    lines: Tensor,
    positions: Tensor,
    table: Tensor,
    keys: Tensor,
    values: Tensor,
    rotary: tuple[Tensor, Tensor] | None = None,
    *,
    ahead: bool = False,
) -> Tensor:
    """Attention of one row over its context, its own row included: [R, HQ * D].

    ``query`` [R, HQ, D] is what `store` gave. With ``rotary``, ``cos`` and ``sin``, it is ``qkv``, and what `store` does is done here: one
    launch less, where no row looks at another one's. ``ahead``: as for `project`.
    """
    _, heads, page, dim = keys.shape
    rows, heads_q = query.shape[0], query.shape[1] - (2 * heads if rotary is not None else 0)
    group = heads_q // heads
    cos, sin = rotary if rotary is not None else (query, query)
    parts = (rows, heads, SPLITS, group)
    sums = torch.empty((*parts, dim), dtype=torch.float32, device=query.device)
    peaks, weights = (torch.empty(parts, dtype=torch.float32, device=query.device) for _ in range(2))
    _launch(_attend, (rows, heads, SPLITS))(
        query,
        cos,
        sin,
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
        rotary is not None,
        ahead,
        heads,
        group,
        max(16, 1 << (group - 1).bit_length()),
        dim,
        page,
        SPLITS,
        num_warps=4,
        num_stages=pages_ahead(keys.element_size()),
        **_launched(ahead),
    )
    out = torch.empty((rows, heads_q * dim), dtype=query.dtype, device=query.device)
    _launch(_join, (rows, heads_q))(
        sums, peaks, weights, out, ahead, heads, group, dim, SPLITS, num_warps=4, **_launched(ahead)
    )
    return out


def tiles(rows: int, outputs: int, size: int) -> tuple[int, int, int, int]:
    """Of `project`, for weights of so many bytes: rows, outputs and depth of a program's tile, and how many loads are under way at once.

    A step is bound by reading weights. Enough of them are under way when a few megabytes are, over all programs; a program has shared
    memory for what a consumer's GPU has.
    """
    padded = max(16, 1 << (rows - 1).bit_length())
    # Few outputs are shared by more programs, so that all of the GPU reads.
    block = 16 if outputs <= 8192 else 32
    if size == 4:
        return padded, block, 64, 2
    return padded, block, 256 if padded == 16 else 128, 4 if padded <= 32 else 3


def project(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    norm: Tensor | None = None,
    eps: float = 0.0,
    gated: bool = False,
    dtype: torch.dtype | None = None,
    ahead: bool = False,
) -> Tensor:
    """x Wᵀ of few rows, in one launch with what stands around it: [R, K] by [N, K] to [R, N] in ``dtype``, that of x where it is None.

    ``norm`` [K]: x is normalised first, by its root mean square with ``eps``, and multiplied by this. ``scale`` [N]: of int8 weights.
    ``gated``: the weights are those of a gate and, behind them, as many others; silu of the one times the other, [R, N / 2].
    ``residual`` is added. ``ahead``, where `can_overlap` says so: it begins before the kernel before it has ended, fetches weights meanwhile,
    and waits for that one's results; that one must be of these kernels with ``ahead``, or end by itself. Sums are float32, rounded once.
    """
    (rows, depth), outputs = x.shape, weight.shape[0] // (2 if gated else 1)
    out = torch.empty((rows, outputs), dtype=dtype or x.dtype, device=x.device)
    padded, block, piece, loads = tiles(rows, outputs, x.element_size())
    _launch(_project, ((outputs + block - 1) // block,))(
        x.contiguous(),
        x if norm is None else norm,
        weight,
        x if scale is None else scale,
        out if residual is None else residual.contiguous(),
        out,
        rows,
        outputs,
        depth,
        eps,
        norm is not None,
        scale is not None,
        gated,
        residual is not None,
        ahead,
        padded,
        block,
        piece,
        num_warps=4,
        num_stages=loads,
        **_launched(ahead),
    )
    return out
