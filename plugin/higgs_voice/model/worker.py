"""The thread that steps all streams of an engine together.

Commands come in from any thread and never wait; what a stream produces goes out through its `Listener`, on the worker's
thread. A tick drains the commands, asks the scheduler, takes one step with everybody who is due, then gives one piece of
prefill to who waits for it (to several who lack little, where the runner takes them together), or to the background. A stop is seen at the next tick: within one step, or one piece.

What fails before a stream's first step is that stream's own failure, unless `Runner.check` fails too. A step is shared, and its
failure a crash: it ends all streams, and some crashes in a row end the worker.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ..audio import FRAME_RATE
from ..config import Sampling
from ..errors import EngineBusyError, EngineClosedError, EngineDiedError, EngineError, NoAudioError, RunawayError
from .kv import KvSlot
from .packed import MOST_READ, reading
from .prompt import Rows
from .runner import Generation, PendingStep, Runner, StepResult
from .scheduler import JobView, Pace, Scheduler

log = logging.getLogger("higgs_voice.worker")

MAX_PREFIXES = 8
"""Voice prefixes whose state is kept for sessions to come."""
MAX_CRASHES = 3
"""Crashes without a finished stream between them after which the worker gives up."""


class Listener(Protocol):
    """Where a stream's frames go. Called on the worker's thread."""

    def view(self) -> tuple[float, float]:
        """Seconds buffered and seconds waiting, as `JobView` has them."""
        ...

    def ended(self, reason: str, error: Exception | None) -> None:
        """The stream is over: ``eos``, ``length``, ``stopped``, ``runaway``, ``collapse``, ``silence`` or ``error``."""
        ...


@dataclass(slots=True, eq=False)
class Job:
    """One chunk to speak."""

    key: str
    session: str
    rows: Rows
    """The whole prompt: context and opening, and `PromptBuilder.begun` of what is spoken."""
    prefix: int
    """How many of `rows` are the voice's own prefix."""
    sampling: Sampling
    seed: int
    max_frames: int
    """More audio than this the text cannot need: the runaway guard."""
    min_frames: int
    """An end before this many frames is a collapse, tried again with another seed."""
    listener: Listener
    spoken: NDArray[np.int16] | None = None
    """[K, n] frames of it that are said already; they count for both limits."""
    next_rows: Rows | None = None
    """The window after this chunk, less its own exchange; prefilled in the background."""
    retries: int = 2
    stopped: bool = False
    put_off: int = 0
    """Ticks in which prefills were put off, its own among them: see `Plan.put_off`."""
    passed_over: int = 0
    """Pieces of prefill that went to others since its own last one."""
    alone: bool = False
    """It is not prefilled together with others: that failed once."""
    frames: int = 0
    timings: dict[str, float] = field(default_factory=dict[str, float])
    submitted: float = 0.0
    begun: float = 0.0
    order: int = 0
    slot: KvSlot | None = None
    generation: Generation | None = None
    held: list[NDArray[np.int16]] = field(default_factory=list[NDArray[np.int16]])
    """Frames held back until it is clear that the stream did not collapse."""

    def __post_init__(self) -> None:
        self.begin_anew()

    def begin_anew(self) -> None:
        """Nothing was generated yet."""
        self.frames = self.spoken.shape[1] if self.spoken is not None else 0
        self.held.clear()

    @property
    def rows_left(self) -> int:
        """Rows of the prompt that its slot, if it has one, does not hold."""
        return len(self.rows) - self.slot.length if self.slot is not None else 0


@dataclass(slots=True, eq=False)
class _Session:
    used: float = 0.0
    """When a stream of it began or ended last."""
    slots: list[KvSlot] = field(default_factory=list[KvSlot])
    active: Job | None = None
    waiting: deque[Job] = field(default_factory=deque[Job])
    target: Rows | None = None
    """What the background is to have ready."""
    target_prefix: int = 0
    target_slot: KvSlot | None = None

    @property
    def idle(self) -> bool:
        """Whether nobody waits for anything of it."""
        return self.active is None and not self.waiting


Deliver = Callable[[Sequence[tuple[Job, NDArray[np.int16]]]], None]
"""Frames [K, n] of the streams that moved in this step, together, so that they can be decoded together."""


