"""One turn of the agent: text in as it streams, sound, words and reports out."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from .. import telemetry
from ..audio import FRAME_RATE, PcmChunk
from ..errors import EngineError, NoAudioError, SynthesisError
from ..text.chunker import Chunker, TextChunk
from ..text.normalize import SpokenText, is_speakable, normalize
from .context import Entry
from .seams import Mark, Piece, Places, Seams, mark_between
from .synthesizer import AudioEvent, Codes, Exchange, FinishReason
from .timing import Word, WordTimer

if TYPE_CHECKING:
    from .session import VoiceSession

log = logging.getLogger("higgs_voice.session")

_ROUNDING = 1e-6
"""Frames: a difference of two times in seconds may fall short of a whole frame by this."""


@dataclass(frozen=True, slots=True)
class ChunkReport:
    """How one chunk went; comes when its generation has ended."""

    chunk: int
    written: str
    """The LLM's text."""
    spoken: str
    """What the model was given."""
    reason: FinishReason
    error: SynthesisError | None
    audio_s: float
    ttfa_s: float
    """From the request to the chunk's first PCM."""
    total_s: float
    """From the request to its last PCM."""
    exchanges: int
    """In the context it was spoken in."""
    timings: dict[str, float] = field(default_factory=dict[str, float])
    """The engine's own, in seconds."""

    @property
    def rtf(self) -> float:
        """Time to generate over time of audio."""
        return self.total_s / self.audio_s if self.audio_s else float("inf")


SpeechOut = PcmChunk | Word | ChunkReport


@dataclass(slots=True, eq=False)
class ChunkRecord:
    """What a session must know of a chunk until it is known how much of it was heard."""

    entry: Entry
    text: str
    start_s: float
    """Where it begins in the speech."""
    num_codebooks: int
    samples: int = 0
    sample_rate: int = 24000
    codes: list[Codes] = field(default_factory=list[Codes])
    words: list[Word] = field(default_factory=list[Word])
    first_word: int = 0
    """How many words the speech gave before this chunk."""
    finished: bool = False
    guarded: bool = False
    settled: bool = False
    places: Places = field(default_factory=Places)
    """Which of the engine's samples is heard where."""
    timer: WordTimer | None = None
    """Times the words while the chunk is generated."""
    _whole: tuple[int, Exchange] | None = None

    @property
    def end_s(self) -> float:
        return self.start_s + self.samples / self.sample_rate

    def exchange(self) -> Exchange | None:
        """All of it, or None if it must not be remembered. The same object as long as nothing is added: engines know their work
        on an exchange by it."""
        if self.guarded or not self.codes:
            return None
        if self._whole is None or self._whole[0] != len(self.codes):
            self._whole = len(self.codes), Exchange(text=self.text, codes=np.concatenate(self.codes, axis=1))
        return self._whole[1]

    def heard_exchange(self, heard_s: float, words: int | None) -> Exchange | None:
        """What is left when the speech was played up to `heard_s` (and, if given, up to its word number `words`).

        Codes to the frame, text to the word: one that is cut counts when half of it was heard, so that text and sound differ by
        half a word at most. Nothing is left of a chunk whose first word was not said that far: sound without any text. Of a
        chunk that broke off no more is left than what was given out, however much its codes ran ahead of that.
        """
        whole = self.exchange()
        if whole is None:
            return None
        if (
            self.finished
            and heard_s >= self.end_s - 1e-3
            and (words is None or words >= self.first_word + len(self.words))
        ):
            return whole
        frames = whole.frames
        if heard_s < self.end_s or not self.finished:
            made_s = self.places.made_s(min(heard_s, self.end_s) - self.start_s)
            frames = min(int(made_s * FRAME_RATE + _ROUNDING), frames)
        if words is None:
            said = [word for word in self.words if (word.start_s + word.end_s) / 2 <= heard_s]
        else:
            said = self.words[: max(0, words - self.first_word)]
        text = self.text[: said[-1].spoken_end].rstrip() if said else ""
        if frames <= 0 or not text:
            return None
        return Exchange(text=text, codes=whole.codes[:, :frames])


