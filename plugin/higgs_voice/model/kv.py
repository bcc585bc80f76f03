"""Keys and values of contexts: a pool, its slots, and which rows each slot holds.

A slot is one context's state and nothing but a cache of it: `KvSlot.rows` says which rows its keys and values belong to,
so whoever wants another context there finds the longest common prefix, crops to it and prefills the rest. A pool has a
limit; a slot that asks for more than is left gets `EngineBusyError`, and no other slot notices.

Two kinds: `ContiguousPool` keeps a tensor a slot (CPU), `PagedPool` pages of rows and a table (CUDA graphs need storage
that stays where it is; pages of a shared prefix are held once).
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..captured import sent
from ..errors import EngineBusyError, SettingsError
from .prompt import Rows

PAGE = 64
"""Rows in a page."""
FIRST_CAPACITY = 256
"""Rows a contiguous slot starts with; it doubles from there."""
_switching = threading.Lock()
"""Held while torch's choice of kernels for attention is changed: it is the process's."""


@dataclass(frozen=True, slots=True)
class KvShape:
    """What a row's keys and values look like."""

    layers: int
    heads: int
    """Key and value heads."""
    head_dim: int
    dtype: torch.dtype
    """In which they are kept, and attention computed; the model's, or a smaller one on a CPU."""
    device: torch.device
    num_codebooks: int

    @property
    def bytes_per_row(self) -> int:
        return self.layers * 2 * self.heads * self.head_dim * self.dtype.itemsize


