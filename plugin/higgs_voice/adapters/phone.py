"""Telephone calls on Pipecat: a provider's websocket with marks, so that the voice remembers what the line has played.

    call = await take_call(websocket)                       # which provider, which call
    transport = PhoneTransport(websocket, call)
    Pipeline([transport.input(), ..., tts, PhoneBand(), transport.output(), transport.gate(), PlayoutTracker(tts), ...])

Pipecat's serializers speak the providers' protocols; here they also send and read marks. `PhoneTransport` sends each packet a
little before it is due (`PhoneSettings.prebuffer_s`) and asks the far end by marks what it has played. `MarkGate` holds what the
transport has sent until then, so that the `PlayoutTracker` behind it counts what the caller heard: on a barge-in, up to where
the provider's ``clear`` found the line. `PhoneBand` makes the voice fit for the line.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from ..errors import DependencyError, HiggsVoiceError, ProtocolError
from .telephony import PHONE_RATE, PhoneSettings, PhoneSound, PlayedClock

try:
    from fastapi import WebSocket, WebSocketDisconnect
    from loguru import logger
    from pipecat.frames.frames import (
        CancelFrame,
        EndFrame,
        Frame,
        InputAudioRawFrame,
        InterruptionFrame,
        OutputAudioRawFrame,
        SystemFrame,
        TTSAudioRawFrame,
        TTSStoppedFrame,
    )
    from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
    from pipecat.runner.utils import parse_telephony_websocket
    from pipecat.serializers.base_serializer import FrameSerializer
    from pipecat.serializers.exotel import ExotelFrameSerializer
    from pipecat.serializers.plivo import PlivoFrameSerializer
    from pipecat.serializers.telnyx import TelnyxFrameSerializer
    from pipecat.serializers.twilio import TwilioFrameSerializer
    from pipecat.transports.base_input import BaseInputTransport
    from pipecat.transports.websocket.fastapi import (
        FastAPIWebsocketInputTransport,
        FastAPIWebsocketOutputTransport,
        FastAPIWebsocketParams,
        FastAPIWebsocketTransport,
    )
except ModuleNotFoundError as error:
    raise DependencyError(
        f'telephone calls need {error.name}, which is not installed; run: pip install "higgs-voice[phone]"'
    ) from error

__all__ = ["MarkGate", "PhoneBand", "PhoneCall", "PhoneTransport", "take_call"]

PROVIDERS = ("twilio", "telnyx", "plivo", "exotel")
ENCODINGS = ("PCMU", "PCMA")
"""What Telnyx may call the line's sound."""
LATE_MARK_S = 0.5
"""How long after its time by the clock a mark is waited for; then the clock is believed."""


# The call


@dataclass(frozen=True, slots=True)
class PhoneCall:
    """One call on one websocket, as its provider announced it."""

    provider: str
    """One of `PROVIDERS`."""
    stream_id: str
    call_id: str
    caller: str | None = None
    called: str | None = None
    encoding: str = "PCMU"
    """Of the sound, as Telnyx names it: PCMU or PCMA; Exotel's is always 16-bit PCM."""
    parameters: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What the answer to the provider asked it to pass on."""

    def __str__(self) -> str:
        return f"{self.provider} call {self.call_id}"


class _Handshake:
    """A websocket for `parse_telephony_websocket`, which reads two messages: the second one is given to it only if the first
    does not already say which call it is. What follows is the call's sound, and may never come."""

    def __init__(self, websocket: WebSocket) -> None:
        self._websocket = websocket
        self._announced = False
        self.count = 0

    def iter_text(self) -> _Handshake:
        return self

    def __aiter__(self) -> _Handshake:
        return self

    async def __anext__(self) -> str:
        if self._announced:
            return "{}"
        try:
            text = await self._websocket.receive_text()
        except (WebSocketDisconnect, KeyError) as error:  # KeyError: a binary message
            raise StopAsyncIteration from error
        self.count += 1
        message = _parsed(text)
        self._announced = message.get("event") == "start"
        return json.dumps(message)


