"""Higgs Audio v2 as a Pipecat TTS service: one voice for the whole conversation.

    tts = HiggsTTSService(voice=Voice.create(speakers="feminine; warm"))
    Pipeline([transport.input(), user, llm, tts, transport.output(), PlayoutTracker(tts), assistant])

The service is a translator: chunking, the rolling context and generation are `VoiceSession`'s. Tokens go in as the LLM
streams them; a turn is one speech of the session, ended by ``LLMFullResponseEndFrame``; a ``TTSSpeakFrame`` is one too.

**Word times** are the session's estimates (see `conversation.timing`), given to the framework relative to the opening of
the audio context as the framework counts it: from the first audio frame it pushes, or from the last word before that if
it is later. What the output transport still plays of earlier speech, and every pause in which it had nothing to play (a
stall of the LLM, an engine that fell behind), is added to them.

**What was heard.** `PlayoutTracker`, placed right after ``transport.output()``, counts the audio that the transport has
written, to the transport's chunk (40 ms; the chunk in flight counts as not heard). It also lets the words through to the
assistant's aggregator one by one as their sound is played, and tells the session the same position and the same words:
what the LLM's context says was spoken is what the voice remembers. Without it the words ride on the framework's clock,
and the session is told, from the clock, what would have been played: early by what the transport holds back (at least
one of its chunks, plus network), and cut at the words that the aggregator reports to have committed.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from dataclasses import fields, replace
from typing import Any

from .. import telemetry
from ..audio import PcmChunk
from ..conversation.presets import find_voice
from ..conversation.session import SessionSettings, VoiceSession
from ..conversation.snapshot import Snapshot
from ..conversation.speech import ChunkReport, Speech
from ..conversation.synthesizer import Synthesizer
from ..conversation.timing import Word
from ..conversation.voice import Voice
from ..errors import (
    ConnectionLostError,
    DependencyError,
    EngineBusyError,
    EngineClosedError,
    HiggsVoiceError,
    SettingsError,
)
from ..text import Lexicon
from . import engines
from .playout import Device, Timeline

try:
    from loguru import logger
    from pipecat.frames.frames import (
        AggregatedTextFrame,
        CancelFrame,
        EndFrame,
        ErrorFrame,
        Frame,
        InterruptionFrame,
        LLMAssistantPushAggregationFrame,
        LLMContextAssistantTurnFrame,
        LLMFullResponseEndFrame,
        LLMFullResponseStartFrame,
        LLMTextFrame,
        StartFrame,
        TextFrame,
        TTSAudioRawFrame,
        TTSSpeakFrame,
        TTSStartedFrame,
        TTSStoppedFrame,
        TTSTextFrame,
    )
    from pipecat.processors.frame_processor import FrameCallback, FrameDirection, FrameProcessorSetup
    from pipecat.services.settings import TTSSettings
    from pipecat.services.tts_service import TextAggregationMode, TTSService
    from pipecat.transcriptions.language import Language
    from pipecat.utils.text.base_text_aggregator import TextType
    from pipecat.utils.tracing.service_decorators import traced_tts
    from pipecat.utils.types import NotGiven, is_given

    from .pipecat_playout import AFTER, PlayoutTracker, Utterance
    from .pipecat_settings import (
        SAMPLING,
        HiggsTTSSettings,
        check_arguments,
        check_language,
        check_places,
        check_settings,
    )
except ModuleNotFoundError as error:
    raise DependencyError(
        f'the Pipecat service needs {error.name}, which is not installed; run: pip install "higgs-voice[pipecat]"'
    ) from error

__all__ = ["HiggsTTSService", "HiggsTTSSettings", "PlayoutTracker"]

SETUP_PATIENCE_S = 15.0
"""How long the pipeline's start waits for the engine. A model that takes longer goes on loading behind it, and text waits for it."""
_FORGET_AFTER_S = 30.0
_OPENING_PATIENCE_S = 5.0
_EARLY_S = 1.0
_MOST_HOLD_S = 0.5
_SETTLE_AFTER_S = 0.2
"""How long the tracker's or the aggregator's word is waited for before the clock's estimate is given to the session."""


