"""The telephone's parts: sound for a line, what marks say, the providers' messages, who is on the telephone."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soxr
from numpy.typing import NDArray
from pipecat.frames.frames import (
    InputAudioRawFrame,
    InputDTMFFrame,
    InterruptionFrame,
    TTSAudioRawFrame,
    TTSStartedFrame,
    TTSStoppedFrame,
)
from pipecat.processors.frame_processor import FrameDirection
from pipecat.tests.utils import run_test

from higgs_voice.adapters.phone import PROVIDERS, MarkGate, PhoneBand, PhoneCall, PhoneTransport, take_call
from higgs_voice.adapters.telephony import PhoneSettings, PhoneSound, PlayedClock, phone_frames, sip_caller
from higgs_voice.errors import ProtocolError, SettingsError
from tests.e2e.phone_line import from_ulaw, to_ulaw

AS_IT_IS = PhoneSettings(level_dbfs=None)


def speechlike(seconds: float, level: float = 0.1, seed: int = 0) -> NDArray[np.int16]:
    """Noise of the whole band in syllables, with a pause of 0.5 s in every 2 s; int16 at 24 kHz."""
    at = np.arange(int(seconds * 24000)) / 24000
    noise = np.random.default_rng(seed).normal(size=at.size)
    swing = 0.55 + 0.45 * np.sin(2 * np.pi * 4 * at)
    return (np.clip(noise * swing * (at % 2 < 1.5) * level, -1, 1) * 32767).astype(np.int16)


def tone(hertz: float, seconds: float = 1.0, level: float = 0.3) -> NDArray[np.int16]:
    at = np.arange(int(seconds * 24000)) / 24000
    return (level * np.sin(2 * np.pi * hertz * at) * 32767).astype(np.int16)


def through(sound: NDArray[np.int16], sizes: list[int], settings: PhoneSettings = AS_IT_IS) -> NDArray[np.int16]:
    """What comes out when the sound goes in by pieces of these sizes, in turn."""
    phone = PhoneSound(settings)
    out: list[bytes] = []
    at = count = 0
    while at < sound.size:
        size = sizes[count % len(sizes)]
        out.append(phone.feed(sound[at : at + size].tobytes()))
        at, count = at + size, count + 1
    out.append(phone.flush())
    return np.frombuffer(b"".join(out), dtype="<i2")


def level_db(sound: NDArray[Any]) -> float:
    return 10 * float(np.log10(np.mean((sound / 32768.0) ** 2) + 1e-12))


# Sound


@pytest.mark.parametrize("sizes", [[480], [1920], [1, 777, 1920, 13, 4801]])
def test_pieces_sound_as_the_whole(sizes: list[int]) -> None:
    """No click between chunks, and no sample lost or added: the streamed samples are those of one piece."""
    sound = speechlike(3.0)
    whole = through(sound, [sound.size])
    assert whole.size == sound.size // 3
    pieces = through(sound, sizes)
    assert pieces.size == whole.size
    assert int(np.abs(pieces.astype(int) - whole).max()) <= 1


def test_the_line_hears_the_same_at_the_same_time() -> None:
    heard = through(tone(440), [1920])
    wanted = 0.3 * np.sin(2 * np.pi * 440 * np.arange(8000) / 8000) * 32767
    assert np.abs(heard - wanted)[50:-50].max() < 20


def test_what_is_above_the_band_is_40_db_down_after_the_round_trip() -> None:
    """White noise to 12 kHz, through the line's mu-law and back to 24 kHz."""
    sound = (np.random.default_rng(1).normal(size=24000 * 4) * 0.1 * 32767).astype(np.int16)
    line = from_ulaw(to_ulaw(through(sound, [1920])))
    back = soxr.resample(line.astype(np.float32), 8000, 24000, quality="VHQ")
    power = np.abs(np.fft.rfft(back * np.hanning(back.size))) ** 2
    hertz = np.fft.rfftfreq(back.size, 1 / 24000)
    assert 10 * np.log10(power[hertz > 3400].sum() / power[hertz <= 3400].sum()) < -40


@pytest.mark.parametrize("hertz", [3400, 4600, 5000, 7600, 8440, 11000])
def test_nothing_aliases_into_the_band(hertz: float) -> None:
    assert level_db(through(tone(hertz), [1920])[200:-200]) < level_db(tone(hertz)) - 40