class Attend(Protocol):
    """Attention of one forward pass; it also stores the new rows' keys and values."""

    def __call__(self, layer: int, qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """``qkv`` [R, heads_q + 2 heads_kv, D] before rotation, ``cos`` and ``sin`` [R, 1, D] (``sin`` with the sign of
        `rotate`); the result is [R, heads_q * D]. ``qkv`` may be written over."""
        ...


def rotate(x: Tensor, cos: Tensor, sin: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Rotary embedding of [R, H, D]. The first half of ``sin`` is negated, so a roll stands for rotate_half. ``out`` may be
    ``x`` itself."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin, out=out)


class KvSlot:
    """One context's place in a pool. Made by `KvPool.acquire`; `release` gives it back."""

    def __init__(self, pool: KvPool, index: int, num_codebooks: int) -> None:
        self._pool = pool
        self.index = index
        """Which slot of the pool it is; stable until it is released."""
        self.length = 0
        """Rows held."""
        self._tokens = np.zeros(FIRST_CAPACITY, dtype=np.int32)
        self._codes = np.zeros((FIRST_CAPACITY, num_codebooks), dtype=np.int16)
        self._audio = np.zeros(FIRST_CAPACITY, dtype=np.bool_)

    @property
    def rows(self) -> Rows:
        """The rows that the keys and values belong to; a view, good until the slot changes."""
        return Rows(self._tokens[: self.length], self._codes[: self.length], self._audio[: self.length])

    def reserve(self, length: int) -> None:
        """Make room for ``length`` rows in all. Errors: `EngineBusyError`; the slot is then as it was."""
        self._pool.reserve(self, length)

    def append(self, rows: Rows) -> None:
        """Note rows whose keys and values were stored behind those held."""
        end = self.length + len(rows)
        if end > len(self._tokens):
            capacity = max(2 * len(self._tokens), end)
            self._tokens = np.resize(self._tokens, capacity)
            self._codes = np.resize(self._codes, (capacity, self._codes.shape[1]))
            self._audio = np.resize(self._audio, capacity)
        self._tokens[self.length : end] = rows.tokens
        self._codes[self.length : end] = rows.codes
        self._audio[self.length : end] = rows.audio
        self.length = end

    def append_audio(self, row: np.ndarray, token: int) -> None:
        """`append` of one delayed row [K]."""
        if self.length == len(self._tokens):
            self.append(Rows.of_audio(row[None], token))
            return
        self._tokens[self.length] = token
        self._codes[self.length] = row
        self._audio[self.length] = True
        self.length += 1

    def crop(self, length: int) -> None:
        """Keep the first ``length`` rows."""
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot crop a slot of {self.length} rows to {length}")
        self.length = length
        self._pool.cropped(self)

    def copy_from(self, other: KvSlot, length: int) -> None:
        """Hold what the first ``length`` rows of another slot of the same pool are, and nothing else.

        Errors: `EngineBusyError`; the slot is then empty.
        """
        if not 0 <= length <= other.length:
            raise ValueError(f"cannot copy {length} rows of a slot of {other.length}")
        self.crop(0)
        self._pool.copy(self, other, length)
        self.append(other.rows[:length])

    def release(self) -> None:
        """Give the slot back; it is not to be used any more."""
        self._pool.release(self)


class KvPool(ABC):
    """Slots under one limit. Not thread-safe: the engine's worker owns it."""

    def __init__(self, shape: KvShape, *, max_rows: int, max_slots: int) -> None:
        self.shape = shape
        self.max_rows = max_rows
        """Rows that fit in all slots together."""
        self.max_slots = max_slots
        self._free_indices = list(range(max_slots - 1, -1, -1))
        self._slots: dict[int, KvSlot] = {}

    def acquire(self) -> KvSlot:
        """A new, empty slot. Errors: `EngineBusyError`."""
        if not self._free_indices:
            raise EngineBusyError(
                f"all {self.max_slots} contexts of this engine are in use; close a session and try again"
            )
        slot = KvSlot(self, self._free_indices.pop(), self.shape.num_codebooks)
        self._slots[slot.index] = slot
        return slot

    def release(self, slot: KvSlot) -> None:
        """See `KvSlot.release`. A second release of the same slot does nothing."""
        if self._slots.pop(slot.index, None) is not slot:
            return
        self._free(slot)
        slot.length = 0
        self._free_indices.append(slot.index)

    @property
    def slots(self) -> int:
        """Slots in use."""
        return len(self._slots)

    @property
    @abstractmethod
    def free_rows(self) -> int:
        """Rows that can still be reserved."""

    @abstractmethod
    def reserve(self, slot: KvSlot, length: int) -> None:
        """See `KvSlot.reserve`."""

    @abstractmethod
    def cropped(self, slot: KvSlot) -> None:
        """A slot's length went down."""

    @abstractmethod
    def copy(self, target: KvSlot, source: KvSlot, length: int) -> None:
        """Keys and values of `KvSlot.copy_from`; the target is empty."""

    @abstractmethod
    def _free(self, slot: KvSlot) -> None: ...

    @abstractmethod
    def close(self) -> None:
        """Let go of the memory, whoever still refers to the pool; it is not to be used any more."""

    @abstractmethod
    def prefill(self, slot: KvSlot, count: int) -> Attend:
        """Attention of ``count`` new rows behind those that a slot holds; they see one another causally."""

    @abstractmethod
    def decode(self, slots: Sequence[KvSlot], lengths: Sequence[int], lines: Tensor, positions: Tensor) -> Attend:
        """Attention of one new row for each slot. ``qkv`` may have more rows than slots; they come out as zeros. ``lengths`` are
        the rows before it: those held, and those of steps under way.

        ``lines`` [B] are the slots' indices and ``positions`` [B] the rows they hold, on the device. Who looks at these alone
        can be captured in a graph.
        """

    def _busy(self, length: int) -> EngineBusyError:
        gib = self.max_rows * self.shape.bytes_per_row / 2**30
        return EngineBusyError(
            f"the engine's memory for contexts ({self.max_rows} rows, {gib:.2f} GiB) is full: {self.free_rows} rows are "
            f"left and a context needs {length}; close sessions, use a smaller window or allow more memory"
        )


def pick_kv_dtype(dtype: torch.dtype | str, model: torch.dtype, device: torch.device) -> torch.dtype:
    """In what keys and values are kept: ``auto`` is the model's own type; bfloat16 also beside a float32 model on a CPU.

    Errors: `SettingsError`.
    """
    name, own = str(dtype).removeprefix("torch."), str(model).removeprefix("torch.")
    if name in ("auto", own):
        return model
    if name != "bfloat16":
        raise SettingsError(f"keys and values are kept in the model's {own} (auto) or in bfloat16, not in {name!r}")
    if device.type != "cpu":
        raise SettingsError(
            f"on a GPU keys and values are kept in the model's {own}: load the model in bfloat16 instead"
        )
    return torch.bfloat16


def causal_mask(shape: KvShape, count: int, past: int, group: int) -> Tensor | None:
    """What is added to the scores of `attend_causal`, [group * L, past + L]: the same for all layers. ``group`` queries share a
    key head. None where there is no past and a group is one query, which attention knows by itself."""
    if past == 0 and group == 1:
        return None
    hidden = torch.full((count, past + count), -torch.inf, dtype=shape.dtype, device=shape.device).triu(past + 1)
    return hidden.repeat(group, 1) if group > 1 else hidden


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, is_causal: bool = False) -> Tensor:
    """Torch's attention. On a GPU not by cuDNN, which takes tenths of a second for every pair of lengths that it has not seen."""
    if not q.is_cuda:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal)
    with _switching:
        before = torch.backends.cuda.cudnn_sdp_enabled()
        torch.backends.cuda.enable_cudnn_sdp(False)
        try:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal)
        finally:
            torch.backends.cuda.enable_cudnn_sdp(before)


