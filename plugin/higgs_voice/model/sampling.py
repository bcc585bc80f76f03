"""Drawing the next delayed row: the delay pattern's forced codes, temperature, top-k, top-p, repetition-aware sampling.

The semantics are those of transformers' `HiggsAudioV2GenerationMixin._sample`:

- Codebook k is BOS until row k has passed. Once any codebook has said EOS, the rows after it force an EOS staircase:
  codebook 0 on the next row, codebooks 0 and 1 on the one after it, …. The staircase starts one row later than in the
  rows of a clip, where codebook 1 says EOS one row after codebook 0; a trained model does that by itself.
- Each codebook is drawn by itself: temperature, then top-k, then top-p, or the largest logit where temperature is 0.
- Repetition-aware sampling: a code that stands `ras_win_max_num_repeat` times or more in the last `ras_win_len` rows of
  its codebook is drawn again from the raw softmax (also under greedy). BOS and EOS do not count. The window is over all
  audio rows of the context, a reference's or an earlier exchange's too.
- It ends with a row that is EOS in all codebooks.

A draw is the inverse of the cumulative distribution at a uniform number. The numbers come from a generator of the
row's own, so no row depends on another. All state stands in tables with one line a slot; `sample` reads and writes the
lines named, does no synchronisation with the host and is the same in eager mode and in a captured graph.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..config import Sampling

BLOCK = 64
"""Rows of uniform numbers drawn at once."""
FIRST_WINDOW = 16
"""Rows of history that the tables have room for at first."""

# Columns of the integer table; history follows.
PRODUCED, EOS_AGE, POSITION, HISTORY = 0, 1, 2, 3
# Columns of the parameter table.
TEMPERATURE, TOP_K, TOP_P, RAS_WINDOW, RAS_REPEATS = range(5)


def uniforms(rng: np.random.Generator, rows: int, num_codebooks: int) -> NDArray[np.float32]:
    """[rows, K, 2] numbers for a draw and a redraw, in [0, 1).

    They are multiples of 2**-22, so that u times a total stays below the total in float32.
    """
    return (rng.integers(0, 1 << 22, size=(rows, num_codebooks, 2)) * 2.0**-22).astype(np.float32)


def filtered(scores: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities [B, K, V] after temperature, top-k and top-p, largest first, and the codes they belong to.

    ``scores`` [B, K, V] float32; the others [B, 1, 1], ``top_k`` integer. What is filtered out is 0; the rest does not sum to 1 (top-p
    leaves it unnormalised). Codes as probable as the k-th stay, as in transformers.
    """
    ordered, codes = (scores / temperature).sort(dim=-1, descending=True, stable=True)
    smallest = ordered.gather(-1, (top_k - 1).expand(-1, ordered.shape[1], -1))
    p = ordered.masked_fill(ordered < smallest, -torch.inf).softmax(dim=-1)
    before = p.cumsum(dim=-1) - p
    return p.masked_fill(before >= top_p, 0.0), codes


def invert(p: Tensor, u: Tensor) -> Tensor:
    """Index [...] at which the cumulative sum of p [..., V] passes u [...] times its total."""
    cumulative = p.cumsum(dim=-1)
    return (cumulative <= u[..., None] * cumulative[..., -1:]).sum(dim=-1)


