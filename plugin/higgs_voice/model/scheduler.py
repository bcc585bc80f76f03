"""Who steps next. Plain numbers in, a plan out: no torch, no clock, no threads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

NOT_STARTED = -1.0
"""What is buffered of a stream that has sent nothing yet: it is more urgent than any that plays."""


@dataclass(frozen=True, slots=True)
class JobView:
    """What the scheduler sees of a stream."""

    key: str
    order: int
    """Arrival."""
    prefilling: bool
    """Its prompt is not in the cache yet."""
    buffered_s: float = 0.0
    """Audio sent less the time since the first of it was sent: what its listener has left to hear; or `NOT_STARTED`."""
    waiting_s: float = 0.0
    """Audio sent that its consumer has not taken."""
    put_off: int = 0
    """Ticks in which prefills were put off, its own among them: see `Plan.put_off`."""
    rows_left: int = 0
    """Of its prompt, that are not in the cache yet."""
    passed_over: int = 0
    """Pieces that went to others since its own last one."""
    unheard: bool = False
    """It has sent nothing yet, whatever its listener still has of what came before."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One tick's work, in this order."""

    step: tuple[str, ...]
    """Streams that take one step together."""
    prefill: tuple[str, ...]
    """Streams that wait for their prefill and may have it now, the most urgent first. It is given one piece; who follows has its turn
    where several are prefilled together."""
    background: bool
    """Whether one piece may go to what nobody waits for yet."""
    put_off: tuple[str, ...] = ()
    """Streams whose `JobView.put_off` goes up, where all prefills wait for this tick."""

    @property
    def idle(self) -> bool:
        return not self.step and not self.prefill and not self.background


@dataclass(frozen=True, slots=True)
class Scheduler:
    """Real time first: who has the least audio buffered steps first, and nobody runs ahead without bound.

    A new stream's prefill goes piece by piece between the others' steps: it never stalls them for longer than a piece, and while
    one of them is about to run dry, as each is just after its first sound, all prefills wait, but not for long. Of several that wait,
    whose listener still has ample sound of the chunk before comes last, by what is left of it, and not at all while somebody who steps has
    nothing yet. Of the others the one with the fewest rows left is prefilled (shortest remaining time first), so that nobody waits for
    another's long prompt; who was passed over `patience` times, and of these who was most often, has the next piece. In that order they are taken along where several prompts
    are prefilled together.

    Where a step takes longer the more streams it has, as on a CPU, who has ample sound lets the others go ahead while one of them has too
    little. Prefills take more than steps there: nobody's is kept for later, and each newcomer waits anew for who is about to run dry.
    """

    max_batch: int = 16
    run_ahead_s: float = 10.0
    """A stream whose consumer is this far behind is paused."""
    comfortable_s: float = 0.25
    """Background work waits until every stream that steps has this much buffered."""
    unhurried_s: float = 1.0
    """Who has this much buffered of the chunk before can wait with its prefill."""

    scarce_s: float = 0.12
    """A stream that plays and has less than this left is about to run dry, `scarce_ticks` allowing."""
    scarce_ticks: float | None = 4.0
    """It is so only if that is less than so many ticks take: the pieces after the first sound come every three steps or four. None, where
    what else is computed beside the steps slows them, as on a CPU: `scarce_s` alone says."""
    patience: int = 8
    """Ticks that prefills are put off at most, and pieces that others have before one's own."""
    ample_s: float | None = None
    """Who has this much buffered sits out while somebody, whose consumer takes what comes, has less than `comfortable_s`; None:
    nobody does."""

    def plan(self, jobs: Sequence[JobView], *, background: bool, tick_s: float = 0.0) -> Plan:
        """`background`: whether there is such work at all. `tick_s`: what a tick takes; 0 where it is not known yet."""
        ready = [job for job in jobs if not job.prefilling and job.waiting_s < self.run_ahead_s]
        ready.sort(key=lambda job: (job.buffered_s, job.order))
        waiting = sorted((job for job in jobs if job.prefilling), key=self._urgency)
        ample = self.ample_s
        if ample is not None and any(
            job.buffered_s < self.comfortable_s and job.waiting_s < ample for job in (*ready, *waiting)
        ):
            ready = [job for job in ready if job.buffered_s < ample]
        step = ready[: self.max_batch]
        keys = tuple(job.key for job in step)
        unheard = any(job.unheard for job in step)
        due = [job for job in waiting if ample is not None or not (unheard and self._unhurried(job))]
        if waiting and not due:
            return Plan(keys, (), background=False)
        patient = due if ample is None else due[:1]
        if patient and self._scarce(step, tick_s) and max(job.put_off for job in patient) < self.patience:
            return Plan(keys, (), background=False, put_off=tuple(job.key for job in patient))
        calm = not unheard and all(job.buffered_s >= self.comfortable_s for job in step)
        return Plan(
            step=keys,
            prefill=tuple(job.key for job in due),
            background=background and not waiting and calm,
        )

    def _unhurried(self, job: JobView) -> bool:
        return job.buffered_s >= self.unhurried_s

    def _urgency(self, job: JobView) -> tuple[float, ...]:
        """Of streams that wait for their prefill; the least comes first."""
        unhurried = self._unhurried(job)
        left = job.buffered_s if unhurried and self.ample_s is None else float(unhurried)
        overdue = job.passed_over if job.passed_over >= self.patience else 0
        return left, -overdue, job.rows_left, job.order

    def _scarce(self, step: Sequence[JobView], tick_s: float) -> bool:
        """Whether somebody who steps is about to run dry."""
        scarce = self.scarce_s if self.scarce_ticks is None else min(self.scarce_s, self.scarce_ticks * tick_s)
        return any(NOT_STARTED < job.buffered_s < scarce for job in step)


