"""The model in use: prefill a slot, start a generation in it, step generations together.

    pool slot ── prefill(rows) ──▶ start(sampling, seed) ──▶ step ──▶ step ──▶ … ──▶ a row of EOS

A step feeds each generation's last row and draws the next. The first row of every generation is all BOS whatever the
logits say, so a start needs none and the first step already gives codebook 0 of the first frame.
"""

from __future__ import annotations

import contextlib
import gc
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..captured import BUCKETS, sent
from ..config import Sampling
from ..errors import EngineBusyError
from .delay import Codes, DelayReverter, begun_delay
from .forward import Forward
from .graphs import CudaGraphed, Other
from .kv import PAGE, Attend, ContiguousPool, KvPool, KvShape, KvSlot, PagedPool, pick_kv_dtype
from .linear import FEW_ROWS, STEP_ROWS
from .loading import Loaded
from .packed import MOST_READ, PACKS, RowsGraphed, any_rows, apart, reading, table_of, tolerance
from .prompt import PromptBuilder, Rows
from .sampling import BLOCK, NOTHING, Lines, Sampler, uniforms
from .toolchain import check_kernels

log = logging.getLogger("higgs_voice.runner")

PIECE = 64
"""Rows prefilled at a time on a CPU, at most: how long a stop waits."""
GPU_PIECE = 256
"""On a GPU, where the host takes as long to launch a piece of few rows as one of many."""


Kernels = Literal["plain", "drawn", "fused", "overlapped"]
"""Of a captured step: the device's own libraries' with attention over pages; that with what is around the layers by `drawing`; and
`Forward.decode_fused` too; or that with each launch beginning while the one before ends."""
FUSED_UP_TO = 16
"""Streams in a batch up to which `fused` and `overlapped` are tried: they read what they multiply by once for few rows, and more often for
more."""
FAR = 0.5
"""Logits of other steps that differ from plain ones by more, in standard deviations, are wrong and not only rounded otherwise."""
OTHERWISE = 0.003
"""Share of codes that `drawing.draw` may draw otherwise than the sampler, as happens next to a border: more is wrong."""


@dataclass(slots=True, eq=False)
class Generation:
    """One chunk being generated. Made by `Runner.start`; to end it early, just stop stepping it."""

    slot: KvSlot
    sampling: Sampling
    seed: int
    rng: np.random.Generator
    """Where the uniform numbers come from."""
    reverter: DelayReverter
    row: NDArray[np.int16]
    """[K] the last row produced; the next step feeds it."""
    pending: int = 0
    """Steps launched whose results were not taken yet."""
    produced: int = 1
    """Rows produced since it began, the one it began with among them."""
    frames: int = 0
    """Frames completed."""
    again: int = 0
    """Frames that were said before it began and are yet to be completed once more."""
    finished: bool = False
    """Whether the last row was EOS in all codebooks, or nobody wants what comes: steps under way are not taken any more."""

    @property
    def exhausted(self) -> bool:
        """Whether `Sampling.max_new_tokens` rows were produced."""
        return self.produced >= self.sampling.max_new_tokens

    @property
    def may_step(self) -> bool:
        """Whether a step launched now could count, as far as is known: those under way do not make it exhausted."""
        return not self.finished and self.produced + self.pending < self.sampling.max_new_tokens


@dataclass(frozen=True, slots=True, eq=False)
class StepResult:
    """What one step did for one generation."""

    generation: Generation
    row: NDArray[np.int16] | None
    """[K] the delayed row drawn; None if `error` is set."""
    frame: NDArray[np.int16] | None
    """[K] the frame it completed, if it did and it is new; frames come in order, the first K rows after the all-BOS row."""
    finished: bool
    """The row was EOS in all codebooks: the generation is over."""
    error: EngineBusyError | None = None
    """There was no memory for this generation's next row. It did not step and others were not affected."""


@dataclass(slots=True, eq=False)
class PendingStep:
    """A step under way. On a GPU the host can launch the next one before it looks at this one's results.

    Steps must be resolved in the order of their launch. A generation that turned out to be finished before has no result.
    """

    _runner: Runner
    _generations: list[Generation]
    _rows: Tensor
    _arrived: torch.cuda.Event | None
    _refused: list[StepResult]

    def results(self) -> list[StepResult]:
        """One result a generation; refused ones last."""
        if self._arrived is not None:
            self._arrived.synchronize()
        rows = self._rows.numpy()
        taken = [
            self._runner.take(generation, rows[place].astype(np.int16))
            for place, generation in enumerate(self._generations)
        ]
        return [result for result in taken if result is not None] + self._refused


