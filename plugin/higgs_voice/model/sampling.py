"""Drawing the next delayed row: the delay pattern's forced codes, temperature, top-k, top-p, repetition-aware sampling.

The semantics are those of transformers' `HiggsAudioV2GenerationMixin._sample`, but for the end, which is the original's:

- Codebook k is BOS until row k has passed. (Behind frames that are said already it is their codes, until they end.) When a codebook k says EOS first, the codebooks before it say EOS in the same
  row, and the rows after it force an EOS staircase: codebooks up to k on the next row, up to k + 1 on the one after it, ….
  (transformers begins the staircase at codebook 0 whichever said EOS, which is the same where it was codebook 0, and up to
  seven rows longer where it was not.) The staircase starts one row later than in the rows of a clip, where codebook 1 says
  EOS one row after codebook 0; a trained model does that by itself.
- Each codebook is drawn by itself: temperature, then top-k, then top-p, or the largest logit where temperature is 0.
- Repetition-aware sampling: a code that stands `ras_win_max_num_repeat` times or more in the last `ras_win_len` rows of
  its codebook is drawn again from the raw softmax (also under greedy). BOS and EOS do not count. The window is over all
  audio rows of the context, a reference's or an earlier exchange's too.
- It ends with a row that is EOS in all codebooks.

A draw is the inverse of the cumulative distribution at a uniform number. The numbers come from a generator of the
row's own, so no row depends on another. All state stands in tables with one line a slot; `Sampler.sample` reads and
writes the lines named, does no synchronisation with a GPU, and is the same in eager mode and in a captured graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..captured import sent
from ..config import MAX_RAS_WINDOW, Sampling
from .delay import begun_delay

BLOCK = 64
"""Rows of uniform numbers drawn at once."""
FIRST_WINDOW = 16
"""Rows of history that the tables have room for at first, on a CPU; it doubles from there."""
COLDEST = 1e-6
"""A temperature below this is greedy: float32 cannot divide every logit by it."""

# Columns of the integer table; the last row [K] and the history [window, K] follow.
PRODUCED, EOS_AGE, POSITION, LAST = 0, 1, 2, 3
# Columns of the parameter table.
TEMPERATURE, TOP_K, TOP_P, RAS_WINDOW, RAS_REPEATS = range(5)
NOTHING = -1
"""In the history: a BOS or EOS, which is no repetition of anything."""


def uniforms(rng: np.random.Generator, rows: int, num_codebooks: int) -> NDArray[np.float32]:
    """[rows, K, 2] numbers for a draw and a redraw, in [0, 1).

    They are multiples of 2**-22, so that u times a total stays below the total in float32.
    """
    return (rng.integers(0, 1 << 22, size=(rows, num_codebooks, 2)) * 2.0**-22).astype(np.float32)


def filtered(scores: Tensor, temperature: Tensor, top_k: Tensor | None, top_p: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities [B, K, V] after temperature, top-k and top-p, largest first, and the codes they belong to.

    ``scores`` [B, K, V] float32; the others [B, 1, 1], ``top_k`` integer, None if nobody has it. What is filtered out is 0;
    top-p leaves the rest unnormalised. Codes as probable as the k-th stay, as in transformers, and the most probable one always.
    """
    ordered, codes = (scores / temperature).sort(dim=-1, descending=True, stable=True)
    if top_k is not None:
        smallest = ordered.gather(-1, (top_k - 1).expand(-1, ordered.shape[1], -1))
        ordered = ordered.masked_fill(ordered < smallest, -torch.inf)
    p = ordered.softmax(dim=-1)
    before = p.cumsum(dim=-1) - p
    return p.masked_fill(before >= top_p.clamp(min=torch.finfo(p.dtype).tiny), 0.0), codes


def invert(p: Tensor, u: Tensor) -> Tensor:
    """Index [...] at which the cumulative sum of p [..., V] passes u [...] times its total; always one of the V, also where the
    total is 0 or not a number."""
    cumulative = p.cumsum(dim=-1)
    return (cumulative <= u[..., None] * cumulative[..., -1:]).sum(dim=-1).clamp(max=p.shape[-1] - 1)


def first_window(device: torch.device) -> int:
    """Rows of history that the tables have room for at first. On a GPU all that anybody may ask for: wider tables would be other
    tensors than those that graphs were captured with."""
    return MAX_RAS_WINDOW if device.type == "cuda" else FIRST_WINDOW