async def take_call(websocket: WebSocket, settings: PhoneSettings | None = None) -> PhoneCall:
    """Read which call an accepted websocket carries.

    Errors: `ProtocolError` when it does not say in time, hangs up, or says what no provider says.
    """
    settings = settings or PhoneSettings()
    handshake = _Handshake(websocket)
    try:
        async with asyncio.timeout(settings.start_timeout_s):
            provider, data = await parse_telephony_websocket(cast(WebSocket, handshake))
    except TimeoutError as error:
        raise ProtocolError(
            f"a connection to the phone endpoint sent {handshake.count} messages and no start within "
            f"{settings.start_timeout_s:g} s; is it a provider's media stream?"
        ) from error
    except ValueError as error:
        raise ProtocolError("a connection to the phone endpoint closed before it said which call it carries") from error
    if provider not in PROVIDERS or not data.get("stream_id") or not data.get("call_id"):
        raise ProtocolError(
            f"a connection to the phone endpoint is no call of {', '.join(PROVIDERS)}: its first messages do not say "
            "which stream of which call they belong to"
        )
    encoding = str(data.get("outbound_encoding") or "PCMU").upper()
    if encoding not in ENCODINGS:
        raise ProtocolError(
            f"{provider} call {data['call_id']} has its sound as {encoding}, and this line takes {' or '.join(ENCODINGS)}; ask for one "
            "of them where the stream is started (TeXML: codec, bidirectionalCodec), and leave the number no other codec: Telnyx "
            "converts between these two only"
        )
    parameters = data.get("body") or data.get("custom_parameters") or {}
    return PhoneCall(
        provider=provider,
        stream_id=str(data["stream_id"]),
        call_id=str(data["call_id"]),
        caller=data.get("from") or None,
        called=data.get("to") or None,
        encoding=encoding,
        parameters=parameters if isinstance(parameters, dict) else {},
    )


def _parsed(text: str | bytes) -> dict[str, Any]:
    try:
        message = json.loads(text)
    except ValueError:
        return {}
    return cast(dict[str, Any], message) if isinstance(message, dict) else {}


def _part(message: dict[str, Any], name: str) -> dict[str, Any]:
    """An object in a message; empty where there is none."""
    part = message.get(name)
    return cast(dict[str, Any], part) if isinstance(part, dict) else {}


# The providers' protocols, with marks


@dataclass(slots=True)
class _Events:
    """Who is told what the provider says besides sound and keys."""

    mark: Callable[[str], Awaitable[None]]
    cleared: Callable[[], None]
    media: Callable[[], None]
    stopped: Callable[[str], Awaitable[None]]
    restarted: Callable[[str], Awaitable[None]]