class HiggsTTSService(TTSService):
    """Speaks with Higgs Audio v2, in the voice of what was heard so far.

    Args:
        model: What `create_backend` takes: "nano", a hub id, a folder, "ws://host:port". Services of one process and
            model share one engine, which goes when the last of them does.
        engine: An engine of your own instead, which the service uses and never closes.
        voice: See `HiggsTTSSettings`.
        settings: Runtime settings; what they give goes before the other arguments.
        session_settings: Sampling, window, chunker: how the session speaks and what it remembers.
        lexicon: What is said for words of your own.
        snapshot: A call that was begun elsewhere, as that service's `snapshot()` gave it, to go on with: its voice, and what it
            has said. How it speaks is for the other arguments. Errors: `SnapshotError` for what is none.
        lead_s: How much audio is handed to the transport before it is played. The rest waits in the session, where an
            interruption costs nothing.
        **kwargs: For `TTSService`; `sample_rate` among them. Errors: `SettingsError` for one that nobody takes, `ModelNotFoundError`
            and `VoiceError` for a name that cannot be found.

    Event handlers: `TTSService`'s, and ``on_chunk(service, report)`` with a `ChunkReport` when a chunk is generated.
    """

    Settings = HiggsTTSSettings
    _settings: HiggsTTSSettings  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(
        self,
        *,
        model: str = "nano",
        engine: Synthesizer | None = None,
        voice: Voice | str | None = None,
        settings: HiggsTTSSettings | None = None,
        session_settings: SessionSettings | None = None,
        lexicon: Lexicon | None = None,
        snapshot: bytes | None = None,
        lead_s: float = 2.0,
        **kwargs: Any,
    ) -> None:
        kwargs = check_arguments(kwargs, type(self))
        wanted = session_settings or SessionSettings()
        store = self.Settings(
            model=model if engine is None else None,
            language=wanted.language,
            voice=voice,
            scene=None,
            speakers=None,
            on_voice_change="new",
            **{name: getattr(wanted.sampling, name) for name in SAMPLING},
        )
        if settings is not None:
            store.apply_update(settings)
            if is_given(settings.language):
                store.language = wanted.language if settings.language is None else check_language(settings.language)
        sampling = check_settings(store)
        voice_given = store.voice
        if snapshot is not None:
            if any(item is not None for item in (store.voice, store.scene, store.speakers)):
                raise SettingsError(
                    "HiggsTTSService takes a snapshot or a voice: the snapshot brings the voice of its call"
                )
            saved = Snapshot.parse(snapshot).voice
            store.voice, store.scene, store.speakers = saved.name, saved.scene, saved.speakers
        check_places(store.model, voice_given, engine)
        if isinstance(voice_given, Voice):
            store.voice = voice_given.name
        kwargs.setdefault("stop_frame_timeout_s", 30.0)  # contexts are closed by the service; a slow LLM must not
        super().__init__(
            text_aggregation_mode=TextAggregationMode.TOKEN,
            push_text_frames=False,
            push_start_frame=True,
            push_stop_frames=True,
            reuse_context_id_within_turn=True,
            settings=store,
            **kwargs,
        )
        self._session_settings = wanted.replace(sampling=sampling, language=str(store.language))
        self._language = wanted.language
        self._lexicon = lexicon
        self._snapshot = snapshot
        self._lead_s = lead_s
        self._given_engine = engine
        self._borrowed: str | None = None
        self._voice_given = voice_given if is_given(voice_given) else None
        self._session: VoiceSession | None = None
        self._opening_task: asyncio.Task[None] | None = None
        self._opening_error: Exception | None = None
        self._reopening = False
        self._started = False
        self._device = Device()
        self._utterances: dict[str, Utterance] = {}
        self._pumps: set[asyncio.Task[None]] = set()
        self._last_pump: asyncio.Task[None] | None = None
        self._timers: set[asyncio.TimerHandle] = set()
        self._failing: dict[int, Utterance] = {}
        self._pushing: Utterance | None = None
        self._broken: str | None = None
        self._cutting = False
        self._hold_s = 0.0
        self._replies = 0
        self._in_reply = False
        self._cut_reply = 0
        self._written: tuple[str, bool] = ("", True)
        self._tracker: PlayoutTracker | None = None
        self.mark = f"higgs_voice.utterance.{self.id}"
        """Key of a frame's metadata: the utterance of this service it belongs to, or follows."""
        self._reply_mark = f"higgs_voice.reply.{self.id}"
        self._register_event_handler("on_chunk")

    # What is known

    @property
    def session(self) -> VoiceSession:
        """The conversation's voice, once its engine has been loaded. Errors: `HiggsVoiceError` before, and if that failed."""
        if self._session is not None:
            return self._session
        if self._opening_error is not None:
            raise EngineClosedError(f"HiggsTTSService has no engine: {self._opening_error}") from self._opening_error
        if self._opening_task is not None and not self._opening_task.done():
            raise EngineClosedError("HiggsTTSService has no session yet: its engine is still loading")
        raise EngineClosedError("HiggsTTSService has a session only while its pipeline is set up")

    def snapshot(self) -> bytes:
        """The call's voice and what was heard of it, for a service on another worker (`snapshot=`); changes nothing here.

        Errors: `HiggsVoiceError` without a session.
        """
        now = self._now()
        heard = {
            item.speech.id: item.played_s
            if self._tracker is not None
            else item.timeline.heard(item.dead_at if item.dead else now)
            for item in self._utterances.values()
            if item.speech is not None and not item.orphan
        }
        return self.session.snapshot(heard)

    @property
    def supports_processing_metrics(self) -> bool:
        return False  # run_tts only hands the text over

    def can_generate_metrics(self) -> bool:
        return True

    def language_to_service_language(self, language: Language) -> str | None:
        """The two letters that normalising knows: ``Language.EN_US`` is "en"."""
        return str(language.value).split("-")[0].lower()

    # Life

    async def setup(self, setup: FrameProcessorSetup) -> None:
        """Load and warm up the engine, and prefill the voice, while the pipeline is being set up."""
        await super().setup(setup)
        if self._opening_task is None:
            self._opening_task = self.create_task(self._open())
        await asyncio.wait({self._opening_task}, timeout=SETUP_PATIENCE_S)

    async def _open(self) -> None:
        try:
            engine = self._given_engine
            if engine is None:
                name = str(self._settings.model)
                engine = await engines.borrow(name)
                self._borrowed = name
            session = await self._session_on(engine)
            if self._settings.model is None:
                self._settings.model = engine.info.model
                self._sync_model_name_to_metrics()
        except Exception as error:  # noqa: BLE001 - a service that cannot speak says why, whatever the reason
            self._opening_error = error
            name, self._borrowed = self._borrowed, None
            if name is not None:  # the next try borrows again
                await engines.give_back(name)
            # A server that is away or full comes back: the next utterance tries again.
            self._reopening = self._reopening or isinstance(error, (ConnectionLostError, EngineBusyError))
            if self._started and not self._reopening:  # else whoever waits says so, and the next utterance tries again
                await self._report_opening_error(error)
            return
        self._session, self._opening_error, self._reopening = session, None, False
        for utterance in self._utterances.values():
            if utterance.speech is None and not (utterance.dead or utterance.done):
                self._speak(session, utterance)

    def _reopen_if_dead(self) -> None:
        """Where the borrowed engine is dead, go on with another one, in the voice of what was heard; called for each utterance."""
        name, session, opening = self._borrowed, self._session, self._opening_task
        if opening is None or not opening.done():
            return
        if session is None:
            if self._reopening:  # the last try failed
                self._opening_task = self.create_task(self._open())
            return
        if name is None or engines.serves(name, session.engine):
            return
        logger.warning(f"{self}: the engine is dead; going on with another one")
        self._reopening = True
        self._opening_task = self.create_task(self._reopen(session, name, self._last_pump))

    async def _reopen(self, dead: VoiceSession, name: str, last: asyncio.Task[None] | None) -> None:
        """First what the old session began is played to its end: sound that is ready needs no engine, and what needs one fails."""
        if last is not None and not last.done():
            await asyncio.wait({last})
        await asyncio.sleep(max(0.0, self._device.ahead(self._now())))
        try:
            self._snapshot = self.snapshot()
        except HiggsVoiceError as error:
            logger.warning(f"{self}: the voice begins anew: {error}")
            self._voice_given = dead.voice
        for utterance in self._utterances.values():
            utterance.orphan = utterance.speech is not None
        self._session_settings, self._session, self._borrowed = dead.settings, None, None
        try:
            await dead.aclose()
        finally:
            await engines.give_back(name)
        await self._open()

    async def _session_on(self, engine: Synthesizer) -> VoiceSession:
        """A started session: text waits for it, so that a context without sound is not taken for a failure."""
        if self._snapshot is not None:
            return await VoiceSession.restore(
                engine, self._snapshot, settings=self._session_settings, lexicon=self._lexicon, clock=self._now
            )
        given = self._voice_given or Voice()
        voice = await self._voice_of(given, engine, self._settings.scene, self._settings.speakers)
        session = VoiceSession(
            engine, voice=voice, settings=self._session_settings, lexicon=self._lexicon, clock=self._now
        )
        try:
            await session.start()
        except BaseException:
            await session.aclose()
            raise
        return session

    async def start(self, frame: StartFrame) -> None:
        await super().start(frame)
        self._started = True
        if self._opening_error is not None and not self._reopening:  # before the start nothing carries it upstream
            await self._report_opening_error(self._opening_error)

    async def _report_opening_error(self, error: Exception) -> None:
        await self.push_error(f"Higgs cannot speak: {error}", exception=error, force_treat_as_permanent=True)

    async def stop(self, frame: EndFrame) -> None:
        for utterance in self._utterances.values():
            utterance.end()  # or the wait for what is left to play would have no end
        await super().stop(frame)

    async def cancel(self, frame: CancelFrame) -> None:
        self.interrupt(everything=True)
        await super().cancel(frame)

    async def cleanup(self) -> None:
        """Free everything: the session and its state in the engine, tasks, and the engine if nobody else uses it."""
        self.interrupt(everything=True)
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        await super().cleanup()
        for task in (self._opening_task, *self._pumps):
            if task is not None and not task.done():
                await self.cancel_task(task)
        self._pumps.clear()
        self._utterances.clear()
        session, self._session = self._session, None
        if session is not None:
            await session.aclose()
        borrowed, self._borrowed = self._borrowed, None
        if borrowed is not None:
            await engines.give_back(borrowed)

    # Text in

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        unreported = ""
        if isinstance(frame, InterruptionFrame):
            # Before anything is awaited: the framework first waits for the task that processes frames to end.
            self.interrupt()
            self._cutting = True
            unreported, self._streamed_text = self._streamed_text, ""
        elif isinstance(frame, LLMFullResponseStartFrame) and not frame.skip_tts:
            if self._turn_context_id is not None:
                await self.on_turn_context_completed()  # of a turn whose end the LLM never sent
        elif isinstance(frame, (LLMTextFrame, AggregatedTextFrame)) and not frame.skip_tts and self._broken_off:
            return  # it would reopen a context that nobody closes
        elif isinstance(frame, LLMTextFrame) and self._stale(frame):
            logger.debug(f"{self}: dropping a token of an interrupted reply")
            return
        elif isinstance(frame, LLMContextAssistantTurnFrame) and direction == FrameDirection.UPSTREAM:
            self._committed(frame.text)
        elif isinstance(frame, AggregatedTextFrame):
            self._written = (frame.raw_text or frame.text, frame.text_type == TextType.TOKEN)
            current = self._utterances.get(self._turn_context_id or "")
            frame.metadata[AFTER] = len(current.script.written.rstrip()) if current else 0
        elif isinstance(frame, TextFrame):
            self._written = (frame.text, True)
        elif isinstance(frame, TTSSpeakFrame):
            self._written = (frame.text, False)
            await self._report_usage()  # of the turn it stands in
        try:
            await super().process_frame(frame, direction)
        finally:
            if isinstance(frame, InterruptionFrame):
                self._cutting = False
        if unreported:
            await self._report_usage(unreported)

    async def queue_frame(
        self,
        frame: Frame,
        direction: FrameDirection = FrameDirection.DOWNSTREAM,
        callback: FrameCallback | None = None,
    ) -> None:
        """What arrives is marked with the reply it belongs to: an interruption may drop a reply's start and leave its tokens."""
        if isinstance(frame, InterruptionFrame):
            self._cut_reply = self._replies
        elif isinstance(frame, LLMFullResponseStartFrame) and not frame.skip_tts:
            self._replies += 1
            self._in_reply = True
        elif isinstance(frame, LLMFullResponseEndFrame) and not frame.skip_tts:
            self._in_reply = False
        elif isinstance(frame, LLMTextFrame) and self._in_reply:
            frame.metadata[self._reply_mark] = self._replies
        await super().queue_frame(frame, direction, callback)

    @property
    def _broken_off(self) -> bool:
        """Whether the present reply could not be spoken further: the rest of its text is not, and opens no context again."""
        return self._broken is not None and self._broken == self._turn_context_id

    def _stale(self, token: LLMTextFrame) -> bool:
        """Whether the reply of a token was interrupted. One outside of any reply never is."""
        reply = token.metadata.get(self._reply_mark, 0)
        return reply > 0 and not token.skip_tts and (reply <= self._cut_reply or self._turn_context_id is None)

    async def _report_usage(self, text: str | None = None) -> None:
        """Report the characters that the framework, which does so at the end of a reply only, has counted until now."""
        if text is None:
            text, self._streamed_text = self._streamed_text, ""
        if text:
            await super(TTSService, self).start_tts_usage_metrics(text)

    @traced_tts
    async def run_tts(self, text: str, context_id: str) -> AsyncGenerator[Frame | None, None]:
        """Hand a piece of text to the speech of this context; its audio comes from a task of the speech's own."""
        utterance = self._utterances.get(context_id) or self._begin(context_id)
        written, is_token = self._written
        if not is_token and not utterance.script.fed_to_a_space and not text[:1].isspace():
            text, written = f" {text}", written if written[:1].isspace() else f" {written}"
        if not utterance.dead:
            utterance.feed(text, written)
            if context_id != self._turn_context_id:
                utterance.end()  # text outside of any turn is all there is to its context
                await self._report_usage()
        yield None

    async def on_turn_context_completed(self) -> None:
        """The turn's text has ended."""
        context_id = self._turn_context_id or ""
        utterance = self._utterances.get(context_id)
        if utterance is not None:
            utterance.end()
        if (utterance is None or self._broken_off) and self.audio_context_available(context_id):
            await self.remove_audio_context(context_id)  # opened for text that was not spoken any more
        await self._report_usage()
        await super().on_turn_context_completed()

    def _begin(self, context_id: str) -> Utterance:
        self._reopen_if_dead()
        now = self._now()
        for key, old in list(self._utterances.items()):
            if old.done and not old.dead and old.timeline.ends + _FORGET_AFTER_S < now:
                del self._utterances[key]  # nobody told what was heard of it; the session took it for heard
        context = self._tts_contexts.get(context_id)
        utterance = self._utterances[context_id] = Utterance(
            context_id,
            Timeline(self._device),
            interruptible=context.interruptible if context else True,
            in_transcript=context.append_to_context if context else True,
        )
        if self._session is not None and not self._reopening:
            self._speak(self._session, utterance)
        task = self._last_pump = self.create_task(self._pump(utterance, self._last_pump))
        self._pumps.add(task)
        task.add_done_callback(self._pumps.discard)
        return utterance

    def _speak(self, session: VoiceSession, utterance: Utterance) -> None:
        session.by_clock = self._tracker is None
        spans: dict[str, Any] = getattr(self, "_tts_spans", {})  # of the framework's `traced_tts`
        with telemetry.under(spans.get(utterance.context_id, {}).get("span")):
            speech = session.speak()
        utterance.begin(speech)

    # Sound out

    async def _pump(self, utterance: Utterance, before: asyncio.Task[None] | None) -> None:
        """Carry what the speech gives into the framework's audio context, and close that."""
        failure: ErrorFrame | None = None
        if before is not None and not before.done():
            await asyncio.wait({before})
        try:
            speech = await self._speech_of(utterance)
            if speech is None or utterance.dead:
                return
            async with aclosing(speech.events()) as events:
                async for event in events:
                    if utterance.dead:
                        return
                    if isinstance(event, PcmChunk):
                        utterance.learning = (
                            utterance.learning and event.chunk == 0
                        )  # later chunks may wait for the LLM
                        await self._play(utterance, event)
                    elif isinstance(event, Word):
                        await self._place(utterance, event)
                    else:
                        await self._report(event)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is reported, and the context must not stay open
            if utterance.speech is None and not self.is_usable:
                utterance.failed = True  # why has been said, once for all that waited
            else:
                failure = ErrorFrame(error=f"Higgs could not speak: {error}", exception=error)
                self._failing[id(failure)] = utterance
                self._broken = utterance.context_id
        if utterance.dead:
            return
        tail = await utterance.resampler.flush()
        utterance.done = True
        if not self.audio_context_available(utterance.context_id):  # closed by its time limit, and nothing came since
            if failure is not None:
                await self.push_error_frame(failure)
            self.settle(utterance, math.inf, None)
            return
        if tail:
            await self.append_to_audio_context(utterance.context_id, self._audio_frame(utterance, tail))
        if failure is not None:
            await self.append_to_audio_context(utterance.context_id, failure)
        await self.remove_audio_context(utterance.context_id)

    async def _speech_of(self, utterance: Utterance) -> Speech | None:
        """Its speech, once there is a session; until then its context is kept open. None if it was interrupted before.

        Errors: `EngineClosedError` if there is to be no session.
        """
        opening = self._opening_task
        while opening is not None and not opening.done():
            await asyncio.wait({opening}, timeout=self._stop_frame_timeout_s / 2)
            self._refresh_audio_context(utterance.context_id)
        if utterance.speech is None and not utterance.dead:
            raise EngineClosedError(f"HiggsTTSService has no engine: {self._opening_error}")
        return utterance.speech

    async def _play(self, utterance: Utterance, chunk: PcmChunk) -> None:
        wait = self._device.ahead(self._now()) - self._lead_s
        if not utterance.spoke:
            wait = max(wait, self._hold_s)
        elif utterance.learning and chunk.start_s >= _EARLY_S:
            self._learn(utterance)
        if wait > 0:
            with suppress(TimeoutError):
                await asyncio.wait_for(utterance.changed.wait(), wait)
        if utterance.dead:
            return
        pcm = chunk.pcm
        if chunk.sample_rate != self.sample_rate:
            pcm = await utterance.resampler.resample(pcm, chunk.sample_rate, self.sample_rate)
        if not self.audio_context_available(utterance.context_id):
            await self.create_audio_context(utterance.context_id)
            await self.append_to_audio_context(utterance.context_id, TTSStartedFrame(context_id=utterance.context_id))
        utterance.spoke = True
        begun = 0.0
        if pcm:
            utterance.changed.clear()
            await self.append_to_audio_context(utterance.context_id, self._audio_frame(utterance, pcm))
            if utterance.opening is None and not utterance.dead:
                # Words can be timed from when the framework has come to this sound; earlier contexts are before it.
                with suppress(TimeoutError):
                    await asyncio.wait_for(utterance.changed.wait(), _OPENING_PATIENCE_S)
                begun = utterance.opened_at
        utterance.timeline.write(begun or self._now(), chunk.start_s, chunk.duration_s)

    def _learn(self, utterance: Utterance) -> None:
        """An engine that hardly keeps up runs dry while its codec's look-ahead grows: the next utterance begins later.

        A pause of the first second's sound adds to the hold; each utterance without one takes a part of it away.
        """
        utterance.learning = False
        self._hold_s = min(0.75 * self._hold_s + 1.2 * utterance.timeline.starved(_EARLY_S), _MOST_HOLD_S)

    async def start_word_timestamps(self) -> None:
        """The framework opens the playing context's word clock here, by the same rule."""
        utterance = self._utterances.get(self.get_active_audio_context_id() or "")
        if utterance is not None and utterance.opening is None:
            utterance.opened_at = self._now()
            utterance.opening = max(utterance.opened_at, self._word_timestamp_tracker.last_pts / 1e9)
            utterance.changed.set()
        await super().start_word_timestamps()

    async def _place(self, utterance: Utterance, word: Word) -> None:
        told = utterance.place(word)
        if not told:
            return
        seconds = 0.0
        if utterance.opening is not None:
            seconds = max(0.0, utterance.timeline.at(word.start_s) - utterance.opening)
        await self.add_word_timestamps([(told, seconds)], utterance.context_id)

    async def _report(self, report: ChunkReport) -> None:
        if report.error is not None:
            text = f" [{report.written}]" if self._session_settings.log_text else ""
            logger.warning(f"{self}: chunk {report.chunk}: {report.error}{text}")
        await self._call_event_handler("on_chunk", report)

    def _audio_frame(self, utterance: Utterance, pcm: bytes) -> TTSAudioRawFrame:
        return TTSAudioRawFrame(pcm, self.sample_rate, 1, context_id=utterance.context_id)

    async def on_audio_context_completed(self, context_id: str) -> None:
        """The context was closed; by its time limit, more may come, and the framework counts anew from there."""
        utterance = self._utterances.get(context_id)
        if utterance is not None:
            utterance.opening = None
        await super().on_audio_context_completed(context_id)

    async def push_error_frame(self, error: ErrorFrame, force_treat_as_permanent: bool = False) -> None:
        utterance = self._failing.pop(id(error), None)
        if utterance is not None:
            utterance.failed = True
        await super().push_error_frame(error, force_treat_as_permanent)

    async def push_frame(self, frame: Frame, direction: FrameDirection = FrameDirection.DOWNSTREAM) -> None:
        """Nothing of an interrupted utterance passes; what passes is marked for the tracker with its utterance."""
        if direction == FrameDirection.DOWNSTREAM:
            utterance = self._utterances.get(getattr(frame, "context_id", None) or "")
            if isinstance(frame, TTSStartedFrame):
                self._pushing = utterance
            if utterance is not None and isinstance(frame, (TTSAudioRawFrame, TTSTextFrame)):
                if utterance.dead and self._cutting:
                    return
                if isinstance(frame, TTSTextFrame):
                    if utterance.failed:
                        return  # the framework takes the rest of the text for spoken
                    self._give_space(utterance, frame)
            elif isinstance(frame, TTSTextFrame) and not self.is_usable:
                return  # of text that was not given to this service
            if isinstance(frame, (TTSStartedFrame, TTSStoppedFrame, TTSTextFrame)):
                frame.metadata[self.mark] = utterance
            elif isinstance(frame, (LLMFullResponseEndFrame, LLMAssistantPushAggregationFrame)) or (
                isinstance(frame, AggregatedTextFrame) and frame.append_to_context
            ):
                frame.metadata[self.mark] = self._pushing
        await super().push_frame(frame, direction)

    def _give_space(self, utterance: Utterance, frame: TTSTextFrame) -> None:
        """The framework's words have lost the white space that the LLM wrote before them, or that it did not write.

        Only the text that enters the LLM's context is given it back: clients set spaces between words themselves.
        """
        if frame.append_to_context and self._tracker is None:
            raw = utterance.script.take(frame.raw_text or frame.text)
            if raw is not None:
                frame.raw_text = raw
                frame.includes_inter_frame_spaces = True

    async def _record_context_audio_outcome(self, context_id: str, received_audio: bool) -> None:
        utterance = self._utterances.get(context_id)
        if utterance is not None and utterance.done and not utterance.failed and not utterance.spoke:
            return  # nothing in it could be spoken, such as a lone emoji: no error of this service
        await super()._record_context_audio_outcome(context_id, received_audio)

    # Barge-in

    def interrupt(self, *, everything: bool = False) -> None:
        """Stop at once what may be interrupted; never waits."""
        dead = [item for item in self._utterances.values() if item.interruptible or everything]
        for utterance in dead:
            self._kill(utterance)
        if dead and len(dead) == len(self._utterances):
            self._device.drop(dead[-1].dead_at)

    @property
    def interrupted(self) -> list[Utterance]:
        """Interrupted utterances of which it is not known yet what was heard."""
        return [utterance for utterance in self._utterances.values() if utterance.dead]

    def _kill(self, utterance: Utterance) -> None:
        if utterance.dead:
            return
        utterance.dead = True
        utterance.dead_at = self._now()
        utterance.stop()
        utterance.changed.set()
        self._settle_later(utterance)

    async def on_audio_context_interrupted(self, context_id: str) -> None:
        """The framework dropped this context: also that of a reply which began while it was handling the interruption."""
        utterance = self._utterances.get(context_id)
        if utterance is not None:
            self._kill(utterance)
        await super().on_audio_context_interrupted(context_id)

    def follow(self, tracker: PlayoutTracker) -> None:
        """A tracker is in the pipeline: it tells what was heard."""
        self._tracker = tracker

    def progress(self, utterance: Utterance) -> None:
        """The tracker: `played_s` has grown."""
        if self._session is not None and utterance.speech is not None and not (utterance.dead or utterance.orphan):
            self._session.heard(utterance.speech.id, utterance.played_s)

    def settle(self, utterance: Utterance, heard_s: float, words: int | None) -> None:
        """What was heard of an utterance is known; who says it first is believed."""
        if utterance.over:
            return
        utterance.over = True
        self._utterances.pop(utterance.context_id, None)
        if self._session is not None and utterance.speech is not None and not utterance.orphan:
            self._session.settle(utterance.speech.id, heard_s, words=words)

    def _settle_later(self, utterance: Utterance) -> None:
        def estimate() -> None:
            self._timers.discard(timer)
            if self._tracker is not None:
                self.settle(utterance, utterance.played_s, utterance.said)
            else:
                self.settle(utterance, utterance.timeline.heard(utterance.dead_at), None)

        timer = self.get_event_loop().call_later(_SETTLE_AFTER_S, estimate)
        self._timers.add(timer)

    def _committed(self, text: str) -> None:
        """The aggregator put this into the LLM's context: without a tracker, that is what was said."""
        if self._tracker is not None:
            return
        for utterance in [item for item in self._utterances.values() if item.in_transcript]:
            known = utterance.script.words
            words, text = utterance.script.words_in(text)
            if utterance.dead:
                least = known[words - 1].start_s if words else 0.0
                most = known[words].start_s if words < len(known) else math.inf
                heard = utterance.timeline.heard(utterance.dead_at)
                self.settle(utterance, min(max(heard, least), most), words)
            elif utterance.done and words == len(known):
                self.settle(utterance, math.inf, None)

    # Settings

    async def _update_settings(self, delta: TTSSettings) -> dict[str, Any]:
        """Take what changed into the session, or report why it cannot be taken and change nothing."""
        known = {item.name for item in fields(self.Settings)}
        own = self.Settings(**{name: value for name, value in delta.given_fields().items() if name in known})
        own.extra = dict(delta.extra)
        voice: Voice | None = None
        if self._opening_task is not None:
            await asyncio.wait({self._opening_task})
        try:
            if is_given(own.language):
                own.language = self._language if own.language is None else check_language(own.language)
            wanted = self._settings.copy()
            wanted.apply_update(own)
            sampling = check_settings(wanted)
            if any(is_given(item) for item in (own.voice, own.scene, own.speakers)):
                base = own.voice if is_given(own.voice) and own.voice is not None else self.session.voice
                voice = await self._voice_of(base, self.session.engine, own.scene, own.speakers)
                own.voice, own.scene, own.speakers = voice.name, voice.scene, voice.speakers
            if voice is not None or sampling != self.session.settings.sampling:
                keep = wanted.on_voice_change == "keep"
                await self.session.update(voice=voice, sampling=sampling, context="keep" if keep else "new")
        except HiggsVoiceError as error:
            await self.push_error(f"Higgs cannot take these settings: {error}", exception=error)
            return {}
        changed = await super()._update_settings(own)
        if "language" in changed:
            self.session.settings = self.session.settings.replace(language=str(self._settings.language))
        unhandled = {name for name in changed if name == "model" or name in own.extra}
        self._warn_unhandled_updated_settings(unhandled)
        return changed

    async def _voice_of(
        self,
        voice: Voice | str,
        engine: Synthesizer,
        scene: str | NotGiven | None,
        speakers: tuple[str, ...] | list[str] | str | NotGiven | None,
    ) -> Voice:
        """A voice by what names it, with its scene and speakers changed where given. Errors: `VoiceError`."""
        if isinstance(voice, str):
            voice = await find_voice(voice, engine)
        if is_given(scene) and scene is not None:
            voice = replace(voice, scene=scene.strip() or None)
        if is_given(speakers) and speakers is not None:
            voice = replace(voice, speakers=Voice.create(speakers=speakers).speakers)
        return voice

    def _now(self) -> float:
        return self.get_clock().get_time() / 1e9
