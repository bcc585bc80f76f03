"""Who steps next. Plain numbers in, a plan out: no torch, no clock, no threads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class JobView:
    """What the scheduler sees of a stream."""

    key: str
    order: int
    """Arrival."""
    prefilling: bool
    """Its prompt is not in the cache yet."""
    buffered_s: float = 0.0
    """Audio sent less the time since the first of it was sent: what its listener has left to hear."""
    waiting_s: float = 0.0
    """Audio sent that its consumer has not taken."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One tick's work, in this order."""

    step: tuple[str, ...]
    """Streams that take one step together."""
    prefill: str | None
    """The stream whose prompt grows by one piece."""
    background: bool
    """Whether one piece may go to what nobody waits for yet."""

    @property
    def idle(self) -> bool:
        return not self.step and self.prefill is None and not self.background


@dataclass(frozen=True, slots=True)
class Scheduler:
    """Real time first: who has the least audio buffered steps first, and nobody runs ahead without bound.

    A new stream's prefill goes piece by piece between the others' steps: it never stalls them for longer than a piece.
    """

    max_batch: int = 16
    run_ahead_s: float = 10.0
    """A stream whose consumer is this far behind is paused."""
    comfortable_s: float = 0.25
    """Background work waits until every stream that steps has this much buffered."""

    def plan(self, jobs: Sequence[JobView], *, background: bool) -> Plan:
        """`background`: whether there is such work at all."""
        ready = [job for job in jobs if not job.prefilling and job.waiting_s < self.run_ahead_s]
        ready.sort(key=lambda job: (job.buffered_s, job.order))
        step = ready[: self.max_batch]
        waiting = [job for job in jobs if job.prefilling]
        prefill = min(waiting, key=lambda job: job.order).key if waiting else None
        calm = all(job.buffered_s >= self.comfortable_s for job in step)
        return Plan(
            step=tuple(job.key for job in step),
            prefill=prefill,
            background=background and prefill is None and calm,
        )