def test_plain_resampling_to_the_line_would_fail_these() -> None:
    """The two tests above can fail: every third sample, as a careless resampler takes them, aliases."""
    assert level_db(tone(5000)[::3]) > level_db(tone(5000)) - 1


@pytest.mark.parametrize("level", [0.05, 0.15, 0.6])
def test_speech_comes_to_the_telephone_level(level: float) -> None:
    heard = through(speechlike(16.0, level), [1920], PhoneSettings(level_dbfs=-20.0))
    late = heard[-4 * 8000 :]
    blocks = late.reshape(-1, 160)
    powers = np.mean((blocks / 32768.0) ** 2, axis=1)
    active = powers[powers > powers.max() * 0.01]
    assert 10 * np.log10(active.mean()) == pytest.approx(-20.0, abs=1.0)


def test_the_gain_does_not_pump() -> None:
    """It follows neither syllables nor pauses, and a caller who comes nearer only slowly: what comes out is what went in, times a
    gain that moves at most 12 dB a second in the first second of speech and 1.5 dB a second from then on."""
    sound = np.concatenate([speechlike(12.0, 0.05), speechlike(6.0, 0.2, seed=1)])
    phone = PhoneSound(PhoneSettings(level_dbfs=-20.0))
    gains: list[float] = []
    for at in range(0, sound.size, 480):
        phone.feed(sound[at : at + 480].tobytes())
        gains.append(phone.gain_db)
    steps = np.abs(np.diff(gains)) / 0.02
    assert steps.max() == pytest.approx(12.0, abs=0.01)
    assert steps[100:].max() == pytest.approx(1.5, abs=0.01)  # after 2 s, 1.5 of them speech
    assert 5.0 < gains[599] - gains[-1] < 9.0  # 12 dB louder, 4.5 s of speech ago

    raised = through(sound, [1920], PhoneSettings(level_dbfs=-20.0)).astype(float)
    plain = through(sound, [1920]).astype(float)
    steady: list[float] = []
    for at in range(6 * 8000, 12 * 8000 - 800, 800):
        if level_db(plain[at : at + 800]) > -50:
            steady.append(level_db(raised[at : at + 800]) - level_db(plain[at : at + 800]))
    assert len(steady) > 40
    assert max(steady) - min(steady) < 1.0


def test_a_pause_is_not_raised() -> None:
    phone = PhoneSound()
    phone.feed(speechlike(4.0, 0.05).tobytes())
    gain = phone.gain_db
    hiss = (np.random.default_rng(3).normal(size=24000 * 5) * 0.0005 * 32767).astype(np.int16)
    phone.feed(hiss.tobytes())
    assert phone.gain_db == gain


def test_no_sample_passes_the_ceiling() -> None:
    sound = speechlike(6.0, 0.05)
    sound[3 * 24000 : 3 * 24000 + 2400] = tone(900, 0.1, 0.99)
    heard = through(sound, [1920], PhoneSettings(peak_dbfs=-3.0))
    assert 20 * np.log10(np.abs(heard.astype(float)).max() / 32768) <= -2.99


def test_the_gain_outlives_an_utterance_and_the_held_back_sound_does_not() -> None:
    phone = PhoneSound()
    phone.feed(speechlike(3.0, 0.05).tobytes())
    phone.reset()
    assert phone.gain_db > 3
    assert phone.feed(bytes(1920)) + phone.flush() == bytes(640)


def test_first_sound_is_there_with_the_first_piece() -> None:
    """The engine's first piece is 80 ms: three packets leave at once."""
    assert len(PhoneSound().feed(tone(440)[:1920].tobytes())) >= 3 * 320


def test_a_rate_that_cannot_be_made_is_refused() -> None:
    with pytest.raises(SettingsError, match="44100"):
        PhoneSound(rate_in=44100)


# Marks


def test_marks_say_what_was_played() -> None:
    clock = PlayedClock()
    clock.send(0.0, 1.0)
    name = clock.mark()
    assert clock.played_s(0.4) == pytest.approx(0.4)
    assert clock.returned(name, 1.3)
    assert clock.confirmed_s == 1.0
    assert not clock.returned(name, 1.4)