@dataclass(frozen=True, slots=True)
class Alignment:
    """What `Runner.align` did."""

    reused: int
    """Rows that the slot held already."""
    prefilled: int
    complete: bool
    """False when it was stopped before the end."""


class Runner:
    """A loaded model, a pool for contexts, and the step function. Not thread-safe: one worker owns it."""

    def __init__(
        self,
        loaded: Loaded,
        *,
        max_rows: int | None = None,
        max_slots: int = 256,
        kv_dtype: torch.dtype | str = "auto",
        paged: bool | None = None,
        graphs: bool | None = None,
        kernels: Kernels | None = None,
    ) -> None:
        """``max_rows``: rows of context that the pool may hold in all; None takes what suits the device. ``kv_dtype``: see
        `pick_kv_dtype`. ``paged`` and ``graphs``: pages of keys and values, and captured steps; None is yes on a GPU and no on a
        CPU, where ``graphs`` runs what would be captured. ``kernels``: of captured steps, see `Kernels`; None is whichever are
        quickest for a batch size on this device, for a model in bfloat16, and ``plain`` for any other."""
        self.loaded = loaded
        config: Any = loaded.model.config
        on_gpu = loaded.device.type == "cuda"
        paged = on_gpu if paged is None else paged
        if on_gpu and paged:
            check_kernels(loaded.device)
        self.piece = GPU_PIECE if on_gpu else PIECE
        """Rows prefilled at a time, at most."""
        limit = loaded.limits.max_positions
        # A captured step reads the rotary tables where they are, so on a GPU they never grow.
        self.forward = Forward(loaded.model, positions=limit if on_gpu else 2048)
        self.prompts = PromptBuilder(loaded.tokenizer, config)
        self.num_codebooks: int = config.num_codebooks
        self.bos: int = config.audio_stream_bos_id
        self.eos: int = config.audio_stream_eos_id
        self.audio_token: int = config.audio_token_id
        self.device = loaded.device
        shape = KvShape(
            layers=config.num_hidden_layers,
            heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            dtype=pick_kv_dtype(kv_dtype, loaded.dtype, loaded.device),
            device=loaded.device,
            num_codebooks=config.num_codebooks,
        )
        rows = max_rows or default_rows(shape)
        self._graphed: CudaGraphed | None = None
        self._packed: RowsGraphed | None = None
        """Prefills of few rows, of one context or several."""
        self.pool: KvPool
        if paged:
            pages = self.pool = PagedPool(shape, max_rows=rows, max_slots=max_slots, max_positions=limit)
            self._graphing = on_gpu and graphs is not False
            if on_gpu or graphs:
                self.choose(*((kernels,) if kernels is not None else kinds_for(loaded.dtype, loaded.device)))
            if graphs or (on_gpu and graphs is None):
                nobody = table_of([pages.padding], [0], Rows.of_text([0], config.num_codebooks))[:, 0]
                self._packed = RowsGraphed(partial(self._prefill_captured, pages), padding=nobody, disable=not on_gpu)
        else:
            self.pool = ContiguousPool(shape, max_rows=rows, max_slots=max_slots)
        # One line more than slots, for what pads a batch.
        self.sampler = Sampler(
            max_slots + 1, self.num_codebooks, config.codebook_size, bos=self.bos, eos=self.eos, device=loaded.device
        )
        self._padding = max_slots
        self._begin_padding()

    def close(self) -> None:
        """Let go of the contexts' memory and of the captured steps, which refer to this and this to them. It is not to be used any
        more."""
        self._graphed = self._packed = None
        self.pool.close()

    def choose(self, *kernels: Kernels) -> None:
        """Step by these kernels, where steps are captured: by whichever is quickest for a batch size. Those captured before are
        forgotten."""
        pages = self.pool
        assert isinstance(pages, PagedPool)
        first, *others = kernels
        self._graphed = CudaGraphed(
            partial(self._step_captured, pages, first),
            *(
                Other(partial(self._step_captured, pages, kind), BUCKETS[-1] if kind == "drawn" else FUSED_UP_TO)
                for kind in others
            ),
            padding=pages.padding,
            disable=not self._graphing,
        )

    @property
    def packed(self) -> int:
        """Rows of several contexts that `prefill_together` takes at once, at most; 0 where one context is prefilled after another: on a
        CPU, where it takes as long, and a row's bits are not to depend on others."""
        return self._packed.most if self._packed is not None else 0

    def prefill(
        self, slot: KvSlot, rows: Rows, *, piece: int | None = None, should_stop: Callable[[], bool] | None = None
    ) -> bool:
        """Append rows to a slot, a ``piece`` at a time, `Runner.piece` where it is None. False if ``should_stop`` said so before a
        piece; what was prefilled until then stays. Errors: `EngineBusyError`, before anything is prefilled."""
        slot.reserve(slot.length + len(rows))
        piece = piece or self.piece
        for start in range(0, len(rows), piece):
            if should_stop is not None and should_stop():
                return False
            self.prefill_together([slot], [rows[start : start + piece]])
        return True

    def prefill_together(self, slots: Sequence[KvSlot], rows: Sequence[Rows]) -> None:
        """Append to each slot rows of its own, for which it has room reserved: all at once where they are no more than `packed` and read no
        more than `MOST_READ`, one slot after another else. When it fails, a slot holds its rows or none of them."""
        work = sum(reading(slot.length, len(part)) for slot, part in zip(slots, rows, strict=True))
        few = sum(map(len, rows)) <= self.packed and work <= MOST_READ
        if not few or self._prefill_packed(slots, rows) is None:
            for slot, part in zip(slots, rows, strict=True):
                self._prefill(slot, part)

    def align(
        self, slot: KvSlot, rows: Rows, *, piece: int | None = None, should_stop: Callable[[], bool] | None = None
    ) -> Alignment:
        """Make a slot hold exactly ``rows``: keep the longest common prefix, crop the rest, prefill what is missing."""
        reused = slot.rows.common_prefix(rows)
        slot.crop(reused)
        complete = self.prefill(slot, rows[reused:], piece=piece, should_stop=should_stop)
        return Alignment(reused=reused, prefilled=slot.length - reused, complete=complete)

    def start(self, slot: KvSlot, sampling: Sampling, seed: int, spoken: Codes | None = None) -> Generation:
        """Begin a generation behind a slot's rows, which end with `PromptBuilder.opening`. The slot is the generation's
        until it is over; cropping or prefilling it in between makes the generation meaningless.

        ``spoken`` [K, T]: frames of it that are said already, with `PromptBuilder.begun` of them behind the opening. It goes on as a
        generation with this seed does that has drawn them itself.
        """
        slot.reserve(slot.length + 1)
        sampling = sampling.recommended(self.loaded.temperature)
        rng = np.random.default_rng(seed)
        reverter = DelayReverter(self.num_codebooks, bos=self.bos, eos=self.eos)
        if spoken is None:
            spoken = np.zeros((self.num_codebooks, 0), dtype=np.int16)
        frames = spoken.shape[1]
        before, row, _ = begun_delay(spoken, bos=self.bos)
        for pushed in (*before[1:], *([row] if frames else [])):
            reverter.push(pushed)
        if frames:
            uniforms(rng, frames, self.num_codebooks)  # the rows before drew these
            sampling = sampling.replace(max_new_tokens=max(1, sampling.max_new_tokens - frames))
        self.sampler.begin(slot.index, sampling, slot.rows.last_audio(sampling.ras_win_len or 0), slot.length, spoken)
        return Generation(
            slot=slot,
            sampling=sampling,
            seed=seed,
            rng=rng,
            reverter=reverter,
            row=row,
            frames=frames,
            again=min(frames, self.num_codebooks - 1),
        )

    def step(self, generations: Sequence[Generation]) -> list[StepResult]:
        """Feed each generation's last row and draw the next. What a generation gets does not depend on the others."""
        return self.launch(generations).results()

    def launch(self, generations: Sequence[Generation]) -> PendingStep:
        """`step`, without waiting for it."""
        with self._here():
            return self._launch(generations)

    def _here(self) -> contextlib.AbstractContextManager[Any]:
        """Makes a GPU the thread's current one: events and Triton's kernels go there, wherever the tensors are."""
        return torch.cuda.device(self.device) if self.device.type == "cuda" else contextlib.nullcontext()

    def _launch(self, generations: Sequence[Generation]) -> PendingStep:
        ready: list[Generation] = []
        refused: list[StepResult] = []
        for generation in generations:
            try:
                generation.slot.reserve(generation.slot.length + generation.pending + 1)
            except EngineBusyError as error:
                refused.append(StepResult(generation, row=None, frame=None, finished=False, error=error))
            else:
                ready.append(generation)
        if not ready:
            return PendingStep(self, [], torch.empty(0), None, refused)
        for generation in ready:
            if (generation.produced + generation.pending - 1) % BLOCK == 0:
                self.sampler.refill(generation.slot.index, generation.rng)
            generation.pending += 1
        which = [generation.slot.index for generation in ready]
        if self._graphed is None:
            slots = [generation.slot for generation in ready]
            lengths = [generation.slot.length + generation.pending - 1 for generation in ready]
            self.forward.extend_positions(max(lengths) + 1)
            lines = self.sampler.lines(which, [generation.sampling for generation in ready])
            rows = self._step(lines, partial(self.pool.decode, slots, lengths))
            return PendingStep(self, ready, rows, None, refused)
        if self.sampler.window != self._window:  # a longer window came: the tables are other tensors now
            self._graphed.reset()
            self._begin_padding()
        drawn = self._graphed(which, self.device)
        if drawn.device.type == "cpu":
            return PendingStep(self, ready, drawn, None, refused)
        rows = torch.empty(drawn.shape, dtype=drawn.dtype, pin_memory=True)
        rows.copy_(drawn, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        return PendingStep(self, ready, rows, arrived, refused)

    def _begin_padding(self) -> None:
        """Set the line that pads a batch. It starts from here in every step, so it always draws the same."""
        self.sampler.begin(self._padding, Sampling(), np.zeros((0, self.num_codebooks), np.int16), 0)
        self.sampler.ahead[self._padding] = NOTHING  # it draws every code, and so takes as long as others
        self._begun = self.sampler.ints[self._padding].clone()
        self._window = self.sampler.window

    def check(self) -> None:
        """Begin a generation that nobody asked for, and wait for the device: who was refused by anything else than its own request
        is refused here too. Errors: whatever is wrong; `EngineBusyError` where there is no room to look."""
        wait_for(self.device)
        slot = self.pool.acquire()
        try:
            self.prefill(slot, Rows.of_text([0], self.num_codebooks))
            self.start(slot, Sampling(), seed=0)
            wait_for(self.device)
        finally:
            slot.release()

    def warm_up(self, max_batch: int, should_stop: Callable[[], bool] = lambda: False) -> None:
        """Capture the steps for batches up to this size, and compile what a prefill takes, so that no stream waits for it. Nothing
        to do on a CPU. ``should_stop`` is asked before each of them, which takes seconds at most."""
        if self.device.type == "cuda":
            with self._here():
                self._warm_up(max_batch, should_stop)

    @torch.inference_mode()
    def _warm_up(self, max_batch: int, should_stop: Callable[[], bool] = lambda: False) -> None:
        if self._packed is not None and not self._packed.disabled:
            self._warm_up_packed(should_stop)
        counts = (1, 17, 33, FEW_ROWS + 1, STEP_ROWS + 1, self.piece)  # kernels differ by the number of rows
        slot = self.pool.acquire()
        try:
            for count in sorted(set(counts)):
                if should_stop():
                    return
                if self.packed < count <= self.pool.max_rows:
                    slot.crop(0)
                    self.prefill(slot, Rows.of_text([0] * count, self.num_codebooks), piece=count)
        finally:
            slot.release()
        if self._graphed is not None:
            self._look_at_others(self._graphed)
            for size in BUCKETS:
                if should_stop():
                    return
                self._graphed([self._padding] * size, self.device)
                if size >= max_batch:
                    break

    def _warm_up_packed(self, should_stop: Callable[[], bool]) -> None:
        """Capture the prefills of few rows, and hold them against the plain way: two contexts, text and audio. Where they find something
        else they are left off."""
        slots = [self.pool.acquire() for _ in range(min(2, self.pool.max_slots))]
        try:
            for size in PACKS:
                if should_stop() or size + len(slots) * PAGE > self.pool.max_rows:
                    return
                parts = [any_rows(self.loaded.model.config, size // len(slots), first) for first in range(len(slots))]
                for slot, part in zip(slots, parts, strict=True):
                    slot.crop(0)
                    slot.reserve(len(part))
                found = self._prefill_packed(slots, parts)
                for slot in slots:
                    slot.crop(0)
                if found is None:
                    continue
                for slot, part in zip(slots, parts, strict=True):
                    slot.reserve(len(part))
                plain = torch.cat([self._prefill(slot, part) for slot, part in zip(slots, parts, strict=True)])
                worst = apart(found, plain)
                if not worst <= tolerance(plain.dtype):
                    log.warning("a prefill of %d rows at once is %.3g off; the engine goes on without", size, worst)
                    self._packed = None
                    return
        finally:
            for slot in slots:
                slot.release()

    def _look_at_others(self, graphed: CudaGraphed) -> None:
        """Leave steps by other kernels than the plain ones out where they cannot be had, or are wrong."""
        for other in list(graphed.others):
            kernels: Kernels = cast("partial[Tensor]", other.function).args[1]
            try:
                errors = [self.kernels_error(kernels, rows) for rows in (1, FUSED_UP_TO)]
                otherwise = self.drawn_otherwise(kernels)
            except Exception:
                log.warning(
                    "%s steps cannot be had here; the engine goes on without them, slower", kernels, exc_info=True
                )
                graphed.others.remove(other)
                continue
            far = [error for error in errors if not error <= FAR]
            if far:
                log.warning("%s steps give other logits here, by %.2f standard deviations; left out", kernels, far[0])
            elif not otherwise <= OTHERWISE:
                log.warning("%s steps draw other codes here, %.1f %% of them; left out", kernels, 100 * otherwise)
            if far or not otherwise <= OTHERWISE:
                graphed.others.remove(other)

    @torch.inference_mode()
    def kernels_error(self, kernels: Kernels, rows: int = 1) -> float:
        """Largest difference between the logits of a step by other kernels and of a plain one behind a thousand rows of context, in standard
        deviations; in a batch of so many rows, the others being nobody's, which are compared too. For a pool of pages."""
        pages, slot = self.pool, self.pool.acquire()
        assert isinstance(pages, PagedPool)
        try:
            # Enough for a program to read several pages, where there is room.
            count = min(1100, pages.free_rows - PAGE, pages.max_positions - 1)
            self.prefill(slot, Rows.of_text([0] * count, self.num_codebooks))
            slot.reserve(slot.length + 1)
            self.sampler.begin(slot.index, Sampling(), np.zeros((0, self.num_codebooks), np.int16), slot.length)
            index = torch.full((rows,), self._padding, device=self.device)
            index[0] = slot.index
            plain, other = (self._logits(pages, kind, index) for kind in ("plain", kernels))
            return float(((other - plain).abs().max() / plain.std()).item())
        finally:
            slot.release()

    def drawn_otherwise(self, kernels: Kernels) -> float:
        """Share of codes that a step by other kernels draws otherwise than the sampler, for many settings, from the same logits."""
        from . import drawing

        sampler = self.sampler
        return drawing.otherwise(
            partial(
                Sampler,
                num_codebooks=sampler.num_codebooks,
                vocabulary=sampler.vocabulary,
                bos=sampler.bos,
                eos=sampler.eos,
            ),
            self.device,
            ahead=kernels == "overlapped",
        )

    def logits(self, slot: KvSlot) -> Tensor:
        """Logits [K, V] in float32 of the row after a slot's last one, which is computed again."""
        last = slot.rows[slot.length - 1 :]
        last = Rows(last.tokens.copy(), last.codes.copy(), last.audio.copy())
        slot.crop(slot.length - 1)
        slot.reserve(slot.length + 1)
        return self.forward.logits(self._prefill(slot, last)[-1:])[0]

    @torch.inference_mode()
    def _step(self, lines: Lines, decode: Callable[[Tensor, Tensor], Attend]) -> Tensor:
        """The step itself: the rows [B, K] that lines produce next. ``decode`` gives the attention at positions."""
        codes, positions = self.sampler.last(lines.index)
        logits = self.forward.decode(codes, positions, decode(lines.index, positions))
        return self.sampler.sample(logits, lines)

    @torch.inference_mode()
    def _step_captured(self, pages: PagedPool, kernels: Kernels, index: Tensor) -> Tensor:
        """`_step` over static tensors alone, with nothing left out: what is captured."""
        if kernels == "plain":
            rows = self._step(self.sampler.gather(index), pages.decode_lines)
            self.sampler.ints[self._padding].copy_(self._begun)
            return rows
        from . import drawing

        logits = self._logits(pages, kernels, index)
        return drawing.draw(self.sampler, logits, index, self._padding, ahead=overlaps(kernels, len(index)))

    @torch.inference_mode()
    def _logits(self, pages: PagedPool, kernels: Kernels, index: Tensor) -> Tensor:
        """Logits [B, K, V] in float32 of the rows that follow the last ones of lines ``index`` [B]."""
        if kernels == "plain":
            codes, positions = self.sampler.last(index)
            return self.forward.decode(codes, positions, pages.decode_lines(index, positions))
        from . import drawing

        forward = self.forward
        x, cos, sin, positions = drawing.start(self.sampler, index, forward.embed_audio, forward.cos, forward.sin)
        if kernels == "drawn" or len(index) > FEW_ROWS:
            return forward.decode_embedded(x, cos, sin, pages.decode_lines(index, positions))
        ahead = overlaps(kernels, len(index))
        return forward.decode_fused(x, cos, sin, pages.decode_lines(index, positions, fused=True, ahead=ahead), ahead)

    @torch.inference_mode()
    def _prefill(self, slot: KvSlot, rows: Rows) -> Tensor:
        device = self.device
        with self._here():
            hidden = self.forward.prefill(
                sent(torch.from_numpy(rows.tokens.astype(np.int64)), device),
                sent(torch.from_numpy(rows.codes.astype(np.int64)), device),
                sent(torch.from_numpy(np.flatnonzero(rows.audio)), device),
                sent(torch.from_numpy(np.flatnonzero(~rows.audio)), device),
                slot.length,
                self.pool.prefill(slot, len(rows)),
            )
        slot.append(rows)
        return hidden

    def _prefill_packed(self, slots: Sequence[KvSlot], rows: Sequence[Rows]) -> Tensor | None:
        """`prefill_together` at once: hidden states [R, H] before the last norm; None, and nothing appended, where it cannot be."""
        if self._packed is None:
            return None
        ends = [slot.length + len(part) for slot, part in zip(slots, rows, strict=True)]
        self.forward.extend_positions(max(ends))
        positions = [np.arange(slot.length, end) for slot, end in zip(slots, ends, strict=True)]
        lines = np.repeat([slot.index for slot in slots], [len(part) for part in rows])
        table = table_of(lines, np.concatenate(positions), Rows.concat(rows))
        with self._here(), torch.inference_mode():
            hidden = self._packed(table, self.device)
        if hidden is not None:
            for slot, part in zip(slots, rows, strict=True):
                slot.append(part)
        return hidden

    @torch.inference_mode()
    def _prefill_captured(self, pages: PagedPool, table: Tensor) -> Tensor:
        """Keys and values of the rows of a table; their hidden states, which follow from all of them. Over static tensors alone: what is
        captured."""
        lines, positions, tokens, audio = table[:4]
        return self.forward.mixed(tokens, table[4:].t(), audio.bool(), positions, pages.decode_lines(lines, positions))

    def take(self, generation: Generation, row: Codes) -> StepResult | None:
        """Move a generation on by the row that its step drew; None if it had finished before that step."""
        generation.pending -= 1
        if generation.finished:
            return None
        generation.slot.append_audio(generation.row, self.audio_token)
        generation.row = row
        generation.produced += 1
        generation.finished = bool((row == self.eos).all())
        frame = generation.reverter.push(row)
        if frame is not None and generation.again:
            generation.again -= 1
            frame = None
        if frame is not None:
            generation.frames += 1
        return StepResult(generation, row=row, frame=frame, finished=generation.finished)


def kinds_for(dtype: torch.dtype, device: torch.device) -> tuple[Kernels, ...]:
    """Which kernels may be tried for captured steps, the first ones those that always run."""
    return kinds_on(device) if dtype == torch.bfloat16 else ("plain",)


def kinds_on(device: torch.device) -> tuple[Kernels, ...]:
    """Which kernels a device runs."""
    if device.type != "cuda":
        return ("plain",)
    from . import kernels

    return ("plain", "drawn", "fused", *(("overlapped",) if kernels.can_overlap(device) else ()))


def overlaps(kernels: Kernels, rows: int) -> bool:
    """Whether the last launches of a step's layers let the next ones begin before they have ended."""
    return kernels == "overlapped" and rows <= FEW_ROWS


def wait_for(device: torch.device) -> None:
    """For what this thread had a GPU do. Waiting for the whole device would fail while another thread captures a graph."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def default_rows(shape: KvShape) -> int:
    """Rows of context that suit a device: 2 GiB of a CPU's memory, half of what a GPU has free."""
    if shape.device.type == "cuda":
        # Weights that were joined are in torch's own keeping still, and not free.
        gc.collect()
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info(shape.device)
        return free // 2 // shape.bytes_per_row
    return 2 * 2**30 // shape.bytes_per_row