class _WithMarks(FrameSerializer):
    """What the four protocols add here: marks out and in, the end of the stream, a second start."""

    id_key = "streamSid"
    call_key = "callSid"
    mark_out, mark_in, cleared_in = "mark", "mark", ""
    events: _Events | None = None
    call_id = ""
    stream = ""
    deaf = False
    """The bot is hanging up: what the caller says and presses is nobody's any more."""

    def mark(self, name: str) -> str:
        """A message that asks to be told when what was sent before it has been played."""
        return json.dumps({"event": self.mark_out, self.id_key: self.stream, "mark": {"name": name}})

    def _name_of(self, message: dict[str, Any]) -> str:
        return str(_part(message, "mark").get("name", ""))

    def adopt(self, stream_id: str) -> None:
        """The call goes on in another stream."""
        self.stream = stream_id
        self._stream_sid = stream_id

    async def deserialize(self, data: str | bytes) -> Frame | None:
        message = _parsed(data)
        event = message.get("event")
        stream = message.get(self.id_key)
        if event == "start":
            await self._second_start(message)
            return None
        if not event or (stream and self.stream and stream != self.stream) or self.events is None:
            return None  # not ours: another stream's, or no message of the protocol
        if event == self.mark_in:
            await self.events.mark(self._name_of(message))
        elif event == self.cleared_in:
            self.events.cleared()
        elif event == "stop":
            await self.events.stopped("its caller hung up")
        elif event == "error":
            logger.warning(f"the provider reports an error: {message.get('payload') or message}")
        elif self.deaf:
            return None
        elif event == "media":
            media = _part(message, "media")
            if media.get("track", "inbound") not in ("inbound", "inbound_track") or not isinstance(
                media.get("payload"), str
            ):
                return None  # the agent's own voice, or nothing
            self.events.media()
            with contextlib.suppress(ValueError):  # no base64
                return await super().deserialize(data)
        elif event == "dtmf" and isinstance(_part(message, "dtmf").get("digit"), str):
            return await super().deserialize(data)
        return None

    async def _second_start(self, message: dict[str, Any]) -> None:
        start = _part(message, "start")
        stream = str(start.get(self.id_key) or message.get(self.id_key) or "")
        call = str(start.get(self.call_key) or "")
        if call and call != self.call_id:
            logger.warning(f"a second start on the websocket of call {self.call_id} names call {call}; it is ignored")
        elif not stream or stream == self.stream:
            logger.warning(f"call {self.call_id} was started twice; the second start changes nothing")
        elif self.events is not None:
            logger.warning(f"call {self.call_id} goes on in a new stream, {stream}")
            await self.events.restarted(stream)


class _Twilio(_WithMarks, TwilioFrameSerializer):
    pass


class _Telnyx(_WithMarks, TelnyxFrameSerializer):
    id_key, call_key = "stream_id", "call_control_id"

    def mark(self, name: str) -> str:
        return json.dumps({"event": "mark", "mark": {"name": name}})

    def adopt(self, stream_id: str) -> None:
        self.stream = self._stream_id = stream_id


class _Plivo(_WithMarks, PlivoFrameSerializer):
    id_key, call_key = "streamId", "callId"
    mark_out, mark_in, cleared_in = "checkpoint", "playedStream", "clearedAudio"

    def mark(self, name: str) -> str:
        return json.dumps({"event": "checkpoint", "streamId": self.stream, "name": name})

    def _name_of(self, message: dict[str, Any]) -> str:
        return str(message.get("name", ""))

    def adopt(self, stream_id: str) -> None:
        self.stream = self._stream_id = stream_id


class _Exotel(_WithMarks, ExotelFrameSerializer):
    id_key, call_key = "stream_sid", "call_sid"


def _serializer(call: PhoneCall) -> _WithMarks:
    made: _WithMarks
    if call.provider == "twilio":
        made = _Twilio(
            call.stream_id, call.call_id, params=_Twilio.InputParams(auto_hang_up=False, sample_rate=PHONE_RATE)
        )
    elif call.provider == "telnyx":
        params = _Telnyx.InputParams(auto_hang_up=False, sample_rate=PHONE_RATE)
        made = _Telnyx(call.stream_id, call.encoding, call.encoding, call.call_id, params=params)
    elif call.provider == "plivo":
        made = _Plivo(
            call.stream_id, call.call_id, params=_Plivo.InputParams(auto_hang_up=False, sample_rate=PHONE_RATE)
        )
    else:
        made = _Exotel(call.stream_id, call.call_id, params=_Exotel.InputParams(sample_rate=PHONE_RATE))
    made.stream, made.call_id = call.stream_id, call.call_id
    return made


# The transport