def test_the_way_there_and_back_is_taken_into_account() -> None:
    """A far end 50 ms away has played less than the clock says, and will have played more when the clear arrives."""
    clock = PlayedClock()
    clock.returned(clock.ask(0.0), 0.1)
    assert clock.round_trip_s == pytest.approx(0.1)
    clock.send(1.0, 2.0)
    assert clock.played_s(1.5) == pytest.approx(0.45)
    assert clock.clear(1.5) == pytest.approx(0.5)


def test_jitter_of_marks_does_not_move_the_position() -> None:
    rng = random.Random(0)
    clock = PlayedClock()
    names: list[tuple[float, str]] = []
    sent = 0.0
    worst = 0.0
    for step in range(800):
        now = step * 0.005
        while sent < now + 0.2:
            clock.send(now, 0.1)
            sent += 0.1
            names.append((sent + rng.uniform(0.0, 0.08), clock.mark()))  # played at `sent`, told up to 80 ms later
        while names and names[0][0] <= now:
            clock.returned(names.pop(0)[1], now)
        if now > 1.0:
            worst = max(worst, abs(clock.played_s(now) - now))
    assert worst < 0.03  # single marks are up to 80 ms late


def test_an_underrun_at_the_far_end_is_seen_by_its_marks() -> None:
    clock = PlayedClock()
    clock.send(0.0, 3.0)
    clock.mark()
    assert clock.played_s(10.0) == pytest.approx(3.0)  # no mark ever came back: only the clock
    clock = PlayedClock()
    for _ in range(30):
        clock.send(0.0, 0.1)
        clock.mark()
    clock.returned("higgs-10", 1.0)
    assert clock.played_s(2.9) <= 1.1 + PlayedClock.LATE_S  # the next mark is overdue by 1.8 s


def test_a_pause_between_utterances_is_not_played() -> None:
    clock = PlayedClock()
    clock.send(0.0, 0.5)
    clock.returned(clock.mark(), 0.5)
    clock.send(5.0, 1.0)
    assert clock.played_s(5.25) == pytest.approx(0.75)


def test_after_a_clear_positions_go_on_from_what_was_played() -> None:
    clock = PlayedClock()
    clock.send(0.0, 1.0)
    old = clock.mark()
    assert clock.clear(0.3) == pytest.approx(0.3)
    assert not clock.returned(old, 0.31)  # it comes back because it was dropped, not because it was played
    assert clock.confirmed_s == pytest.approx(0.3)
    clock.send(2.0, 0.5)
    assert clock.played_s(2.2) == pytest.approx(0.5)
    assert clock.waiting_s(2.2) == pytest.approx(0.3)


# Who is on the telephone


def test_a_sip_participant_is_recognised() -> None:
    attributes = {"sip.callID": "SCL_1", "sip.phoneNumber": "+15550100", "sip.trunkPhoneNumber": "+15550199"}
    caller = sip_caller(SimpleNamespace(kind=3, identity="sip_1", attributes=attributes))
    assert caller is not None
    assert (caller.call_id, caller.number, caller.called) == ("SCL_1", "+15550100", "+15550199")
    assert sip_caller(SimpleNamespace(kind=0, identity="web", attributes={})) is None
    bridged = sip_caller(SimpleNamespace(kind=0, identity="b", attributes={"sip.callID": "x"}))
    assert bridged is not None
    assert bridged.number is None


def test_the_kind_is_livekits() -> None:
    from livekit import rtc

    kind = rtc.ParticipantKind.PARTICIPANT_KIND_SIP
    assert sip_caller(SimpleNamespace(kind=kind, identity="s", attributes=None)) is not None


async def test_a_sip_callers_frames_keep_their_length_and_what_they_carry() -> None:
    from livekit import rtc

    sound = speechlike(1.0)
    given = [rtc.AudioFrame(sound[at : at + 1920].tobytes(), 24000, 1, 1920) for at in range(0, 23040, 1920)]
    given[3].userdata["words"] = ["there"]

    async def frames() -> AsyncIterator[rtc.AudioFrame]:
        for frame in given:
            yield frame

    got = [frame async for frame in phone_frames(frames(), PhoneSound(rate_out=24000))]
    assert sum(frame.samples_per_channel for frame in got) == 23040
    assert {frame.sample_rate for frame in got} == {24000}
    assert [frame.userdata["words"] for frame in got if "words" in frame.userdata] == [["there"]]