class Pace:
    """What a tick costs: a line through (streams stepped, seconds), fitted to the recent ones; from it, how many streams
    can be spoken in real time.

    Ticks that step nobody (a prefill alone) are counted with the next that does. Seen with one number of streams only,
    the cost is taken to be in proportion to it, which errs low on the capacity.
    """

    memory = 512
    """Ticks after which an observation counts for a third: about twenty seconds of audio, many pieces of the codec."""

    def __init__(self, frame_rate: float = 25.0) -> None:
        self._frame_rate = frame_rate
        self._carried = 0.0
        # Sums with forgetting: of 1, n, n², t, n t.
        self._one = self._n = self._nn = self._t = self._nt = 0.0
        self.ticks = 0
        """Ticks seen."""

    def observe(self, streams: int, seconds: float) -> None:
        """A tick that stepped so many streams took so long."""
        self._carried += seconds
        if not streams:
            return
        keep, n, t = 1 - 1 / self.memory, float(streams), self._carried
        self._carried = 0.0
        self._one, self._n, self._nn = keep * self._one + 1, keep * self._n + n, keep * self._nn + n * n
        self._t, self._nt = keep * self._t + t, keep * self._nt + n * t
        self.ticks += 1

    def tick_s(self, streams: float) -> float:
        """Seconds of a tick with so many streams; 0 when nothing has been seen."""
        if not self.ticks:
            return 0.0
        mean_n, mean_t = self._n / self._one, self._t / self._one
        spread = self._nn / self._one - mean_n**2
        slope = mean_t / mean_n
        if spread > 0.05:
            fitted = (self._nt / self._one - mean_n * mean_t) / spread
            slope = min(max(fitted, 0.0), slope)  # a tick without streams costs nothing less than nothing
        return mean_t + slope * (streams - mean_n)

    def capacity(self, max_batch: int) -> float | None:
        """Streams that get a frame for every frame they play, a tenth of the time to spare; None until 50 ticks were seen.
        Not whole: 1.9 says that a second stream nearly keeps up."""
        if self.ticks < 50:
            return None
        allowed = 0.9 / self._frame_rate
        if self.tick_s(max_batch) <= allowed:  # a batch is all that a tick can step; more streams take turns
            return max_batch * allowed / self.tick_s(max_batch)
        one, slope = self.tick_s(1), self.tick_s(2) - self.tick_s(1)
        return allowed / one if allowed <= one or slope <= 0 else 1 + (allowed - one) / slope