class PhoneTransport(FastAPIWebsocketTransport):
    """A provider's media stream as a Pipecat transport.

    Sound goes in and out at 8 kHz, in packets of 20 ms (Exotel: 200 ms, its least of 3200 bytes). The stream's end ends the call at
    the provider, if its answer had nothing after the stream.

    Event handlers: ``on_client_connected``, and ``on_client_disconnected`` once, when the caller hung up, the connection broke,
    or no sound ever came.
    """

    def __init__(
        self,
        websocket: WebSocket,
        call: PhoneCall,
        settings: PhoneSettings | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.call = call
        self.settings = settings or PhoneSettings()
        self.clock = clock
        self.line = PlayedClock()
        self.serializer = _serializer(call)
        super().__init__(
            websocket,
            FastAPIWebsocketParams(
                serializer=self.serializer,
                audio_in_enabled=True,
                audio_in_sample_rate=PHONE_RATE,
                audio_out_enabled=True,
                audio_out_sample_rate=PHONE_RATE,
                audio_out_10ms_chunks=20 if call.provider == "exotel" else 2,
                audio_out_end_silence_secs=0,
                allowed_origins=[],  # providers send none
            ),
        )
        self._input: _PhoneInput = _PhoneInput(self, self._client, self._params)
        self._output: _PhoneOutput = _PhoneOutput(self, self._client, self._params)
        self._gate = MarkGate(self.line, clock=clock)
        self._gone = False
        self._clear_asked: deque[float] = deque()
        self._watch: asyncio.TimerHandle | None = None
        self._ending: asyncio.Task[None] | None = None
        self.moved = asyncio.Event()
        """Set whenever it is learned anew what the line has played."""
        self.serializer.events = _Events(
            mark=self._on_mark,
            cleared=self._on_cleared,
            media=self._on_media,
            stopped=self._on_stopped,
            restarted=self._on_restarted,
        )

    @property
    def gone(self) -> bool:
        """The caller's side has ended."""
        return self._gone

    @property
    def hanging_up(self) -> bool:
        """The bot is ending the call; it may still be saying its last words."""
        return self.serializer.deaf

    def gate(self) -> MarkGate:
        """The processor for right after `output()`, before a `PlayoutTracker`."""
        return self._gate

    async def cleanup(self) -> None:
        self._unwatch()
        await super().cleanup()

    # From the provider

    async def _on_mark(self, name: str) -> None:
        if self.line.returned(name, self.clock()):
            self.moved.set()
            await self._gate.release()

    def _on_cleared(self) -> None:
        if self._clear_asked:
            self.line.echoed(self._clear_asked.popleft(), self.clock())

    def _on_media(self) -> None:
        self._unwatch()

    async def _on_stopped(self, why: str) -> None:
        logger.info(f"{self.call} is over: {why}")
        await self._on_client_disconnected(self._client._websocket)  # pyright: ignore[reportPrivateUsage]

    async def _on_restarted(self, stream_id: str) -> None:
        self.serializer.adopt(stream_id)
        self._output.drop(self.clock())  # the new stream begins with nothing to play
        await self._gate.cut()

    # To the bot

    async def _on_client_connected(self, websocket: Any) -> None:
        self._watch = asyncio.get_running_loop().call_later(self.settings.media_timeout_s, self._no_media)
        await self._output.ask()
        await super()._on_client_connected(websocket)

    async def _on_client_disconnected(self, websocket: Any) -> None:
        self._unwatch()
        self.moved.set()
        if not self._gone:
            self._gone = True
            await super()._on_client_disconnected(websocket)

    def _no_media(self) -> None:
        self._watch = None
        logger.error(
            f"{self.call} sent no sound within {self.settings.media_timeout_s:g} s of its start and is ended; does the "
            "answer ask the provider for a bidirectional stream of the inbound track?"
        )
        self._ending = asyncio.get_running_loop().create_task(self._on_stopped("no sound came"))

    def _unwatch(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    def clear_sent(self) -> None:
        """The far end was told to drop what waits there."""
        self._clear_asked.append(self.clock())


_TOGETHER = int(0.1 * PHONE_RATE) * 2
"""Bytes of the caller's sound that go through the pipeline as one frame at most: half of what a voice detector decides on."""


class _PhoneInput(FastAPIWebsocketInputTransport):
    """Takes packets that wait for the pipeline together, so that a machine that falls behind catches up; and goes on reading while
    the bot hangs up: the marks that come back say when what it said last has been played."""

    def __init__(self, transport: PhoneTransport, client: Any, params: FastAPIWebsocketParams) -> None:
        super().__init__(transport, client, params)
        self._phone = transport
        self._last: InputAudioRawFrame | None = None

    async def push_audio_frame(self, frame: InputAudioRawFrame) -> None:
        last = self._last
        if last is not None and self._audio_in_queue.qsize() and len(last.audio) + len(frame.audio) <= _TOGETHER:
            last.audio += frame.audio
            last.num_frames += frame.num_frames
            return
        self._last = frame
        await super().push_audio_frame(frame)

    async def stop(self, frame: EndFrame) -> None:
        self._phone.serializer.deaf = True
        await BaseInputTransport.stop(self, frame)
        await self._client.disconnect()  # its share: the output closes the line, `cleanup` ends the reading


class _PhoneOutput(FastAPIWebsocketOutputTransport):
    """Sends ahead of playing by the pre-buffer, marks what it sends, and clears before anything else on a barge-in."""

    def __init__(self, transport: PhoneTransport, client: Any, params: FastAPIWebsocketParams) -> None:
        super().__init__(transport, client, params)
        self._phone = transport
        self._line = transport.line
        self._due = 0.0
        self._unmarked_s = 0.0
        self._protected_s = 0.0
        """Up to this position of the line the sound may not be interrupted."""
        self._on_its_way: OutputAudioRawFrame | None = None
        """What was sent last, until the pipeline behind has it."""
        self._cutting = False
        self._cuts = 0
        self._said = False

    async def ask(self) -> None:
        """Measure the way to the far end and back; nothing may wait there."""
        await self._client.send(self._phone.serializer.mark(self._line.ask(self._phone.clock())))

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        if isinstance(frame, InterruptionFrame):
            await self._clear()
        elif isinstance(frame, CancelFrame):
            self.hand_over()
            await self._phone.gate().cut()
        try:
            await super().process_frame(frame, direction)
        finally:
            self._cutting = False

    async def _clear(self) -> None:
        """The clear goes out before the frame does its rounds; until then, and while it does, nothing else is sent."""
        now = self._phone.clock()
        if self._line.played_s(now) < self._protected_s:
            return  # what waits at the far end is to be heard
        self._cutting = True
        self.drop(now)
        self._phone.moved.set()
        if not self._phone.serializer.cleared_in:
            ask = self._phone.serializer.mark(self._line.ask(now))
        else:
            ask = None
            self._phone.clear_sent()
        payload = await self._phone.serializer.serialize(InterruptionFrame())
        if payload:
            await self._client.send(payload)
        if ask:
            await self._client.send(ask)

    async def _write_frame(self, frame: Frame) -> bool:
        if isinstance(frame, InterruptionFrame):
            return True  # was sent already, or must not be
        if isinstance(frame, EndFrame):
            await self._drain()
        return await super()._write_frame(frame)

    async def _drain(self) -> None:
        """Hanging up cuts off what waits at the far end: wait for its word that all was played, or else for the clock's."""
        line, clock = self._line, self._phone.clock
        if self._unmarked_s:
            await self.mark()
        late = LATE_MARK_S if line.marked else 0.0
        until = max(self._due, clock()) + line.round_trip_s + late
        while line.confirmed_s < line.sent_s - 1e-6 and self._client.is_connected and not self._phone.gone:
            self._phone.moved.clear()
            try:
                await asyncio.wait_for(self._phone.moved.wait(), max(until - clock(), 0.0))
            except TimeoutError:
                return

    async def write_audio_frame(self, frame: OutputAudioRawFrame) -> bool:
        if self._cutting or self._client.is_closing or not self._client.is_connected:
            return False
        cuts = self._cuts
        if not await self._write_frame(frame) or cuts != self._cuts:
            return False  # a clear that went out meanwhile took it along
        now = self._phone.clock()
        seconds = len(frame.audio) / (2 * frame.num_channels * frame.sample_rate)
        self._line.send(now, seconds)
        if not frame.interruptible:
            self._protected_s = self._line.sent_s
        frame.metadata[_SENT] = self._line.sent_s
        self._on_its_way = frame
        self._due = max(self._due, now) + seconds
        self._unmarked_s += seconds
        if self._unmarked_s >= self._phone.settings.mark_every_s - 1e-6:
            await self.mark()
        wait = self._due - self._phone.clock() - self._phone.settings.prebuffer_s
        if self._on_its_way is frame:
            await asyncio.sleep(max(wait, 0.0))
        return self._arrived(frame)

    def _arrived(self, frame: OutputAudioRawFrame) -> bool:
        """Whether the pipeline behind is still to get what was sent."""
        if self._on_its_way is not frame:
            return False
        self._on_its_way = None
        return True

    def drop(self, now: float) -> None:
        """What waits at the far end will not be played."""
        self._cuts += 1
        self.hand_over()
        self._line.clear(now)
        self._due = 0.0
        self._unmarked_s = 0.0
        self._protected_s = 0.0

    def hand_over(self) -> None:
        """The line may be playing what is on its way already, all of it where this machine is late: before a cut the gate must
        have it, to count what of it was heard."""
        frame = self._on_its_way
        if frame is not None and self._arrived(frame):
            self._phone.gate().hold(frame)

    async def push_frame(self, frame: Frame, direction: FrameDirection = FrameDirection.DOWNSTREAM) -> None:
        if isinstance(frame, TTSStoppedFrame) and direction == FrameDirection.DOWNSTREAM and self._unmarked_s:
            await self.mark()  # so that the end of an utterance is known exactly
        await super().push_frame(frame, direction)

    async def mark(self) -> None:
        """Ask to be told when all that was sent has been played."""
        self._unmarked_s = 0.0
        await self._client.send(self._phone.serializer.mark(self._line.mark()))


_SENT = "higgs_voice.sent"
"""Key of an audio frame's metadata: the line's position at its end."""


class MarkGate(FrameProcessor):
    """Holds what the transport has sent until the far end has played it.

    For right after ``transport.output()``. Frames pass in order; sound, and what comes after it, when a mark says that it was
    played, or, where marks do not come, when it must have been by the clock. On an interruption what was played passes, to the
    sample, and the rest is dropped.
    """

    def __init__(self, line: PlayedClock, *, clock: Callable[[], float] = time.monotonic, **kwargs: Any) -> None:
        super().__init__(enable_direct_mode=True, **kwargs)
        self._line = line
        self._clock = clock
        self._held: deque[tuple[float, Frame]] = deque()
        self._passed_s = 0.0
        self._lock = asyncio.Lock()
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._warned = False

    @property
    def holding(self) -> int:
        """Frames that wait."""
        return len(self._held)

    async def cleanup(self) -> None:
        self._unset()
        if self._task is not None and not self._task.done():
            self._task.cancel()
        await super().cleanup()

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if direction == FrameDirection.DOWNSTREAM:
            if isinstance(frame, (InterruptionFrame, CancelFrame)):
                await self.cut()
            elif isinstance(frame, EndFrame):
                await self._pass(float("inf"))
            elif isinstance(frame, OutputAudioRawFrame) or (self._held and not isinstance(frame, SystemFrame)):
                self.hold(frame)
                await self.release()
                return
        await self.push_frame(frame, direction)

    def hold(self, frame: Frame) -> None:
        """It passes when the line has played what was sent before and with it."""
        self._held.append((frame.metadata.get(_SENT, self._held[-1][0] if self._held else self._line.sent_s), frame))

    async def release(self) -> None:
        """Let go what has been played."""
        self._unset()
        await self._pass(self._line.confirmed_s)
        if self._held:
            self._set()

    async def cut(self) -> None:
        """What was played passes; the rest will never be."""
        self._unset()
        now = self._clock()
        played = min(self._line.played_s(now), self._line.sent_s)
        await self._pass(played, cut=True)
        kept = [(min(at, self._line.sent_s), frame) for at, frame in self._held if not frame.interruptible]
        self._held = deque(kept)
        self._passed_s = played
        if self._held:
            self._set()

    async def _pass(self, until_s: float, *, cut: bool = False) -> None:
        async with self._lock:
            while self._held and self._held[0][0] <= until_s + 1e-6:
                position, frame = self._held.popleft()
                self._passed_s = position
                await self.push_frame(frame)
            if not cut or not self._held or not isinstance(self._held[0][1], OutputAudioRawFrame):
                return
            position, frame = self._held[0]
            if isinstance(frame, OutputAudioRawFrame) and until_s > self._passed_s:
                rate = 2 * frame.num_channels * frame.sample_rate
                start = position - len(frame.audio) / rate
                samples = int((until_s - start) * frame.sample_rate)
                if samples > 0:
                    part = type(frame)(
                        frame.audio[: samples * 2 * frame.num_channels], frame.sample_rate, frame.num_channels
                    )
                    self._held.popleft()
                    await self.push_frame(part)

    def _set(self) -> None:
        """Marks that never come must not hold a call up."""
        late = LATE_MARK_S if self._line.marked else 0.0
        position = self._held[0][0]
        now = self._clock()
        wait = max(position - self._line.played_s(now), 0.0) + self._line.round_trip_s + late
        self._timer = asyncio.get_running_loop().call_later(max(wait, 0.005), self._overdue)

    def _unset(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _overdue(self) -> None:
        self._timer = None
        self._task = asyncio.get_running_loop().create_task(self._by_clock())

    async def _by_clock(self) -> None:
        if not self._held:
            return
        if self._line.marked and not self._warned:
            self._warned = True
            logger.warning(f"{self}: a mark is {LATE_MARK_S:g} s late; what was played is taken from the clock")
        await self._pass(max(self._line.played_s(self._clock()), self._held[0][0] if self._line.marked else 0.0))
        if self._held:
            self._set()


class PhoneBand(FrameProcessor):
    """Makes the voice fit for a telephone line: 24 kHz in, 8 kHz out, in its band and at its level. For right after the TTS."""

    def __init__(self, settings: PhoneSettings | None = None, **kwargs: Any) -> None:
        # Direct mode: it takes a fraction of a millisecond, which is less than a queue of its own would.
        super().__init__(enable_direct_mode=True, **kwargs)
        self._settings = settings or PhoneSettings()
        self._sound: PhoneSound | None = None
        self._last: TTSAudioRawFrame | None = None

    @property
    def sound(self) -> PhoneSound | None:
        """What the voice goes through; None before its first sound."""
        return self._sound

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if direction == FrameDirection.DOWNSTREAM:
            if isinstance(frame, TTSAudioRawFrame):
                await self._feed(frame)
                return
            if isinstance(frame, TTSStoppedFrame):
                await self._flush()
            elif isinstance(frame, InterruptionFrame) and self._last is not None and self._last.interruptible:
                self._last = None
                if self._sound is not None:
                    self._sound.reset()
        await self.push_frame(frame, direction)

    async def _feed(self, frame: TTSAudioRawFrame) -> None:
        if frame.num_channels != 1:
            raise HiggsVoiceError(f"PhoneBand takes mono sound, and got {frame.num_channels} channels")
        if self._sound is None or self._sound.rate_in != frame.sample_rate:
            self._sound = PhoneSound(self._settings, rate_in=frame.sample_rate)
        self._last = frame
        await self._push(frame, self._sound.feed(frame.audio))

    async def _flush(self) -> None:
        last, self._last = self._last, None
        if last is not None and self._sound is not None:
            await self._push(last, self._sound.flush())

    async def _push(self, like: TTSAudioRawFrame, pcm: bytes) -> None:
        if not pcm:
            return
        frame = TTSAudioRawFrame(pcm, PHONE_RATE, 1, context_id=like.context_id)
        frame.transport_destination = like.transport_destination
        frame.interruptible = like.interruptible
        frame.metadata.update(like.metadata)
        await self.push_frame(frame)
