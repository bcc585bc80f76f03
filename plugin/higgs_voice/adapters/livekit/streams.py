"""One speech as the framework reads it: text in as it streams, frames and timed words out."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing, suppress
from dataclasses import replace
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from livekit.agents import APIConnectOptions, APITimeoutError, tts, utils
from livekit.agents.types import TimedString

from ...audio import SAMPLE_RATE, PcmChunk
from ...conversation.session import VoiceSession
from ...conversation.timing import Word
from ...errors import HiggsVoiceError, SynthesisError
from .conversation import Conversation, Said
from .framework import api_error, current_handle, is_joined, is_probe, log
from .heard import TAG, is_tracked
from .options import Options

if TYPE_CHECKING:
    from .tts import TTS

_NOTHING_SAID = b"\0\0" * (SAMPLE_RATE // 50)
"""20 ms of silence for text that has nothing to say: the framework takes a stream without any audio for a failure."""


class SynthesizeStream(tts.SynthesizeStream):
    """One speech: text in as it streams, frames and timed words out."""

    def __init__(self, *, tts: TTS, conn_options: APIConnectOptions, conversation: Conversation) -> None:
        self.conversation = conversation
        self._handle = current_handle()
        self._probe = is_probe()
        self._options = tts.options
        self._said: Said | None = None
        super().__init__(tts=tts, conn_options=conn_options)

    async def __anext__(self) -> tts.SynthesizedAudio:
        audio = await super().__anext__()
        if self._said is not None:
            audio.frame.userdata[TAG] = self._said.speech.id
            self._said.taken = True
        return audio

    async def _run(self, output_emitter: tts.AudioEmitter) -> None:
        output_emitter.initialize(
            request_id=utils.shortuuid("higgs_"),
            sample_rate=SAMPLE_RATE,
            num_channels=1,
            mime_type="audio/pcm",
            stream=True,
        )
        first = await anext(self._input_ch, None)
        while isinstance(first, self._FlushSentinel):
            first = await anext(self._input_ch, None)
        if first is None:
            return  # nothing was ever pushed
        session = await _ready(self, self.conversation, self._conn_options.timeout)
        said = self._said = self.conversation.speak(session, self._handle, self._options)
        output_emitter.start_segment(segment_id=said.speech.id)
        self._mark_started()
        source = _Source(said)
        source.feed(first)
        feeding = asyncio.create_task(self._feed(source), name="higgs text")
        try:
            await _speak(self, said, source, output_emitter, self._options, self._conn_options.timeout)
            output_emitter.end_segment()
        finally:
            await utils.aio.cancel_and_wait(feeding)
            if self._probe:
                said.settle(0.0)
            if not said.speech.complete:
                said.speech.stop()
                if (
                    not said.captured
                    and self.conversation.said.get(said.speech.id) is said
                    and is_tracked(self.conversation)
                ):
                    said.settle(0.0)

    async def _feed(self, source: _Source) -> None:
        async for item in self._input_ch:
            if isinstance(item, self._FlushSentinel):
                source.speech.flush()
            else:
                source.feed(item)
        source.end()


class ChunkedStream(tts.ChunkedStream):
    """One text at once. What was made in full counts as heard; where it is a sentence of a speech that is tracked
    (`StreamAdapter`), what was played of it."""

    def __init__(
        self, *, tts: TTS, input_text: str, conn_options: APIConnectOptions, conversation: Conversation
    ) -> None:
        self.conversation = conversation
        self._probe = is_probe()
        self._handle = current_handle() if is_joined() and is_tracked(conversation) else None
        self._options = replace(tts.options, run_ahead_s=float("inf"))
        self._said: Said | None = None
        super().__init__(tts=tts, input_text=input_text, conn_options=conn_options)

    async def __anext__(self) -> tts.SynthesizedAudio:
        audio = await super().__anext__()
        if self._said is not None:
            self._said.taken = self._said.joined
        return audio

    async def _run(self, output_emitter: tts.AudioEmitter) -> None:
        output_emitter.initialize(
            request_id=utils.shortuuid("higgs_"), sample_rate=SAMPLE_RATE, num_channels=1, mime_type="audio/pcm"
        )
        if not self.input_text.strip():
            return
        session = await _ready(self, self.conversation, self._conn_options.timeout)
        said = self._said = self.conversation.speak(session, self._handle, self._options)
        said.joined = self._handle is not None
        source = _Source(said)
        source.feed(self.input_text)
        source.end()
        heard_s = 0.0
        try:
            await _speak(self, said, source, output_emitter, self._options, self._conn_options.timeout)
            heard_s = 0.0 if self._probe else float("inf")
        finally:
            if not said.joined:
                said.settle(heard_s)
            elif not said.speech.complete:
                said.speech.stop()


class _Source:
    """The text of a speech, kept so that timed words carry it exactly as it was written."""

    def __init__(self, said: Said) -> None:
        self.said = said
        self.speech = said.speech
        self.ended = asyncio.Event()
        self.text = ""
        self._given = 0

    def feed(self, text: str) -> None:
        self.text += text
        self.said.moved_at = asyncio.get_running_loop().time()
        self.speech.feed(text)

    def end(self) -> None:
        self.said.text_ended = True
        self.speech.end()
        self.ended.set()

    def timed(self, word: Word) -> TimedString:
        """The word with what stands before it, so that the words together are the text."""
        text = self.text[self._given : word.char_end]
        self._given = word.char_end
        return TimedString(text, start_time=word.start_s, end_time=word.end_s)


async def _ready(stream: SynthesizeStream | ChunkedStream, conversation: Conversation, timeout: float) -> VoiceSession:
    stream._connection_reused = conversation.open  # pyright: ignore[reportPrivateUsage]
    began = time.perf_counter()
    try:
        session = await asyncio.wait_for(conversation.ready(), timeout)
    except TimeoutError:
        raise APITimeoutError(f"the Higgs engine was not ready within {timeout:.1f} s") from None
    except HiggsVoiceError as error:
        raise api_error(error, ended=conversation.closed) from error
    stream._acquire_time = time.perf_counter() - began  # pyright: ignore[reportPrivateUsage]
    return session


async def _speak(
    stream: SynthesizeStream | ChunkedStream,
    said: Said,
    source: _Source,
    emitter: tts.AudioEmitter,
    options: Options,
    timeout: float,
) -> None:
    """Push what the speech gives. A sentence that could not be spoken among others is an `error` event, and the others are said.
    Errors: `APIError`."""
    pushed = 0
    unspoken: list[SynthesisError] = []
    try:
        async with aclosing(said.speech.events()) as events:
            while (item := await _next(events, said, source, timeout)) is not None:
                match item:
                    case PcmChunk():
                        emitter.push(item.pcm)
                        pushed += item.samples
                        await _keep_pace(said, pushed / SAMPLE_RATE, options.run_ahead_s, stream)
                    case Word():
                        emitter.push_timed_transcript(source.timed(item))
                    case _:
                        if item.error is not None:
                            unspoken.append(item.error)
    except SynthesisError as error:
        if not pushed:
            raise api_error(error) from error
        if error not in unspoken:
            unspoken.append(error)
    except HiggsVoiceError as error:
        raise api_error(error, ended=said.conversation.closed) from error
    finally:
        if pushed:
            for error in unspoken:
                _report(stream, error)
    if not pushed and source.text.strip():
        emitter.push(_NOTHING_SAID)


def _report(stream: SynthesizeStream | ChunkedStream, error: SynthesisError) -> None:
    log.warning("a sentence was not spoken to its end: %s", error)
    owner = stream._tts  # pyright: ignore[reportPrivateUsage]
    owner.emit(
        "error", tts.TTSError(timestamp=time.time(), label=owner.label, error=api_error(error), recoverable=True)
    )


async def _next(events: Any, said: Said, source: _Source, timeout: float) -> Any:
    """The next thing of a speech; None at its end. The engine may take `timeout` seconds for it once it has all of the text
    and is not busy with earlier speeches. Outside of an `AgentSession`, whose turns end, an earlier speech may be without text
    for as long. Errors: `APITimeoutError`."""
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(anext(events, None))
    try:
        while True:
            done, _ = await asyncio.wait({task}, timeout=timeout)
            if done:
                said.moved_at = loop.time()
                return task.result()
            if not source.ended.is_set():
                continue
            before = takewhile(lambda item: item is not said, said.conversation.said.values())
            busy = next((item for item in before if not item.speech.finished and not item.speech.stopped), None)
            if busy is None:
                raise APITimeoutError(f"the Higgs engine gave nothing for {timeout:.1f} s")
            if said.handle is None and not busy.text_ended and loop.time() - busy.moved_at >= timeout:
                raise APITimeoutError(
                    f"an earlier stream of this voice has been waiting for its text for {timeout:.1f} s, and this one for it; "
                    "end_input() or aclose() it"
                )
    finally:
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def _keep_pace(said: Said, pushed_s: float, run_ahead_s: float, stream: SynthesizeStream | ChunkedStream) -> None:
    """Wait while more than `run_ahead_s` of audio is ahead of what is played, where playing is known."""
    loop = asyncio.get_running_loop()
    while not said.settled and is_tracked(stream.conversation):
        ahead = pushed_s - said.playhead_s(loop.time()) - run_ahead_s
        if ahead <= 0.0:
            return
        if said.started_at is None:
            with suppress(TimeoutError):
                await asyncio.wait_for(said.captured_event.wait(), 0.1)
            if said.captured and said.started_at is None:
                await asyncio.sleep(0.05)
        else:
            await asyncio.sleep(min(max(ahead, 0.01), 0.5))