# The providers' messages


class Socket:
    """A websocket that says what it is told and keeps what is sent."""

    def __init__(self, *texts: str) -> None:
        self.texts = list(texts)

    async def receive_text(self) -> str:
        if not self.texts:
            await asyncio.Event().wait()
        return self.texts.pop(0)


STARTS = {
    "twilio": {
        "event": "start",
        "streamSid": "S1",
        "start": {"streamSid": "S1", "callSid": "C1", "customParameters": {}},
    },
    "telnyx": {
        "event": "start",
        "stream_id": "S1",
        "start": {"call_control_id": "C1", "media_format": {"encoding": "PCMA"}},
    },
    "plivo": {"event": "start", "streamId": "S1", "start": {"streamId": "S1", "callId": "C1"}},
    "exotel": {
        "event": "start",
        "stream_sid": "S1",
        "start": {"stream_sid": "S1", "call_sid": "C1", "account_sid": "A", "from": "055"},
    },
}
IDS = {"twilio": "streamSid", "telnyx": "stream_id", "plivo": "streamId", "exotel": "stream_sid"}
CALLS = {"twilio": "callSid", "telnyx": "call_control_id", "plivo": "callId", "exotel": "call_sid"}


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_the_call_is_read_from_the_first_messages(provider: str) -> None:
    """Nothing behind the start is taken: the next message is the call's sound, and may never come."""
    first = [] if provider == "plivo" else [json.dumps({"event": "connected"})]
    call = await take_call(Socket(*first, json.dumps(STARTS[provider])))  # type: ignore[arg-type]
    assert (call.provider, call.stream_id, call.call_id) == (provider, "S1", "C1")
    assert call.encoding == ("PCMA" if provider == "telnyx" else "PCMU")


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        ((), "0 messages and no start"),
        (('{"event": "connected"}',), "1 messages and no start"),
        (("[]", "x"), "no call of"),
    ],
)
async def test_what_is_no_call_is_refused(texts: tuple[str, ...], says: str) -> None:
    with pytest.raises(ProtocolError, match=says):
        await take_call(Socket(*texts), PhoneSettings(start_timeout_s=0.05))  # type: ignore[arg-type]


@pytest.mark.parametrize("encoding", ["G722", "L16", "OPUS"])
async def test_sound_that_nobody_here_reads_is_no_call(encoding: str) -> None:
    start = STARTS["telnyx"] | {"start": {"call_control_id": "C1", "media_format": {"encoding": encoding}}}
    with pytest.raises(
        ProtocolError, match=f"^telnyx call C1 has its sound as {encoding}, and this line takes PCMU or PCMA"
    ):
        await take_call(Socket(json.dumps({"event": "connected"}), json.dumps(start)))  # type: ignore[arg-type]


def transport_of(provider: str) -> PhoneTransport:
    return PhoneTransport(SimpleNamespace(headers={}), PhoneCall(provider, "S1", "C1"))  # type: ignore[arg-type]