class Sampler:
    """The tables, and the draw. One line a slot: `begin` sets it, `sample` moves it on."""

    def __init__(
        self, lines: int, num_codebooks: int, vocabulary: int, *, bos: int, eos: int, device: torch.device
    ) -> None:
        self.num_codebooks = num_codebooks
        self.vocabulary = vocabulary
        self.bos, self.eos = bos, eos
        self.window = FIRST_WINDOW
        self.device = device
        self.books = torch.arange(num_codebooks, device=device)
        self.ints = torch.zeros((lines, HISTORY + self.window * num_codebooks), dtype=torch.int64, device=device)
        """[lines, …]: rows produced, rows since the first EOS (0: none yet), position of the next row, history."""
        self.parameters = torch.ones((lines, 5), device=device)
        self.uniforms = torch.zeros((lines, BLOCK, num_codebooks, 2), device=device)

    def begin(self, line: int, sampling: Sampling, history: NDArray[np.int16], position: int) -> None:
        """Start a line. ``history`` [n, K]: audio rows of the context; ``position`` is where the all-BOS row will stand.

        The all-BOS row is the first row produced: nothing else can come first.
        """
        ras = sampling.ras_win_len or 0
        if ras > self.window:
            self._widen(ras)
        past = np.full((self.window, self.num_codebooks), self.bos, dtype=np.int64)
        kept = history[-(self.window - 1) :]
        past[self.window - 1 - len(kept) : self.window - 1] = kept
        self.ints[line] = torch.from_numpy(np.concatenate([[1, 0, position], past.reshape(-1)])).to(self.device)
        self.parameters[line] = torch.tensor(
            [
                sampling.temperature,
                min(sampling.top_k or self.vocabulary, self.vocabulary),
                sampling.top_p,
                ras,
                sampling.ras_win_max_num_repeat,
            ]
        ).to(self.device)

    def refill(self, line: int, rng: np.random.Generator) -> None:
        """Uniform numbers for a line's next `BLOCK` rows."""
        self.uniforms[line] = torch.from_numpy(uniforms(rng, BLOCK, self.num_codebooks)).to(self.device)

    def _widen(self, window: int) -> None:
        ints = torch.full(
            (len(self.ints), HISTORY + window * self.num_codebooks), self.bos, dtype=torch.int64, device=self.device
        )
        ints[:, :HISTORY] = self.ints[:, :HISTORY]
        ints[:, -self.window * self.num_codebooks :] = self.ints[:, HISTORY:]
        self.ints, self.window = ints, window

    def last(self, lines: Tensor) -> tuple[Tensor, Tensor]:
        """The rows [B, K] that lines produced last, which are to be fed next, and the positions [B] they stand at."""
        return self.ints[lines, -self.num_codebooks :], self.ints[lines, POSITION]

    @torch.inference_mode()
    def sample(self, logits: Tensor, lines: Tensor, *, draw: bool = True, ras: bool = True) -> Tensor:
        """The next rows [B, K] of ``lines`` [B] from ``logits`` [B, K, V] float32.

        ``draw`` False says that all lines are greedy, ``ras`` False that none has repetition-aware sampling: that work is
        left out and nothing else changes.
        """
        batch = self.ints[lines]
        parameters = self.parameters[lines]
        history = batch[:, HISTORY:].view(len(batch), self.window, self.num_codebooks)
        produced = batch[:, PRODUCED, None]
        age = batch[:, EOS_AGE, None]
        numbers = self.uniforms[lines, (batch[:, PRODUCED] - 1) % BLOCK] if draw or ras else None

        codes = logits.argmax(dim=-1)
        if draw and numbers is not None:
            temperature = parameters[:, TEMPERATURE, None, None]
            greedy = temperature == 0
            p, ordered = filtered(
                logits,
                temperature.masked_fill(greedy, 1.0),
                parameters[:, TOP_K, None, None].long(),
                parameters[:, TOP_P, None, None],
            )
            drawn = ordered.gather(-1, invert(p, numbers[..., 0])[..., None])[..., 0]
            codes = torch.where(greedy[..., 0], codes, drawn)
        # Forced codes come before the count of repetitions, in which they have no part.
        codes = codes.masked_fill(self.books >= produced, self.bos).masked_fill(self.books < age, self.eos)
        if ras and numbers is not None:
            recent = torch.arange(self.window, device=self.device) >= self.window - parameters[:, RAS_WINDOW, None]
            same = (history == codes[:, None]) & recent[..., None]
            same &= (history != self.bos) & (history != self.eos)
            again = same.sum(dim=1) >= parameters[:, RAS_REPEATS, None]
            again &= parameters[:, RAS_WINDOW, None] > 0
            codes = torch.where(again, invert(logits.softmax(dim=-1), numbers[..., 1]), codes)

        ending = (codes == self.eos).any(dim=-1, keepdim=True) | (age > 0)
        counters = torch.cat((produced + 1, age + ending, batch[:, POSITION, None] + 1), dim=1)
        self.ints[lines] = torch.cat((counters, batch[:, HISTORY + self.num_codebooks :], codes), dim=1)
        return codes