def _temperature(sampling: Sampling) -> float:
    """The temperature as the tables have it: 0 is greedy."""
    return sampling.drawn_at if sampling.drawn_at >= COLDEST else 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Lines:
    """Some lines of the tables, and what does not change while they are stepped.

    What is None nobody among them asks for, and that work is left out; it changes nothing for the others.
    """

    index: Tensor
    """[B] which lines."""
    temperature: Tensor | None
    """[B, 1, 1], 1 where a line is greedy; None if all are."""
    greedy: Tensor | None
    """[B, 1] which lines take the largest logit; None if none does."""
    top_k: Tensor | None
    """[B, 1, 1]"""
    top_p: Tensor
    """[B, 1, 1]"""
    recent: Tensor | None
    """[B, window, 1] which rows of the history repetition-aware sampling looks at."""
    repeats: Tensor
    """[B, 1] how often a code may not stand there."""


class Sampler:
    """The tables, and the draw. One line a slot: `begin` sets it, `sample` moves it on."""

    def __init__(
        self, count: int, num_codebooks: int, vocabulary: int, *, bos: int, eos: int, device: torch.device
    ) -> None:
        self.num_codebooks = num_codebooks
        self.vocabulary = vocabulary
        self.bos, self.eos = bos, eos
        self.window = first_window(device)
        self.device = device
        self._books = torch.arange(num_codebooks, device=device)
        self._cache: dict[tuple[int, ...], Lines] = {}
        self.history = LAST + num_codebooks
        """Column at which the history begins."""
        width = self.history + self.window * num_codebooks
        self.ints = torch.full((count, width), NOTHING, dtype=torch.int64, device=device)
        """[count, …]: rows produced since it began, codebooks that must say EOS (0: it has not ended), position of the next row, the last row, history."""
        self.ahead = torch.full((count, num_codebooks, num_codebooks), NOTHING, dtype=torch.int64, device=device)
        """[count, K, K]: codes of the first K rows drawn that are certain before; `NOTHING` where one is to be drawn."""
        self.parameters = torch.ones((count, 5), device=device)
        self.uniforms = torch.zeros((count, BLOCK, num_codebooks, 2), device=device)

    def begin(
        self,
        line: int,
        sampling: Sampling,
        history: NDArray[np.int16],
        position: int,
        spoken: NDArray[np.int16] | None = None,
    ) -> None:
        """Start a line. ``history`` [n, K]: audio rows of the context; ``position`` is where the row to be fed first will stand.

        That is the all-BOS row, since nothing else can come first; or, behind frames ``spoken`` [K, T], the last row that they
        make complete, with the rows before it in ``history``.
        """
        frames = spoken if spoken is not None else np.zeros((self.num_codebooks, 0), dtype=np.int16)
        _, row, ahead = begun_delay(frames, bos=self.bos)
        ras = sampling.ras_win_len or 0
        if ras > self.window:
            self._widen(ras)
        past = np.full((self.window, self.num_codebooks), NOTHING, dtype=np.int64)
        kept = history[-(self.window - 1) :].astype(np.int64)
        past[self.window - 1 - len(kept) : self.window - 1] = np.where(kept < self.bos, kept, NOTHING)
        past[-1] = np.where(row < self.bos, row, NOTHING)
        state = [1, 0, position, *row.tolist()]
        self.ints[line] = sent(torch.from_numpy(np.concatenate([state, past.reshape(-1)])), self.device)
        top_k = min(sampling.top_k or self.vocabulary, self.vocabulary)
        repeats = min(sampling.ras_win_max_num_repeat, self.window + 1)  # more never stand there
        parameters = [_temperature(sampling), top_k, sampling.top_p, ras, repeats]
        self.parameters[line] = sent(torch.tensor(parameters, dtype=torch.float32), self.device)
        self.ahead[line] = sent(torch.from_numpy(ahead.astype(np.int64)), self.device)
        self._cache.clear()

    def refill(self, line: int, rng: np.random.Generator) -> None:
        """Uniform numbers for a line's next `BLOCK` rows."""
        self.uniforms[line] = sent(torch.from_numpy(uniforms(rng, BLOCK, self.num_codebooks)), self.device)

    def _widen(self, window: int) -> None:
        # Doubling keeps it to a few times.
        window = max(window, 2 * self.window)
        ints = torch.full((len(self.ints), self.history + window * self.num_codebooks), NOTHING, device=self.device)
        ints[:, : self.history] = self.ints[:, : self.history]
        ints[:, -self.window * self.num_codebooks :] = self.ints[:, self.history :]
        self.ints, self.window = ints, window

    def lines(self, which: Sequence[int], settings: Sequence[Sampling]) -> Lines:
        """Lines by their numbers, with the settings they were begun with; remembered until the next `begin`."""
        key = tuple(which)
        if key not in self._cache:
            self._cache[key] = self.gather(
                sent(torch.tensor(which), self.device),
                draw=any(_temperature(sampling) > 0 for sampling in settings),
                greedy=any(_temperature(sampling) == 0 for sampling in settings),
                top_k=any(sampling.top_k is not None for sampling in settings),
                ras=any(sampling.ras_win_len is not None for sampling in settings),
            )
        return self._cache[key]

    @torch.inference_mode()
    def gather(
        self, index: Tensor, *, draw: bool = True, greedy: bool = True, top_k: bool = True, ras: bool = True
    ) -> Lines:
        """Lines by a tensor [B] of their numbers. The flags say whether any of them asks for it."""
        temperature, k, top_p, window, repeats = self.parameters[index].unbind(dim=1)
        ages = torch.arange(self.window, 0, -1, device=self.device)
        largest = temperature == 0
        return Lines(
            index=index,
            temperature=temperature.masked_fill(largest, 1.0)[:, None, None] if draw else None,
            greedy=largest[:, None] if greedy else None,
            top_k=k[:, None, None].long() if top_k else None,
            top_p=top_p[:, None, None],
            recent=(ages <= window[:, None])[..., None] if ras else None,
            repeats=repeats[:, None],
        )

    def last(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """The rows [B, K] that lines ``index`` [B] produced last, which are to be fed next, and the positions [B] they stand at."""
        state = self.ints.index_select(0, index)
        return state[:, LAST : self.history], state[:, POSITION]

    @torch.inference_mode()
    def sample(self, logits: Tensor, lines: Lines) -> Tensor:
        """The next rows [B, K] of lines from ``logits`` [B, K, V] float32."""
        state = self.ints.index_select(0, lines.index)
        history = state[:, self.history :].view(len(state), self.window, self.num_codebooks)
        age = state[:, EOS_AGE, None]
        turn = (state[:, PRODUCED] - 1) % BLOCK
        numbers = self.uniforms.flatten(0, 1).index_select(0, lines.index * BLOCK + turn)

        if lines.temperature is None:
            codes = logits.argmax(dim=-1)
        else:
            p, ordered = filtered(logits, lines.temperature, lines.top_k, lines.top_p)
            codes = ordered.gather(-1, invert(p, numbers[..., 0])[..., None])[..., 0]
            if lines.greedy is not None:
                codes = torch.where(lines.greedy, logits.argmax(dim=-1), codes)
        # Forced codes come before the count of repetitions, in which they have no part.
        row = state[:, PRODUCED].clamp(max=self.num_codebooks) - 1
        ahead = self.ahead.flatten(0, 1).index_select(0, lines.index * self.num_codebooks + row)
        drawn = ahead == NOTHING
        codes = torch.where(drawn, codes, ahead).masked_fill(self._books < age, self.eos)
        if lines.recent is not None:
            # A line without repetition-aware sampling looks at no row, and at least one repeat is needed.
            again = (((history == codes[:, None]) & lines.recent).sum(dim=1) >= lines.repeats) & drawn
            if self.device.type != "cpu" or again.any():
                codes = torch.where(again, invert(logits.softmax(dim=-1), numbers[..., 1]), codes)

        said = codes == self.eos
        first = said.int().argmax(dim=-1, keepdim=True)  # the first codebook that says EOS, where one does
        begins = said.any(dim=-1, keepdim=True) & (age == 0)
        codes = codes.masked_fill(begins & (self._books < first), self.eos)
        counters = state[:, :LAST] + 1
        counters[:, EOS_AGE] = torch.where(begins, first + 1, age + (age > 0))[:, 0]
        remembered = codes.masked_fill(codes >= self.bos, NOTHING)
        moved = torch.cat((counters, codes, state[:, self.history + self.num_codebooks :], remembered), dim=1)
        self.ints.index_copy_(0, lines.index, moved)
        return codes