def message(provider: str, event: str, stream: str = "S1", **more: Any) -> str:
    return json.dumps({"event": event, IDS[provider]: stream, **more})


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_marks_go_out_and_come_back_as_the_provider_has_them(provider: str) -> None:
    transport = transport_of(provider)
    line, serializer = transport.line, transport.serializer
    line.send(0.0, 1.0)
    name = line.mark()
    sent = json.loads(serializer.mark(name))
    if provider == "plivo":
        assert sent == {"event": "checkpoint", "streamId": "S1", "name": name}
        back = message(provider, "playedStream", name=name)
    else:
        assert sent["event"] == "mark"
        assert sent["mark"] == {"name": name}
        assert provider == "telnyx" or sent[IDS[provider]] == "S1"
        back = message(provider, "mark", mark={"name": name})
    assert await serializer.deserialize(message(provider, "mark", stream="S2", mark={"name": name}, name=name)) is None
    assert line.confirmed_s == 0.0  # another stream's
    assert await serializer.deserialize(back) is None
    assert line.confirmed_s == 1.0


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_sound_keys_and_clear(provider: str) -> None:
    serializer = transport_of(provider).serializer
    await serializer.setup(SimpleNamespace(audio_in_sample_rate=24000))  # type: ignore[arg-type]
    payload = "/////w==" if provider != "exotel" else "AAAAAA=="
    frame = await serializer.deserialize(message(provider, "media", media={"payload": payload}))
    assert isinstance(frame, InputAudioRawFrame)
    assert frame.sample_rate == 8000
    assert not any(frame.audio)
    assert (
        await serializer.deserialize(message(provider, "media", media={"payload": payload, "track": "outbound"}))
        is None
    )
    key = await serializer.deserialize(message(provider, "dtmf", dtmf={"digit": "#"}))
    assert isinstance(key, InputDTMFFrame)
    cleared = json.loads(str(await serializer.serialize(InterruptionFrame())))
    assert cleared["event"] == ("clearAudio" if provider == "plivo" else "clear")


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_messages_of_another_shape_are_nothing(provider: str) -> None:
    serializer = transport_of(provider).serializer
    await serializer.setup(SimpleNamespace(audio_in_sample_rate=24000))  # type: ignore[arg-type]
    parts = [{}, {"media": "x"}, {"media": {"payload": "a"}}, {"media": {"payload": None}}, {"media": {"payload": 5}}]
    parts += [{"mark": "x"}, {"mark": {"name": 5}}, {"start": "x"}, {"dtmf": {"digit": "Z"}}, {"name": ["x"]}]
    parts += [
        {"dtmf": "5"},
        {"dtmf": {"digit": ["5"]}},
        {"dtmf": {"digit": {}}},
        {"media": {"payload": "\u00e9\u00e9\u00e9\u00e9"}},
    ]
    for event in ("media", "mark", "playedStream", "start", "dtmf", "stop", "error"):
        for part in parts:
            assert await serializer.deserialize(message(provider, event, **part)) is None, (event, part)
    for data in ("", "[]", "5", '{"event": ["x"]}', '{"event": {}}', b"\xff"):
        assert await serializer.deserialize(data) is None


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_a_second_start(provider: str) -> None:
    """Again, it changes nothing; of the same call in a new stream, it is followed; of another call, it is not."""
    transport = transport_of(provider)
    line, serializer = transport.line, transport.serializer
    line.send(0.0, 100.0)

    def start(stream: str, call: str) -> str:
        return message(provider, "start", stream, start={IDS[provider]: stream, CALLS[provider]: call})

    await serializer.deserialize(start("S1", "C1"))
    await serializer.deserialize(start("S2", "C2"))
    assert serializer.stream == "S1"
    await serializer.deserialize(start("S2", "C1"))
    assert serializer.stream == "S2"
    clear = json.loads(str(await serializer.serialize(InterruptionFrame())))
    assert provider == "telnyx" or clear[IDS[provider]] == "S2"


async def test_plivo_says_at_once_that_it_cleared() -> None:
    transport = transport_of("plivo")
    transport.clear_sent()
    await transport.serializer.deserialize(message("plivo", "clearedAudio"))
    assert 0 < transport.line.round_trip_s < 1


@pytest.mark.parametrize(
    "text", ["", "x", "[]", "1", '{"event": null}', '{"event": "media"}', '{"event": "dtmf", "dtmf": {}}']
)
async def test_what_is_no_message_is_nothing(text: str) -> None:
    assert await transport_of("twilio").serializer.deserialize(text) is None


async def test_packets_that_wait_for_the_pipeline_go_together_and_none_is_lost() -> None:
    """A machine that falls behind catches up: 100 ms a frame at most, and where nothing waits each packet goes by itself."""
    line = transport_of("twilio").input()
    queue: asyncio.Queue[InputAudioRawFrame] = asyncio.Queue()
    line._audio_in_queue = queue  # the framework makes it when the pipeline has started
    line._paused = False
    packets = [bytes([number]) * 320 for number in range(12)]
    for packet in packets[:2]:
        await line.push_audio_frame(InputAudioRawFrame(packet, 8000, 1))
        assert (await queue.get()).audio == packet
    for packet in packets[2:]:
        await line.push_audio_frame(InputAudioRawFrame(packet, 8000, 1))
    frames = [queue.get_nowait() for _ in range(queue.qsize())]
    assert [frame.num_frames for frame in frames] == [800, 800]
    assert b"".join(frame.audio for frame in frames) == b"".join(packets[2:])