class Worker:
    """See the module. `submit`, `stop`, `prepare`, `close_session` and `shutdown` may be called from any thread."""

    def __init__(
        self,
        runner: Runner,
        scheduler: Scheduler,
        deliver: Deliver,
        *,
        threads: int | None = None,
        late: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``late``: a step's codes are read after the next one was launched, so that the device never waits for the host; None
        is yes on a GPU. A stream's end is seen one step late then, which costs that step and changes nothing else."""
        self.steps = 0
        """Steps taken, for tests and metrics."""
        self.pace = Pace()
        """How long the work of a step takes, by the number of streams."""
        self.dead: EngineDiedError | None = None
        """Why the worker gave up, once it did: it takes no stream any more."""
        self._runner = runner
        self.pool = runner.pool
        self._scheduler = scheduler
        self._deliver = deliver
        self._threads = threads
        self._late = runner.device.type == "cuda" if late is None else late
        self._launched: tuple[PendingStep, list[Job]] | None = None
        """The step under way, where codes are read late."""
        self._clock = clock
        self._wake = threading.Condition()
        self._commands: deque[Callable[[], None]] = deque()
        self._jobs: dict[int, Job] = {}
        """By arrival: a key may come again before the job that had it is over."""
        self._sessions: dict[str, _Session] = {}
        self._prefixes: OrderedDict[bytes, KvSlot] = OrderedDict()
        self._closing = False
        self._crashes = 0
        self._orders = 0
        self._thread = threading.Thread(target=self._run, name="higgs-voice worker", daemon=True)

    # Any thread

    def start(self) -> None:
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Queue a stream. Errors: `EngineDiedError` when the worker is gone for good."""
        job.submitted = self._clock()
        with self._wake:
            if self.dead is not None:
                raise EngineDiedError(str(self.dead)) from self.dead.__cause__
            if self._closing:
                raise EngineClosedError("this engine is closed")
            self._orders += 1
            job.order = self._orders
            self._jobs[job.order] = job
            self._commands.append(lambda: self._enter(job))
            self._wake.notify()

    def stop(self, key: str) -> None:
        with self._wake:
            for job in self._jobs.values():
                job.stopped = job.stopped or job.key == key
            self._wake.notify()

    def leave(self, job: Job) -> None:
        """Nobody listens to this job any more; another one may have its key by now."""
        with self._wake:
            job.stopped = True
            self._wake.notify()

    def prepare(self, session: str, rows: Rows, prefix: int) -> None:
        """Have this context ready, when there is time."""
        self._command(lambda: self._set_target(session, rows, prefix))

    def close_session(self, session: str) -> None:
        with self._wake:
            for job in self._jobs.values():
                if job.session == session:
                    job.stopped = True
        self._command(lambda: self._close(session))

    def shutdown(self, timeout_s: float = 5.0) -> None:
        """End every stream and the thread; waits for it."""
        with self._wake:
            self._closing = True
            for job in self._jobs.values():
                job.stopped = True
            self._wake.notify()
        if self._thread.ident is None:  # it was never started, and lets go of nothing
            self._runner.close()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(timeout_s)

    @property
    def sessions(self) -> int:
        """Sessions that hold state."""
        return len(self._sessions)

    @property
    def active(self) -> int:
        """Streams that have not ended."""
        return len(self._jobs)

    def wake(self) -> None:
        """A consumer took audio: a paused stream may go on."""
        with self._wake:
            self._wake.notify()

    def _command(self, call: Callable[[], None]) -> None:
        with self._wake:
            self._commands.append(call)
            self._wake.notify()

    # The worker's thread

    def _run(self) -> None:
        if self._threads is not None:
            torch.set_num_threads(self._threads)
        try:
            if self._runner.device.type == "cuda":
                # The current device is a thread's own, and Triton launches there, wherever the tensors are.
                torch.cuda.set_device(self._runner.device)
            self._runner.warm_up(self._scheduler.max_batch, lambda: self._closing)
        except Exception:  # what cannot be done now is done, or fails, when it is needed
            log.exception("the engine could not be warmed up")
        while not self._closing:
            try:
                with torch.inference_mode():
                    self._loop()
            except Exception as error:
                log.exception("the engine's worker failed; its streams end, its state is rebuilt")
                self._crashed(error)
        self._end_all("stopped", None)
        self._free_all()
        self._runner.close()

    def _loop(self) -> None:
        while not self._closing:
            if not self._tick():
                with self._wake:
                    if not self._commands and not self._closing and not self._any_stopped():
                        self._wake.wait(0.05 if self._jobs else None)

    def _tick(self) -> bool:
        """One round; False when there was nothing to do."""
        while True:
            with self._wake:
                if not self._commands:
                    break
                command = self._commands.popleft()
            command()
        self._end_stopped()
        running = {str(job.order): job for session in self._sessions.values() if (job := session.active) is not None}
        views: list[JobView] = []
        for key, job in running.items():
            buffered, waiting = job.listener.view()
            prefilling = job.generation is None
            left = job.rows_left if prefilling else 0
            unheard = "ttfa" not in job.timings
            view = JobView(key, job.order, prefilling, buffered, waiting, job.put_off, left, job.passed_over, unheard)
            views.append(view)
        background = next((name for name, item in self._sessions.items() if item.target is not None), None)
        plan = self._scheduler.plan(
            views,
            background=background is not None,
            tick_s=self.pace.tick_s(min(len(views), self._scheduler.max_batch)),
        )
        for key in plan.put_off:
            running[key].put_off += 1
        if plan.idle and self._launched is None:
            return False
        began = self._clock()
        if plan.step or self._launched is not None:
            self._step([running[key] for key in plan.step])
        chosen = self._together([running[key] for key in plan.prefill if not running[key].stopped])
        if chosen:
            for view in views:
                if view.prefilling:
                    job = running[view.key]
                    job.passed_over = 0 if job in chosen else view.passed_over + 1
            self._prefill(chosen)
        if plan.background and background is not None:
            self._background(self._sessions[background])
        self.pace.observe(len(plan.step), self._clock() - began)
        return True

    def _enter(self, job: Job) -> None:
        session = self._sessions.setdefault(job.session, _Session())
        if session.active is None:
            self._begin(session, job)
        else:
            session.waiting.append(job)

    def _begin(self, session: _Session, job: Job) -> None:
        session.active = job
        session.target = None
        job.begun = session.used = self._clock()
        job.timings["queue"] = job.begun - job.submitted
        while True:
            try:
                slot, held = self._slot_for(session, job.rows, job.prefix, busy=None)
                break
            except (EngineBusyError, torch.OutOfMemoryError) as error:
                if not self._make_room():
                    self._end(job, "error", error)
                    return
            except Exception as error:  # noqa: BLE001 - told to this stream; the others go on
                self._failed(job, error)
                return
        slot.crop(held)
        job.slot = slot
        job.timings["prefilled"] = float(len(job.rows) - held)

    def _together(self, waiting: list[Job]) -> list[Job]:
        """Who of them is prefilled in this tick: the first, and who can be taken along with all that it lacks, in their order."""
        chosen, most = waiting[:1], self._runner.packed
        if not chosen or not most or chosen[0].alone:
            return chosen
        room, left = most - chosen[0].rows_left, MOST_READ - _reading(chosen[0])
        for job in waiting[1:]:
            if not job.alone and job.rows_left <= room and _reading(job) <= left:
                chosen.append(job)
                room -= job.rows_left
                left -= _reading(job)
        return chosen

    def _prefill(self, jobs: list[Job]) -> None:
        """One stream's next piece, or all that several lack. Whose prompt is complete begins."""
        if len(jobs) == 1:
            grown = [job for job in jobs if self._tried(job, partial(self._grow, job))]
        else:
            grown = self._grow_together(jobs)
        for job in grown:
            if job.slot is not None and not job.rows_left and self._tried(job, partial(self._generate, job)):
                job.timings["prefill"] = self._clock() - job.begun
                session = self._sessions[job.session]
                if job.next_rows is not None:
                    session.target, session.target_prefix, session.target_slot = job.next_rows, job.prefix, None
                if job.generation is not None and job.generation.exhausted:  # it may take no step that could end it
                    self._end(job, "length", None)

    def _grow(self, job: Job) -> None:
        """The next piece of its prompt."""
        slot = job.slot
        assert slot is not None
        if job.rows_left:
            self._runner.prefill(slot, job.rows[slot.length : slot.length + self._runner.piece])
            self._keep_prefix(slot, job.prefix)

    def _grow_together(self, jobs: list[Job]) -> list[Job]:
        """All that several lack of their prompts; those that hold them then."""
        ready = [
            job for job in jobs if job.slot is not None and self._tried(job, partial(job.slot.reserve, len(job.rows)))
        ]
        grown = [(job, job.slot) for job in ready if job.slot is not None and job.rows_left]
        try:
            if grown:
                rows = [job.rows[slot.length :] for job, slot in grown]
                self._runner.prefill_together([slot for _, slot in grown], rows)
        except Exception as error:
            self._check(error)
            log.exception("chunks could not be prefilled together; each is prefilled alone, and fails if it must")
            for job, _ in grown:
                job.alone = True
            return []
        for job, slot in grown:
            if not self._tried(job, partial(self._keep_prefix, slot, job.prefix)):
                ready.remove(job)
        return ready

    def _generate(self, job: Job) -> None:
        assert job.slot is not None
        job.generation = self._runner.start(job.slot, job.sampling, job.seed, job.spoken)

    def _tried(self, job: Job, call: Callable[[], None]) -> bool:
        """Whether a call on the way to a stream's first step succeeded; what fails is that stream's own failure."""
        try:
            call()
        except (EngineBusyError, torch.OutOfMemoryError) as error:
            if not self._make_room():  # else the next tick tries again
                self._end(job, "error", error)
            return False
        except Exception as error:  # noqa: BLE001 - told to this stream; the others go on
            self._failed(job, error)
            return False
        return True

    def _failed(self, job: Job, error: Exception) -> None:
        """A stream could not be begun. Raises ``error`` where no other could be."""
        self._check(error)
        log.error("a stream could not be begun; it ends, the others go on", exc_info=error)
        if job.slot is not None:
            self._discard(self._sessions[job.session], job.slot)
        failed = EngineError(f"the engine could not begin this chunk: {type(error).__name__}: {error}")
        failed.__cause__ = error
        self._end(job, "error", failed)

    def _check(self, error: Exception) -> None:
        """Whose failure this is: raises it where it is the engine's."""
        try:
            self._runner.check()
        except (EngineBusyError, torch.OutOfMemoryError):
            pass  # no room to look
        except Exception:  # noqa: BLE001 - a consequence of what is raised
            raise error from None

    def _discard(self, session: _Session, slot: KvSlot) -> None:
        """Give up a session's slot of which nothing is certain."""
        if slot in session.slots:
            session.slots.remove(slot)
        if session.target_slot is slot:
            session.target_slot = None
        self.pool.release(slot)

    def _step(self, jobs: list[Job]) -> None:
        live = [job for job in jobs if not job.stopped and job.generation is not None and job.generation.may_step]
        if not self._late:
            if live:
                self.steps += 1
                self._take(self._runner.step([job.generation for job in live if job.generation is not None]), live)
            return
        before, self._launched = self._launched, None
        if live:
            self.steps += 1
            step = self._runner.launch([job.generation for job in live if job.generation is not None])
            self._launched = step, live
        if before is not None:
            self._take(before[0].results(), before[1])

    def _take(self, stepped: list[StepResult], jobs: list[Job]) -> None:
        """What a step drew, to the streams that are still there."""
        results = {id(result.generation): result for result in stepped}
        moved: list[tuple[Job, NDArray[np.int16]]] = []
        ended: list[tuple[Job, str, Exception | None]] = []
        for job in jobs:
            generation = job.generation
            result = results.get(id(generation))
            if generation is None or result is None:
                continue  # it ended, or began anew, while the step was under way
            if result.error is not None:
                if not self._make_room():  # else the next tick tries again
                    ended.append((job, "error", result.error))
                continue
            if result.frame is not None:
                job.frames += 1
                job.held.append(result.frame)
            if job.frames >= job.min_frames and job.held:
                moved.append((job, np.stack(job.held, axis=1)))
                job.held.clear()
            ending = self._ending(job, generation)
            if ending is not None:
                ended.append(ending)
        if moved:
            self._deliver(moved)
        for job, reason, error in ended:
            self._end(job, reason, error)

    def _ending(self, job: Job, generation: Generation) -> tuple[Job, str, Exception | None] | None:
        """How this stream is over, if it is."""
        if generation.finished:
            if job.frames >= job.min_frames:
                return job, "eos", None
            if self._retry(job):
                return None
            return job, "collapse", NoAudioError(f"the model gave no sound for this text with {job.retries + 1} seeds")
        if job.frames >= job.max_frames:
            seconds = job.max_frames / FRAME_RATE
            return job, "runaway", RunawayError(f"stopped after {seconds:.1f} s of audio: the text cannot need more")
        if generation.exhausted:
            return job, "length", None
        return None

    def _retry(self, job: Job) -> bool:
        """A stream ended before its first byte: the same prompt again with another seed."""
        tried = int(job.timings.get("retries", 0))
        if tried >= job.retries:
            return False
        assert job.slot is not None
        job.timings["retries"] = tried + 1
        job.seed = (job.seed * 1103515245 + 12345) % 2**31
        job.sampling = job.sampling.recommended(self._runner.loaded.temperature).again()
        self._leave(job)
        job.begin_anew()
        job.slot.crop(len(job.rows))
        return True

    def _end(self, job: Job, reason: str, error: Exception | None) -> None:
        with self._wake:
            self._jobs.pop(job.order, None)
        self._leave(job)
        session = self._sessions.get(job.session)
        if session is not None:
            session.used = self._clock()
            if session.active is job:
                session.active = None
            elif job in session.waiting:
                session.waiting.remove(job)
        if isinstance(error, torch.OutOfMemoryError):
            busy = EngineBusyError("the device's memory is full; close a session or make the context smaller")
            busy.__cause__ = error
            error = busy
        job.timings["total"] = self._clock() - job.submitted
        if reason == "eos":
            self._crashes = 0
        job.listener.ended(reason, error)
        if session is not None and session.active is None and session.waiting:
            self._begin(session, session.waiting.popleft())

    @staticmethod
    def _leave(job: Job) -> None:
        """The stream's generation is no more; a step of it that is under way counts for nothing."""
        if job.generation is not None:
            job.generation.finished = True
        job.generation = None

    def _any_stopped(self) -> bool:
        return any(job.stopped for job in self._jobs.values())

    def _end_stopped(self) -> None:
        with self._wake:
            stopped = [job for job in self._jobs.values() if job.stopped]
        for job in stopped:
            self._end(job, "stopped", None)

    # State

    def _slot_for(self, session: _Session, rows: Rows, prefix: int, *, busy: KvSlot | None) -> tuple[KvSlot, int]:
        """A slot of the session that holds as much of `rows` as any, and how much it holds. `busy` is not touched, but
        may be copied from. Errors: `EngineBusyError`."""
        free = [slot for slot in session.slots if slot is not busy]
        best, held = None, -1
        for slot in free:
            common = slot.rows.common_prefix(rows)
            if common > held:
                best, held = slot, common
        source, shared = None, held
        if busy is not None and (common := busy.rows.common_prefix(rows)) > shared:
            source, shared = busy, common
        if best is None:
            best = self.pool.acquire()
            session.slots.append(best)
        known = self._prefixes.get(_digest(rows[:prefix])) if prefix else None
        if known is not None and prefix > shared:
            source, shared = known, prefix
        if source is not None:
            best.crop(0)
            best.copy_from(source, shared)
        return best, max(shared, 0)

    def _make_room(self) -> bool:
        """Give up what can be computed again: the oldest voice's prefix, else earlier states of sessions that are speaking,
        else the state of the session that has been idle longest, whose next turn then prefills its whole context. False if
        there is nothing of the kind."""
        if self._prefixes:
            _, slot = self._prefixes.popitem(last=False)
            self.pool.release(slot)
            return True
        for session in self._sessions.values():
            for slot in session.slots:
                if session.active is not None and slot not in (session.active.slot, session.target_slot):
                    session.slots.remove(slot)
                    self.pool.release(slot)
                    return True
        idle = [session for session in self._sessions.values() if session.idle and session.slots]
        if not idle:
            return False
        longest = min(idle, key=lambda session: session.used)
        for slot in longest.slots:
            self.pool.release(slot)
        longest.slots.clear()
        longest.target = longest.target_slot = None
        return True

    def _keep_prefix(self, slot: KvSlot, prefix: int) -> None:
        """The first to compute a voice's prefix leaves a copy for the others."""
        if not prefix or slot.length < prefix:
            return
        key = _digest(slot.rows[:prefix])
        if key in self._prefixes:
            self._prefixes.move_to_end(key)
            return
        try:
            kept = self.pool.acquire()
        except EngineBusyError:
            return
        try:
            kept.copy_from(slot, prefix)
        except EngineBusyError:
            kept.release()
            return
        self._prefixes[key] = kept
        while len(self._prefixes) > MAX_PREFIXES:
            _, old = self._prefixes.popitem(last=False)
            self.pool.release(old)

    def _set_target(self, name: str, rows: Rows, prefix: int) -> None:
        session = self._sessions.setdefault(name, _Session())
        if session.active is None and not session.waiting:
            session.target, session.target_prefix, session.target_slot = rows, prefix, None

    def _background(self, session: _Session) -> None:
        target = session.target
        assert target is not None
        busy = session.active.slot if session.active is not None else None
        try:
            if session.target_slot is None:
                if busy is None and session.slots:
                    # What only grows, grows in place; what was cut or slid is made beside the present state, which a
                    # rollback may still want.
                    last = max(session.slots, key=lambda slot: slot.rows.common_prefix(target))
                    if last.rows.common_prefix(target) < last.length:
                        busy = last
                if busy is not None and busy.rows.common_prefix(target) >= len(target):
                    session.target = None
                    return
                slot, held = self._slot_for(session, target, session.target_prefix, busy=busy)
                slot.crop(held)
                session.target_slot = slot
            slot = session.target_slot
            done = slot.length
            if done < len(target):
                self._runner.prefill(slot, target[done : done + self._runner.piece])
            self._keep_prefix(slot, session.target_prefix)
        except (EngineBusyError, torch.OutOfMemoryError):
            session.target = None  # no room for work that nobody waits for
            return
        except Exception as error:
            self._check(error)
            log.exception("a context could not be made ready; the chunk that needs it will prefill it")
            session.target = None
            if session.target_slot is not None:
                self._discard(session, session.target_slot)
            return
        if slot.length >= len(target):
            session.target = None
            session.target_slot = None

    def _close(self, name: str) -> None:
        session = self._sessions.pop(name, None)
        if session is None:
            return
        for job in (session.active, *session.waiting):
            if job is not None and job.order in self._jobs:
                self._end(job, "stopped", None)
        for slot in session.slots:
            self.pool.release(slot)

    # The end

    def _crashed(self, error: Exception) -> None:
        self._crashes += 1
        died = EngineDiedError(f"the engine's worker failed: {type(error).__name__}: {error}")
        died.__cause__ = error
        if self._crashes >= MAX_CRASHES:
            with self._wake:  # first, so that nobody is told of a failure and can then submit to a thread that ends
                self.dead = died
                self._closing = True
        self._end_all("error", died)
        self._free_all()

    def _end_all(self, reason: str, error: Exception | None) -> None:
        with self._wake:
            jobs = list(self._jobs.values())
            self._jobs.clear()
            for session in self._sessions.values():
                session.active = None
                session.waiting.clear()
                session.target = None
            self._commands.clear()
        self._launched = None
        for job in jobs:
            self._leave(job)
            job.listener.ended(reason, error)

    def _free_all(self) -> None:
        for session in self._sessions.values():
            for slot in session.slots:
                self.pool.release(slot)
        self._sessions.clear()
        for slot in self._prefixes.values():
            self.pool.release(slot)
        self._prefixes.clear()


def _reading(job: Job) -> int:
    """Rows of context that a job's prefill reads, where it is packed."""
    return reading(len(job.rows) - job.rows_left, job.rows_left)


def _digest(rows: Rows) -> bytes:
    sha = hashlib.sha256()
    for array in (rows.tokens, rows.codes, rows.audio):
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.digest()