class Speech:
    """A turn: `feed` text and `end`, iterate to get `PcmChunk`, `Word` and `ChunkReport` in order.

    Iterating raises `EngineError` or `RemoteError` when the engine fails, and `NoAudioError` at the end when a chunk gave
    no sound (the others are spoken). Leaving the iteration early stops the speech.
    """

    def __init__(self, session: VoiceSession, speech_id: str, *, previous: Speech | None) -> None:
        self.id = speech_id
        self.records: list[ChunkRecord] = []
        self._records: dict[int, ChunkRecord] = {}
        """By the number of the chunk."""
        self.stopped = False
        self.settled = False
        self.trace = telemetry.TurnTrace(session.call_id, speech_id)
        self._session = session
        self._previous = previous
        self._chunker = Chunker(session.settings.chunker, clock=session.clock)
        self._text: list[str] = []
        self._flushed_to = 0
        """Characters of it before the last `flush`, at which the chunker began anew."""
        self._speaker: str | None = None
        """Who spoke there."""
        self._text_at: float | None = None
        """When the first text came."""
        self._first_pcm_s: float | None = None
        """How long after that the first sound was there."""
        self._chunks: deque[TextChunk] = deque()
        self._text_ended = False
        self._text_changed = asyncio.Event()
        self._out: deque[SpeechOut] = deque()
        self._out_changed = asyncio.Event()
        self._room = asyncio.Event()
        self._waiting_samples = 0
        self._taken_samples = 0
        self._samples = 0
        self._playing_until: float | None = None
        self._seams: Seams | None = None
        self._last_chunk: TextChunk | None = None
        self._words = 0
        self._done = asyncio.Event()
        self._settled_event = asyncio.Event()
        self._error: BaseException | None = None
        self._no_audio: NoAudioError | None = None
        self._current: str | None = None
        self._first_taken_at: float | None = None
        self._stopped_at: float | None = None
        self._tasks: list[asyncio.Task[None]] = []

    # For the caller

    def begin(self, text: str | AsyncIterable[str] | None) -> None:
        """Called by `VoiceSession.speak`."""
        loop = asyncio.get_running_loop()
        if isinstance(text, str):
            self.feed(text)
            self.end()
        elif text is not None:
            self._tasks.append(loop.create_task(self._feed_from(text), name=f"feed {self.id}"))
        self._tasks.append(loop.create_task(self._run(), name=f"speech {self.id}"))

    def feed(self, text: str | None) -> None:
        """More of the text, split anywhere. After `stop` it is ignored; after `end` it is an error.

        None, which an LLM's deltas may have for a content, is no text; anything else that is no `str` is a `TypeError`.
        """
        if self.stopped or text is None:
            return
        if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"a speech is fed with str, not {type(text).__name__}: {text!r:.60}")
        if self._text_ended:
            raise ValueError("this speech's text has ended; begin another one with session.speak()")
        self._text.append(text)
        if text:
            self._text_at = self._session.clock() if self._text_at is None else self._text_at
            self.trace.text()
        self._take_chunks(self._chunker.feed(text))

    def flush(self) -> None:
        """Speak what has been fed without waiting for its sentence to end; more text may follow."""
        if not self._text_ended and not self.stopped:
            chunks = self._chunker.flush()
            self._take_chunks(chunks)
            self._flushed_to = sum(map(len, self._text))
            self._speaker = (chunks[-1].speaker if chunks else None) or self._speaker

    def end(self) -> None:
        """No more text; idempotent."""
        if not self._text_ended:
            self._take_chunks(self._chunker.flush())
            self._text_ended = True
            self._text_changed.set()

    def stop(self) -> None:
        """Barge-in: no more sound comes out, the model stops within one step; idempotent, never waits."""
        if self.stopped:
            return
        self.stopped = True
        self._stopped_at = self._session.clock()
        if self._current is not None:
            self._session.engine.stop(self._current)
        self._chunks.clear()
        self._out.clear()
        self._waiting_samples = 0
        for event in (self._text_changed, self._out_changed, self._room):
            event.set()

    def __aiter__(self) -> AsyncIterator[SpeechOut]:
        return self.events()

    async def events(self) -> AsyncGenerator[SpeechOut]:
        """Sound, words and reports, in order. One consumer."""
        ended = False
        try:
            while True:
                while self._out:
                    item = self._out.popleft()
                    if isinstance(item, PcmChunk):
                        now = self._session.clock()
                        if self._first_taken_at is None:
                            self._first_taken_at = now
                            self.trace.taken()
                        self._playing_until = max(self._playing_until or now, now) + item.duration_s
                        self._taken_samples += item.samples
                        self._waiting_samples -= item.samples
                        self._room.set()
                    yield item
                if self.stopped or self._done.is_set():
                    break
                self._out_changed.clear()
                await self._out_changed.wait()
            ended = True
        finally:
            if not ended:
                self.stop()
        if self._error is not None and not self.stopped:
            raise self._error

    async def audio(self) -> AsyncGenerator[PcmChunk]:
        """Only the sound."""
        async with aclosing(self.events()) as events:
            async for item in events:
                if isinstance(item, PcmChunk):
                    yield item

    async def collect(self) -> bytes:
        """All of the sound as one piece: int16 mono."""
        return b"".join([chunk.pcm async for chunk in self.audio()])

    @property
    def complete(self) -> bool:
        """Everything has been generated and nothing was stopped or broke off."""
        return self.finished and not self.stopped and all(record.finished for record in self.records)

    @property
    def finished(self) -> bool:
        """Generation is over, for whatever reason."""
        return self._done.is_set()

    @property
    def audio_s(self) -> float:
        """Seconds generated so far."""
        return self._samples / self._session.engine.info.sample_rate

    # For the session

    def heard_by_clock(self) -> float:
        """Seconds played by the stop, if playing began with the first sound taken and never paused."""
        if self._first_taken_at is None:
            return 0.0
        until = self._stopped_at if self._stopped_at is not None else self._session.clock()
        taken = self._taken_samples / self._session.engine.info.sample_rate
        return min(max(until - self._first_taken_at, 0.0), taken)

    def played_out(self) -> bool:
        """Whether its playing time has passed by the clock."""
        if self._first_taken_at is None:
            return not self._samples
        return self._session.clock() - self._first_taken_at >= self.audio_s

    def mark_settled(self) -> None:
        self.settled = True
        self._settled_event.set()

    async def wait_settled(self, timeout_s: float) -> None:
        """Until `settle`, for `timeout_s` from the stop at most."""
        passed = self._session.clock() - (self._stopped_at or 0.0)
        try:
            await asyncio.wait_for(self._settled_event.wait(), max(0.0, timeout_s - passed))
        except TimeoutError:
            return

    async def aclose(self) -> None:
        """End its tasks; they have been told to stop."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # Inside

    async def _feed_from(self, source: AsyncIterable[str]) -> None:
        try:
            async for text in source:
                if self.stopped:
                    return
                self.feed(text)
        except Exception as error:  # noqa: BLE001 - raised to the consumer when what was fed has been spoken
            self._error = error
        finally:
            self.end()

    def _take_chunks(self, chunks: list[TextChunk]) -> None:
        """Chunks as the chunker has them, whose text begins at the last `flush`."""
        if chunks:
            self.trace.cut()
        before = self._flushed_to
        self._chunks.extend(
            replace(chunk, start=chunk.start + before, end=chunk.end + before, speaker=chunk.speaker or self._speaker)
            for chunk in chunks
        )
        self._text_changed.set()

    async def _next_chunk(self) -> TextChunk | None:
        """The next chunk, or None at the end. A clause that an LLM's stall holds back is released by the chunker."""
        while not self.stopped:
            if self._chunks:
                return self._chunks.popleft()
            if self._text_ended:
                return None
            self._text_changed.clear()
            deadline = self._chunker.deadline()
            try:
                wait = None if deadline is None else max(0.0, deadline - self._session.clock())
                await asyncio.wait_for(self._text_changed.wait(), wait)
            except TimeoutError:
                self._take_chunks(self._chunker.poll())
        return None

    async def _run(self) -> None:
        try:
            if self._previous is not None:
                await self._previous._done.wait()
                self._previous = None
            await self._session.before_speech(self)
            number = 0
            while (chunk := await self._next_chunk()) is not None:
                await self._speak(number, chunk)
                number += 1
            if self._seams is not None:
                self._give_pieces(self._seams.close())
            if self._no_audio is not None and self._error is None:
                self._error = self._no_audio
        except asyncio.CancelledError:
            self._error = EngineError("the session was closed while it spoke")
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the consumer hears of it and does not wait for ever
            self._error = error
            self._stopped_at = self._session.clock()
        finally:
            self._note_end()
            self._done.set()
            self._out_changed.set()
            for task in self._tasks:
                if task is not asyncio.current_task():
                    task.cancel()
            self._session.speech_ended(self)

    async def _speak(self, number: int, chunk: TextChunk) -> None:
        session = self._session
        info = session.engine.info
        spoken = _spoken(chunk, session)
        timer = WordTimer(number, chunk.text, chunk.start, spoken, self.audio_s, session.rate, info.sample_rate)
        if not is_speakable(chunk.text, before=chunk.before) or not spoken.text:
            self._give_words(timer.finish(learn=False), None)
            return
        entry = Entry(self.id, None)
        state = session.begin_chunk(entry)
        seams = self._begin_seam(number, chunk)
        start_s = timer.base_s = (self._samples + seams.pending) / info.sample_rate
        record = ChunkRecord(entry, spoken.text, start_s, info.num_codebooks, sample_rate=info.sample_rate)
        record.first_word = self._words
        record.places = seams.places
        record.timer = timer
        self._records[number] = record
        self.records.append(record)
        self._current = f"{self.id}/{number}"
        request = session.request(self._current, state, spoken.text)
        began = session.clock()
        first: float | None = None
        self.trace.chunk(number, len(spoken.text), spoken.text if session.settings.log_text else None)
        try:
            async with aclosing(session.engine.speak(request)) as events:
                async for event in events:
                    if self.stopped:
                        break
                    if isinstance(event, AudioEvent):
                        if event.codes.shape[1]:
                            record.codes.append(event.codes)
                        if event.pcm:
                            if first is None:
                                first = session.clock()
                                self.trace.first_pcm()
                                if self._first_pcm_s is None and self._text_at is not None:
                                    self._first_pcm_s = first - self._text_at
                            self._give_pieces(seams.feed(np.frombuffer(event.pcm, dtype="<i2")))
                            await self._wait_for_room()
                        continue
                    self._give_pieces(seams.end(more=bool(self._chunks) or self._text_ended))
                    record.timer = None
                    record.finished = event.reason in (FinishReason.EOS, FinishReason.LENGTH) or event.reason.guarded
                    record.guarded = event.reason.guarded
                    if isinstance(event.error, NoAudioError):
                        self._no_audio = event.error
                    if record.samples and record.finished:  # words without sound were said to nobody
                        self._give_words(timer.finish(learn=not record.guarded), record)
                    if not record.settled:
                        entry.exchange = record.heard_exchange(math.inf, None)
                    now = session.clock()
                    report = ChunkReport(
                        chunk=number,
                        written=chunk.text,
                        spoken=spoken.text,
                        reason=event.reason,
                        error=event.error,
                        audio_s=record.samples / info.sample_rate,
                        ttfa_s=(first if first is not None else now) - began,
                        total_s=now - began,
                        exchanges=len(request.context.exchanges),
                        timings=event.timings,
                    )
                    self._note_chunk(report)
                    self._give(report)
        finally:
            self._current = None

    def _note_chunk(self, report: ChunkReport) -> None:
        self.trace.chunk_ended(
            report.error, reason=report.reason.value, audio_s=report.audio_s, exchanges=report.exchanges
        )
        settings = self._session.settings
        telemetry.event(
            log,
            "chunk spoken",
            level=logging.INFO if report.error is None else logging.WARNING,
            call_id=self._session.call_id,
            speech=self.id,
            chunk=report.chunk,
            reason=report.reason.value,
            ttfa_s=report.ttfa_s,
            audio_s=report.audio_s,
            rtf=report.rtf if report.audio_s else None,
            exchanges=report.exchanges,
            error=telemetry.kind_of(report.error),
            text=report.written if settings.log_text else None,
        )

    def _note_end(self) -> None:
        error = None if self.stopped else self._error
        self.trace.ended(error, chunks=len(self.records), audio_s=self.audio_s, interrupted=self.stopped)
        telemetry.event(
            log,
            "turn spoken",
            level=logging.INFO if error is None else logging.ERROR,
            call_id=self._session.call_id,
            speech=self.id,
            chunks=len(self.records),
            audio_s=self.audio_s,
            first_pcm_s=self._first_pcm_s,
            interrupted=self.stopped,
            error=telemetry.kind_of(error),
        )

    def _give(self, item: SpeechOut) -> None:
        if not self.stopped:
            self._out.append(item)
            self._out_changed.set()

    def _begin_seam(self, number: int, chunk: TextChunk) -> Seams:
        """Settings hold for a whole speech. What the last chunk still held back is given out."""
        settings, last = self._session.settings, self._last_chunk
        if self._seams is None:
            self._seams = Seams(
                pauses=settings.pauses,
                crossfade=settings.crossfade,
                rate=settings.speech_rate,
                sample_rate=self._session.engine.info.sample_rate,
            )
        mark, waited_s = Mark.NONE, 0.0
        if last is not None:
            gap = "".join(self._text)[last.end : chunk.start]
            mark = mark_between(last.text, gap, other_speaker=chunk.speaker != last.speaker)
            if self._playing_until is not None and not self._waiting_samples:
                waited_s = max(0.0, self._session.clock() - self._playing_until)
        self._last_chunk = chunk
        self._give_pieces(self._seams.begin(number, chunk.text, mark, waited_s=waited_s))
        return self._seams

    def _give_pieces(self, pieces: list[Piece]) -> None:
        for piece in pieces:
            record = self._records[piece.chunk]
            if record.timer is not None:
                self._give_words(record.timer.audio(piece.pcm), record)
            sound = PcmChunk(piece.pcm.tobytes(), self._samples, piece.chunk, self._session.engine.info.sample_rate)
            self._samples += sound.samples
            self._waiting_samples += sound.samples
            record.samples += sound.samples
            self._give(sound)

    def _give_words(self, words: list[Word], record: ChunkRecord | None) -> None:
        for word in words:
            self._words += 1
            if record is not None:
                record.words.append(word)
            self._give(word)

    async def _wait_for_room(self) -> None:
        limit = self._session.settings.run_ahead_s * self._session.engine.info.sample_rate
        while self._waiting_samples > limit and not self.stopped:
            self._room.clear()
            await self._room.wait()


def _spoken(chunk: TextChunk, session: VoiceSession) -> SpokenText:
    """What the model is given for a chunk: speakable, and with the tag of the speaker whose words these are."""
    text = chunk.text
    if session.settings.normalize:
        spoken = normalize(
            text,
            lexicon=session.lexicon,
            language=session.settings.language,
            before=chunk.before,
            goes_on=chunk.goes_on,
        )
    else:
        spoken = SpokenText(text, tuple(range(len(text))), tuple(range(1, len(text) + 1)), len(text))
    if chunk.speaker is None or not spoken.text or spoken.text.startswith("["):
        return spoken
    tag = f"[{chunk.speaker}] "
    nothing = (0,) * len(tag)
    return SpokenText(tag + spoken.text, nothing + spoken.starts, nothing + spoken.ends, spoken.written_length)