# The voice on its way to the line


async def test_the_band_gives_every_sample_before_the_utterance_ends() -> None:
    sound = tone(440, 0.5).tobytes()
    pieces = [TTSAudioRawFrame(sound[at : at + 3840], 24000, 1, context_id="c") for at in range(0, len(sound), 3840)]
    down, _ = await run_test(
        PhoneBand(AS_IT_IS),
        frames_to_send=[TTSStartedFrame(context_id="c"), *pieces, TTSStoppedFrame(context_id="c")],
    )
    kinds = [type(frame) for frame in down]
    assert kinds.index(TTSStoppedFrame) == len(kinds) - 1
    audio = [frame for frame in down if isinstance(frame, TTSAudioRawFrame)]
    assert {(frame.sample_rate, frame.context_id) for frame in audio} == {(8000, "c")}
    assert sum(len(frame.audio) for frame in audio) == len(sound) // 3


# What the far end has played, in the pipeline


def packets(seconds: float, position: float = 0.0, *, interruptible: bool = True) -> list[TTSAudioRawFrame]:
    """Sent sound as the transport pushes it, 20 ms a frame."""
    made: list[TTSAudioRawFrame] = []
    for number in range(round(seconds / 0.02)):
        frame = TTSAudioRawFrame(bytes(320), 8000, 1)
        frame.metadata["higgs_voice.sent"] = position + (number + 1) * 0.02
        frame.interruptible = interruptible
        made.append(frame)
    return made


class Behind:
    """A gate whose frames are kept when they pass; its clock stands still."""

    def __init__(self) -> None:
        self.now = 0.0
        self.passed: list[Any] = []
        line = PlayedClock()
        self.watch(line, MarkGate(line, clock=lambda: self.now))

    def watch(self, line: PlayedClock, gate: MarkGate) -> None:
        self.line, self.gate = line, gate

        async def push(frame: Any, direction: FrameDirection = FrameDirection.DOWNSTREAM) -> None:
            self.passed.append(frame)

        self.gate.push_frame = push  # type: ignore[method-assign]

    @property
    def seconds(self) -> float:
        return sum(len(frame.audio) for frame in self.passed if isinstance(frame, TTSAudioRawFrame)) / 16000

    async def take(self, *frames: Any) -> None:
        for frame in frames:
            if isinstance(frame, TTSAudioRawFrame):
                self.line.send(self.now, 0.02)
            await self.gate.process_frame(frame, FrameDirection.DOWNSTREAM)


async def test_sound_passes_when_its_mark_comes_back_and_what_follows_it_with_it() -> None:
    behind = Behind()
    await behind.take(*packets(0.2))
    name = behind.line.mark()
    stopped = TTSStoppedFrame(context_id="c")
    await behind.take(stopped)
    assert behind.passed == []
    behind.line.returned(name, 0.2)
    await behind.gate.release()
    assert behind.seconds == pytest.approx(0.2)
    assert behind.passed[-1] is stopped
    await behind.gate.cleanup()


async def test_an_interruption_lets_pass_what_was_played_to_the_sample() -> None:
    behind = Behind()
    await behind.take(*packets(1.0), TTSStoppedFrame(context_id="c"))
    behind.now = 0.333
    behind.line.clear(behind.now)
    cut = InterruptionFrame()
    await behind.take(cut)
    assert behind.seconds == pytest.approx(0.333, abs=1 / 8000)
    assert behind.passed[-1] is cut
    assert behind.gate.holding == 0