def attend_causal(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Causal attention of L new rows over all: q [L, heads_q, D], k and v [heads_kv, past + L, D], a `causal_mask`;
    [L, heads_q * D]. It is computed in the type of k and v."""
    count, heads_q, dim = q.shape
    heads = k.shape[0]
    group = heads_q // heads
    # The queries that share a key head stand one after another along the length, so keys are not repeated.
    grouped = q.view(count, heads, group, dim).permute(1, 2, 0, 3).reshape(1, heads, group * count, dim)
    out = attention(grouped.to(k.dtype), k[None], v[None], mask, is_causal=mask is None)
    return out.view(heads, group, count, dim).permute(2, 0, 1, 3).reshape(count, heads_q * dim).to(q.dtype)


class ContiguousPool(KvPool):
    """A tensor [layers, 2, heads, capacity, D] a slot, doubled when it is full."""

    def __init__(self, shape: KvShape, *, max_rows: int, max_slots: int = 256) -> None:
        super().__init__(shape, max_rows=max_rows, max_slots=max_slots)
        self._data: dict[int, Tensor] = {}
        self._layers: dict[int, list[Tensor]] = {}
        """[2, heads, capacity, D] of each layer."""
        self._taken = 0

    @property
    def free_rows(self) -> int:
        return self.max_rows - self._taken

    def reserve(self, slot: KvSlot, length: int) -> None:
        held = self._capacity(slot)
        if length <= held:
            return
        left = held + self.free_rows
        if length > left:
            raise self._busy(length)
        capacity = min(max(FIRST_CAPACITY, 2 * held, length), left)
        shape = self.shape
        try:
            data = torch.empty(
                (shape.layers, 2, shape.heads, capacity, shape.head_dim), dtype=shape.dtype, device=shape.device
            )
        except RuntimeError as error:  # torch has no narrower one for an allocation on the CPU that fails
            raise self._busy(length) from error
        if held:  # all of it: behind the length there may be rows of steps under way
            data[..., :held, :] = self._data[slot.index]
        self._taken += capacity - held
        self._data[slot.index] = data
        self._layers[slot.index] = list(data)

    def cropped(self, slot: KvSlot) -> None:
        """Rows behind the length are not read; they are written over."""

    def copy(self, target: KvSlot, source: KvSlot, length: int) -> None:
        self.reserve(target, length)
        if length:
            self._data[target.index][..., :length, :] = self._data[source.index][..., :length, :]

    def _capacity(self, slot: KvSlot) -> int:
        data = self._data.get(slot.index)
        return 0 if data is None else data.shape[3]

    def _free(self, slot: KvSlot) -> None:
        self._taken -= self._capacity(slot)
        self._data.pop(slot.index, None)
        self._layers.pop(slot.index, None)

    def close(self) -> None:
        self._data.clear()
        self._layers.clear()

    def prefill(self, slot: KvSlot, count: int) -> Attend:
        layers, past, heads = self._layers[slot.index], slot.length, self.shape.heads
        end = past + count
        mask = cache(partial(causal_mask, self.shape, count, past))

        def attend(layer: int, qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
            keys, values = layers[layer][:, :, :end]
            rotated = rotate(qkv[:, :-heads], cos, sin)
            keys[:, past:] = rotated[:, -heads:].transpose(0, 1)
            values[:, past:] = qkv[:, -heads:].transpose(0, 1)
            return attend_causal(rotated[:, :-heads], keys, values, mask(qkv.shape[1] // heads - 2))

        return attend

    def decode(self, slots: Sequence[KvSlot], lengths: Sequence[int], lines: Tensor, positions: Tensor) -> Attend:
        held = [(self._layers[slot.index], length) for slot, length in zip(slots, lengths, strict=True)]
        heads, dim, dtype = self.shape.heads, self.shape.head_dim, self.shape.dtype

        def attend(layer: int, qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
            heads_q = qkv.shape[1] - 2 * heads
            turned = qkv[:, :-heads]
            rotate(turned, cos, sin, out=turned)
            query = turned[:, :heads_q].view(-1, 1, heads, heads_q // heads, dim).to(dtype)
            new = qkv[:, heads_q:].view(-1, 2, heads, dim)
            out: list[Tensor] = []
            for row, (layers, past) in enumerate(held):
                seen = layers[layer][:, None, :, : past + 1]
                seen[:, 0, :, past] = new[row]
                out.append(attention(query[row], seen[0], seen[1]).view(1, -1))
            if len(held) < len(qkv):
                out.append(query.new_zeros(len(qkv) - len(held), heads_q * dim))
            return (out[0] if len(out) == 1 else torch.cat(out)).to(qkv.dtype)

        return attend


class PagedPool(KvPool):
    """Pages of `PAGE` rows, [layers, 2, pages, heads, PAGE, D], and a table that says which pages a slot has.

    Storage and table are made once and stay where they are. `KvSlot.copy_from` shares the pages that are full; a page that
    is shared is copied before it is written. Page 0 is nobody's: what pads a batch writes there.
    """

    def __init__(self, shape: KvShape, *, max_rows: int, max_slots: int = 256, max_positions: int = 8192) -> None:
        pages = max(max_rows // PAGE, 1) + 1
        super().__init__(shape, max_rows=(pages - 1) * PAGE, max_slots=max_slots)
        self.max_positions = max_positions
        # Zeros, since a masked row of a page is still multiplied: it must be finite.
        self.data = torch.zeros(
            (shape.layers, 2, pages, shape.heads, PAGE, shape.head_dim), dtype=shape.dtype, device=shape.device
        )
        # One line more than slots, for what pads a batch; its pages are page 0.
        self.table = torch.zeros((max_slots + 1, -(-max_positions // PAGE)), dtype=torch.int32, device=shape.device)
        self._free_pages = list(range(pages - 1, 0, -1))
        self._holders = [0] * pages
        self._pages: dict[int, list[int]] = {}

    @property
    def padding(self) -> int:
        """The table's line for what pads a batch."""
        return self.max_slots

    @property
    def free_rows(self) -> int:
        return len(self._free_pages) * PAGE

    def reserve(self, slot: KvSlot, length: int) -> None:
        if length > self.max_positions:
            raise EngineBusyError(
                f"a context of {length} rows does not fit: this engine was set up for {self.max_positions} rows a context"
            )
        held = self._pages.setdefault(slot.index, [])
        # Pages behind the length may be shared too, after a crop.
        shared = [at for at in range(slot.length // PAGE, len(held)) if self._holders[held[at]] > 1]
        missing = -(-length // PAGE) - len(held)
        if not shared and missing <= 0:
            return
        if len(shared) + max(missing, 0) > len(self._free_pages):
            raise self._busy(length)
        for at in shared:
            fresh = self._take()
            if at * PAGE < slot.length:
                self.data[:, :, fresh] = self.data[:, :, held[at]]
            self._drop(held[at])
            held[at] = fresh
        held += [self._take() for _ in range(missing)]
        self._write(slot)

    def cropped(self, slot: KvSlot) -> None:
        held = self._pages.get(slot.index, [])
        keep = -(-slot.length // PAGE)
        for page in held[keep:]:
            self._drop(page)
        del held[keep:]

    def copy(self, target: KvSlot, source: KvSlot, length: int) -> None:
        full, rest = divmod(length, PAGE)
        if rest and not self._free_pages:
            raise self._busy(length)
        pages = self._pages[source.index][:full] if length else []
        for page in pages:
            self._holders[page] += 1
        if rest:
            last = self._take()
            self.data[:, :, last] = self.data[:, :, self._pages[source.index][full]]
            pages = [*pages, last]
        self._pages[target.index] = list(pages)
        self._write(target)

    def _take(self) -> int:
        page = self._free_pages.pop()
        self._holders[page] = 1
        return page

    def _drop(self, page: int) -> None:
        self._holders[page] -= 1
        if not self._holders[page]:
            self._free_pages.append(page)

    def _write(self, slot: KvSlot) -> None:
        pages = self._pages[slot.index]
        self.table[slot.index, : len(pages)] = sent(torch.tensor(pages, dtype=torch.int32), self.table.device)

    def _free(self, slot: KvSlot) -> None:
        for page in self._pages.pop(slot.index, []):
            self._drop(page)

    def close(self) -> None:
        self.data = self.table = torch.empty(0)

    def _gathered(self, layer: int, pages: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Keys and values [heads, length, D] of a context, copied together."""
        whole = self.data[layer][:, pages].transpose(1, 2).flatten(2, 3)[:, :, :length]
        return whole[0], whole[1]

    def prefill(self, slot: KvSlot, count: int) -> Attend:
        return self._prefill(slot, slot.length, count)

    def _prefill(self, slot: KvSlot, past: int, count: int) -> Attend:
        end = past + count
        pages = sent(torch.tensor(self._pages[slot.index][: -(-end // PAGE)]), self.shape.device)
        places = torch.arange(past, end, device=self.shape.device)
        of, within = pages[places // PAGE], places % PAGE
        heads = self.shape.heads
        mask = cache(partial(causal_mask, self.shape, count, past))

        def attend(layer: int, qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
            rotated = rotate(qkv[:, :-heads], cos, sin)
            self.data[layer, 0][of, :, within] = rotated[:, -heads:].to(self.shape.dtype)
            self.data[layer, 1][of, :, within] = qkv[:, -heads:].to(self.shape.dtype)
            seen = self._gathered(layer, pages, end)
            return attend_causal(rotated[:, :-heads], *seen, mask(qkv.shape[1] // heads - 2))

        return attend

    def decode(self, slots: Sequence[KvSlot], lengths: Sequence[int], lines: Tensor, positions: Tensor) -> Attend:
        if self.shape.device.type == "cuda":
            return self.decode_lines(lines, positions)
        each = [self._prefill(slot, length, 1) for slot, length in zip(slots, lengths, strict=True)]

        def attend(layer: int, qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
            out = qkv.new_zeros(qkv.shape[0], (qkv.shape[1] - 2 * self.shape.heads) * self.shape.head_dim)
            for row, one in enumerate(each):
                here = slice(row, row + 1)
                out[here] = one(layer, qkv[here], cos[here], sin[here])
            return out

        return attend

    def decode_lines(self, lines: Tensor, positions: Tensor, *, fused: bool = False, ahead: bool = False) -> Attend:
        """`decode` by kernels that look at nothing but tensors, so that it can be captured in a graph. ``fused``: in one launch less, where
        every row is of another context; ``ahead``: see `kernels.attend`."""
        from . import kernels  # Triton is there where CUDA is

        lines, positions = lines.contiguous(), positions.contiguous()  # the kernels know no strides

        def attend(layer: int, qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
            keys, values = self.data[layer, 0], self.data[layer, 1]
            more = qkv.shape[0] - lines.shape[0]
            if more:  # rows of nobody's
                qkv = qkv[: lines.shape[0]]
            if fused:
                out = kernels.attend(qkv, lines, positions, self.table, keys, values, (cos, sin), ahead=ahead)
            else:
                query = kernels.store(qkv, cos, sin, lines, positions, self.table, keys, values)
                out = kernels.attend(query, lines, positions, self.table, keys, values)
            return F.pad(out, (0, 0, 0, more)) if more else out

        return attend