async def writer(provider: str) -> tuple[Behind, Any, list[Any]]:
    """A transport's output that writes to a list, without any pre-buffer, and what is behind it."""
    behind, sent = Behind(), []
    transport = PhoneTransport(
        SimpleNamespace(headers={}),  # type: ignore[arg-type]
        PhoneCall(provider, "S1", "C1"),
        PhoneSettings(prebuffer_s=0.0),
        clock=lambda: behind.now,
    )
    behind.watch(transport.line, transport.gate())

    async def send(text: Any) -> None:
        sent.append(json.loads(text))

    output = transport.output()
    output._client = SimpleNamespace(is_connected=True, is_closing=False, send=send)  # type: ignore[assignment]
    await transport.serializer.setup(SimpleNamespace(audio_in_sample_rate=8000))  # type: ignore[arg-type]
    return behind, output, sent


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_what_is_being_sent_counts_up_to_where_the_line_played_it(provider: str) -> None:
    """A packet that the line is playing while its sender still paces itself: 200 ms at Exotel, and as much elsewhere where the
    machine is late. It is heard up to the cut, once, and not again when the sender comes back."""
    behind, output, sent = await writer(provider)
    writing = asyncio.create_task(output.write_audio_frame(TTSAudioRawFrame(bytes(3200), 8000, 1)))
    while not sent:
        await asyncio.sleep(0)
    behind.now = 0.15
    cut = InterruptionFrame()
    await output._clear()
    await behind.gate.process_frame(cut, FrameDirection.DOWNSTREAM)
    assert behind.seconds == pytest.approx(0.15, abs=1 / 8000)
    assert behind.passed[-1] is cut
    assert not await writing
    assert behind.gate.holding == 0


async def test_what_a_clear_overtook_was_never_sent() -> None:
    """The clear goes out while the socket still takes the packet before it: the line drops the packet, and no one counts it."""
    behind, output, sent = await writer("twilio")
    send, taken = output._client.send, asyncio.Event()

    async def slow(text: Any) -> None:
        await send(text)
        if len(sent) == 1:
            await taken.wait()

    output._client.send = slow
    writing = asyncio.create_task(output.write_audio_frame(TTSAudioRawFrame(bytes(320), 8000, 1)))
    while not sent:
        await asyncio.sleep(0)
    await output._clear()
    taken.set()
    assert not await writing
    assert behind.line.sent_s == 0.0
    assert [message["event"] for message in sent][:2] == ["media", "clear"]


async def test_a_cut_while_a_mark_goes_out_counts_what_was_played() -> None:
    """The packet is at the far end already when the socket still takes the mark behind it."""
    behind, output, sent = await writer("exotel")
    send, taken = output._client.send, asyncio.Event()

    async def slow(text: Any) -> None:
        await send(text)
        if sent[-1]["event"] == "mark":
            await taken.wait()

    output._client.send = slow
    writing = asyncio.create_task(output.write_audio_frame(TTSAudioRawFrame(bytes(3200), 8000, 1)))
    while len(sent) < 2:
        await asyncio.sleep(0)
    behind.now = 0.15
    output._client.send = send
    await output._clear()
    await behind.gate.process_frame(InterruptionFrame(), FrameDirection.DOWNSTREAM)
    assert behind.seconds == pytest.approx(0.15, abs=1 / 8000)
    taken.set()
    assert not await writing
    assert (output._due, behind.gate.holding) == (0.0, 0)


async def test_a_new_stream_of_the_call_begins_with_nothing() -> None:
    """What was on its way to the old one, what may not be interrupted there, and its clock go with it."""
    behind, output, sent = await writer("twilio")
    protected = TTSAudioRawFrame(bytes(320), 8000, 1)
    protected.interruptible = False
    writing = asyncio.create_task(output.write_audio_frame(protected))
    while not sent:
        await asyncio.sleep(0)
    behind.now = 0.01
    await output._phone._on_restarted("S2")
    assert not await writing
    assert (output._due, output._protected_s) == (0.0, 0.0)
    assert behind.line.sent_s == pytest.approx(0.01)


async def test_uninterruptible_sound_stays_and_plays_on() -> None:
    behind = Behind()
    await behind.take(*packets(0.5, interruptible=False))
    behind.now = 0.2
    await behind.take(InterruptionFrame())
    assert behind.gate.holding == pytest.approx(15, abs=1)
    await behind.gate.cleanup()


async def test_without_marks_the_clock_lets_sound_pass() -> None:
    behind = Behind()
    await behind.take(*packets(0.1))
    behind.now = 0.1
    async with asyncio.timeout(5):
        while behind.seconds < 0.0999:
            await asyncio.sleep(0)
    await behind.gate.cleanup()
