"""What only an engine across a websocket has to do: flow control, lines that break, servers that go and come."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace

import numpy as np
import pytest

from higgs_voice import Reference, SessionSettings, Voice, VoiceSession, create_backend, wire
from higgs_voice.audio import to_int16
from higgs_voice.backends.fake import FakeSynthesizer
from higgs_voice.backends.remote import RemoteSynthesizer
from higgs_voice.config import Sampling
from higgs_voice.conversation.synthesizer import (
    AudioEvent,
    ContextSpec,
    EngineInfo,
    Exchange,
    FinishReason,
    SpeakRequest,
    SpeechEvent,
)
from higgs_voice.errors import (
    ConnectionLostError,
    EngineBusyError,
    EngineDiedError,
    NoAudioError,
    ProtocolError,
    RefusedError,
    RemoteError,
    SettingsError,
)
from higgs_voice.server.app import Server, ServerSettings
from tests.backends.conformance import LONG, audio, codes, collect, finish, request, sound
from tests.server.proxy import Proxy, until


class Gate:
    """Paces a fake engine: it may make as many events as `allow` has said."""

    def __init__(self) -> None:
        self._left = asyncio.Semaphore(0)

    def __call__(self, _: SpeakRequest, __: int) -> object:
        return self._left.acquire()

    def allow(self, events: int) -> None:
        for _ in range(events):
            self._left.release()


@asynccontextmanager
async def serving(engine: FakeSynthesizer | None = None, **settings: object) -> AsyncGenerator[Server]:
    async with Server(engine or FakeSynthesizer(), ServerSettings(port=0, **settings)) as server:
        yield server


@asynccontextmanager
async def client(url: str, **options: object) -> AsyncGenerator[RemoteSynthesizer]:
    engine = RemoteSynthesizer(url, **options)  # type: ignore[arg-type]
    await engine.start()
    try:
        yield engine
    finally:
        await engine.aclose()


def test_urls_are_checked() -> None:
    with pytest.raises(SettingsError, match="ws://"):
        RemoteSynthesizer("http://example.org")
    assert isinstance(create_backend("ws://127.0.0.1:1"), RemoteSynthesizer)


async def test_the_address_of_the_protocol_is_the_servers() -> None:
    async with serving() as server:
        for url in (f"{server.url}/", f"{server.url}{wire.PATH}", f"{server.url}{wire.PATH}/"):
            async with client(url) as remote:
                assert remote.url == server.url
                assert finish(await collect(remote, request("Hm."))).frames


async def test_no_server_is_said_in_one_sentence() -> None:
    engine = RemoteSynthesizer("ws://127.0.0.1:9", connect_timeout_s=0.1)
    with pytest.raises(ConnectionLostError, match="higgs-voice serve"):
        await engine.start()
    await engine.aclose()


async def test_it_equals_the_engine_itself() -> None:
    engine = FakeSynthesizer()
    asked = request(LONG)
    here = await collect(engine, asked)
    async with serving(engine) as server, client(server.url) as remote:
        there = await collect(remote, asked)
    assert sound(here) == sound(there)
    assert np.array_equal(codes(here), codes(there))
    assert remote.info == engine.info


async def test_exchanges_travel_once() -> None:
    engine = FakeSynthesizer()
    exchange = Exchange("It was said before.", engine.codes_for("x", 30))
    voice_clip = Exchange("A clip.", engine.codes_for("y", 40))
    context = ContextSpec(replace(ContextSpec().voice, references=(voice_clip,), scene="Here."), (exchange,))
    async with serving(engine) as server, client(server.url) as remote:
        for _ in range(3):
            await collect(remote, request(context=context))
        held = next(iter(server.hub.clients.values()))
        assert len(held._store) == 2
        held._store.clear()  # as if others had pushed it out
        await collect(remote, request(context=context))
    got = engine.requests[-1].context
    assert [item.text for item in (*got.voice.references, *got.exchanges)] == ["A clip.", "It was said before."]
    assert np.array_equal(got.exchanges[0].codes, exchange.codes)
    assert got.voice.scene == "Here."


@pytest.mark.parametrize("pcm", [True, False], ids=["sound", "codes alone"])
async def test_generation_runs_ahead_by_the_window_only(pcm: bool) -> None:
    engine = FakeSynthesizer(frames_per_char=10)
    async with serving(engine) as server, client(server.url, window_s=2.0) as remote:
        async with aclosing(remote.speak(replace(request(LONG), pcm=pcm))) as events:
            await anext(events)
            await until(lambda: engine.steps >= 50)
            for _ in range(50):
                await asyncio.sleep(0)
            assert engine.steps <= 60
            taken = 0
            while taken < 100:  # 4 s taken let it go on
                event = await anext(events)
                assert isinstance(event, AudioEvent)
                taken += event.codes.shape[1]
            assert 100 <= engine.steps <= 165


async def test_leaving_early_stops_the_engine() -> None:
    engine = FakeSynthesizer(frames_per_char=10)
    async with serving(engine) as server, client(server.url) as remote:
        async with aclosing(remote.speak(request(LONG))) as events:
            await anext(events)
        await until(lambda: not engine.active)
        assert server.metrics.interruptions._value.get() == 1  # type: ignore[attr-defined]


async def test_errors_keep_their_class() -> None:
    def script(asked: SpeakRequest) -> FinishReason | BaseException | None:
        match asked.text:
            case "died":
                return EngineDiedError("the worker is gone")
            case "broke":
                return ZeroDivisionError("oh")
            case "collapse":
                return FinishReason.COLLAPSE
            case _:
                return None

    async with serving(FakeSynthesizer(script=script)) as server, client(server.url) as remote:
        with pytest.raises(EngineDiedError, match="the worker is gone"):
            await collect(remote, request("died"))
        with pytest.raises(EngineDiedError, match="ZeroDivisionError"):
            await collect(remote, request("broke"))
        end = finish(await collect(remote, request("collapse")))
        assert end.reason is FinishReason.COLLAPSE
        assert isinstance(end.error, NoAudioError)
        assert finish(await collect(remote, request())).frames  # the session goes on


async def test_half_a_surrogate_pair_travels() -> None:
    async with serving() as server, client(server.url) as remote:
        assert finish(await collect(remote, request("A \ud83d face."))).frames


async def _read_on(events: AsyncGenerator[SpeechEvent], seen: list[SpeechEvent]) -> None:
    async for event in events:
        seen.append(event)


async def test_a_broken_line_goes_on_with_the_next_frame() -> None:
    gate = Gate()
    engine = FakeSynthesizer(pace=gate)
    alone = await collect(FakeSynthesizer(), request(LONG))
    async with serving(engine) as server, Proxy(server.port) as proxy, client(proxy.url) as remote:
        seen: list[SpeechEvent] = []
        async with aclosing(remote.speak(request(LONG))) as events:
            gate.allow(3)
            for _ in range(3):
                seen.append(await anext(events))
            proxy.cut()
            gate.allow(4)  # made while nobody is connected
            await until(lambda: remote.reconnections == 1)
            gate.allow(1000)
            await _read_on(events, seen)
        assert sound(seen) == sound(alone)
        assert np.array_equal(codes(seen), codes(alone))
        assert len(engine.requests) == 1  # nothing was asked again
        assert proxy.connections == 2


async def test_a_server_that_restarts_in_mid_sentence_is_taken_up_at_the_same_sample() -> None:
    gate = Gate()
    alone = await collect(FakeSynthesizer(), request(LONG))
    first = Server(FakeSynthesizer(pace=gate), ServerSettings(port=0, grace_s=0.0))
    await first.start()
    context = ContextSpec(exchanges=(Exchange("Before.", codes(alone)[:, :10]),))
    async with Proxy(first.port) as proxy, client(proxy.url) as remote:
        seen: list[SpeechEvent] = []
        async with aclosing(remote.speak(request(LONG, context=context))) as events:
            gate.allow(3)
            for _ in range(3):
                seen.append(await anext(events))
            proxy.closed = True
            proxy.cut()
            await first.aclose()
            again = FakeSynthesizer(frames_per_event=4)
            async with serving(again) as second:
                proxy.target = second.port
                proxy.closed = False
                await _read_on(events, seen)
                assert sound(seen) == sound(alone)
                assert np.array_equal(codes(seen), codes(alone))
                assert [event.start for event in audio(seen)] == sorted({event.start for event in audio(seen)})
                assert again.requests[0].context.exchanges[0].text == "Before."  # rebuilt from what the client holds
                await remote.aclose()


class _Other(FakeSynthesizer):
    """The same engine with other dice."""

    def codes_for(self, text: str, frames: int) -> np.ndarray:
        return super().codes_for(text + "!", frames)


async def test_a_server_with_other_dice_goes_on_behind_what_was_said() -> None:
    gate, other = Gate(), _Other()
    alone = await collect(FakeSynthesizer(), request(LONG))
    async with serving(FakeSynthesizer(pace=gate)) as first, serving(other) as second:
        async with Proxy(first.port) as proxy, client(proxy.url) as remote:
            seen: list[SpeechEvent] = []
            async with aclosing(remote.speak(request(LONG))) as events:
                gate.allow(2)
                for _ in range(2):
                    seen.append(await anext(events))
                proxy.target = second.port
                proxy.cut()
                await _read_on(events, seen)
    said = other.requests[0].spoken
    assert said is not None
    assert np.array_equal(said, codes(alone)[:, :10])
    whole = codes(seen)
    assert np.array_equal(whole[:, :10], said)
    assert np.array_equal(whole[:, 10:], other.codes_for(LONG, whole.shape[1])[:, 10:])
    assert sound(seen) == to_int16(other.sound_of(whole)).tobytes()
    assert finish(seen).frames == whole.shape[1]


@pytest.mark.parametrize("pcm", [True, False])
async def test_who_goes_on_keeps_to_the_window(pcm: bool) -> None:
    """What was taken before counts on both sides."""
    gate, second = Gate(), FakeSynthesizer()
    asked = replace(request(" ".join([LONG] * 3)), pcm=pcm)
    async with serving(FakeSynthesizer(pace=gate)) as one, serving(second) as two:
        async with Proxy(one.port) as proxy, client(proxy.url, window_s=1.0) as remote:
            async with aclosing(remote.speak(asked)) as events:
                gate.allow(30)
                for _ in range(20):
                    await anext(events)
                proxy.target = two.port
                proxy.cut()
                await until(lambda: bool(second.requests))
                await until(lambda: second.steps > 0)
                await asyncio.sleep(0.05)
                begun = second.requests[0].spoken_frames
                assert begun >= 100
                assert second.steps <= 100 + 25 + 5 - begun + 5
                rest = [event async for event in events]
    assert finish(rest).frames == codes(rest).shape[1] + 100
    assert second.steps == finish(rest).frames - begun


class _Anew(_Other):
    """An engine that does not go on with what another one began."""

    @property
    def info(self) -> EngineInfo:
        return replace(super().info, continues=False)


class _First(FakeSynthesizer):
    @property
    def info(self) -> EngineInfo:
        return replace(super().info, continues=False)


async def test_a_server_that_cannot_go_on_is_told() -> None:
    async with serving(_First()) as server:
        server.hub.engine = FakeSynthesizer()  # says that it can
        async with client(server.url) as remote:
            server.hub.engine = _First()
            spoken = np.zeros((8, 4), dtype=np.int16)
            with pytest.raises(RefusedError, match="does not go on"):
                await collect(remote, replace(request(), spoken=spoken))


async def test_a_server_that_speaks_it_differently_is_not_spliced_in() -> None:
    gate = Gate()
    async with serving(_First(pace=gate)) as first, serving(_Anew()) as second:
        async with Proxy(first.port) as proxy, client(proxy.url) as remote:
            async with aclosing(remote.speak(request(LONG))) as events:
                gate.allow(1)
                await anext(events)
                proxy.target = second.port
                proxy.cut()
                with pytest.raises(ConnectionLostError, match="mid-sentence"):
                    async for _ in events:
                        pass
            assert finish(await collect(remote, request())).frames


async def test_another_model_is_refused() -> None:
    async with serving() as first, serving(FakeSynthesizer(num_codebooks=4)) as second:
        async with Proxy(first.port) as proxy, client(proxy.url) as remote:
            proxy.target = second.port
            proxy.cut()
            await until(lambda: not remote.connected)
            with pytest.raises(RefusedError, match="cannot move"):
                await collect(remote, request())


async def test_a_line_that_stays_broken_fails_after_the_grace_time() -> None:
    gate = Gate()
    async with serving(FakeSynthesizer(pace=gate)) as server, Proxy(server.port) as proxy:
        async with client(proxy.url, grace_s=0.2) as remote:
            async with aclosing(remote.speak(request(LONG))) as events:
                gate.allow(1)
                await anext(events)
                proxy.closed = True
                proxy.cut()
                with pytest.raises(ConnectionLostError, match="no higgs-voice server"):
                    async for _ in events:
                        pass
            proxy.closed = False
            gate.allow(1000)
            assert finish(await collect(remote, request())).frames  # the next request connects again


async def test_stop_does_not_wait_for_a_broken_line() -> None:
    gate = Gate()
    async with serving(FakeSynthesizer(pace=gate)) as server, Proxy(server.port) as proxy, client(proxy.url) as remote:
        async with aclosing(remote.speak(first := request(LONG))) as events:
            gate.allow(1)
            await anext(events)
            proxy.closed = True
            proxy.cut()
            await until(lambda: not remote.connected)
            remote.stop(first.speech_id)
            rest = [event async for event in events]
            assert finish(rest).reason is FinishReason.STOPPED
        waiting = asyncio.ensure_future(collect(remote, second := request(LONG)))
        await asyncio.sleep(0)
        remote.stop(second.speech_id)
        assert finish(await asyncio.wait_for(waiting, 1.0)).reason is FinishReason.STOPPED
        proxy.closed = False
        await until(lambda: remote.connected)
        await until(lambda: not server.hub.streams)  # the new line said what is no longer read


async def test_a_second_server_takes_over_from_one_that_shuts_down() -> None:
    gate = Gate()
    one, two = FakeSynthesizer(pace=gate), FakeSynthesizer()
    async with serving(one) as first, serving(two) as second:
        engine = RemoteSynthesizer(f"{first.url},{second.url}")
        await engine.start()
        async with aclosing(engine.speak(request(LONG))) as events:
            gate.allow(1)
            await anext(events)
            draining = asyncio.ensure_future(first.drain())
            await until(lambda: first.hub.draining)
            gate.allow(1000)
            assert finish([event async for event in events]).reason is FinishReason.EOS
        await until(lambda: not first.hub.clients)
        await asyncio.wait_for(draining, 5)
        assert finish(await collect(engine, request("The next one."))).frames
        assert [asked.text for asked in two.requests] == ["The next one."]
        await engine.aclose()


async def test_sessions_outlive_a_broken_line_for_the_grace_time_only() -> None:
    engine = FakeSynthesizer()
    closed: list[str] = []
    engine.close_session = closed.append  # type: ignore[method-assign]
    async with serving(engine, grace_s=0.3) as server, Proxy(server.port) as proxy:
        async with client(proxy.url, grace_s=0.05) as remote:
            await collect(remote, request(session="kept"))
            proxy.cut()
            await until(lambda: remote.reconnections == 1)
            assert server.hub.sessions == 1
            assert not closed
            proxy.closed = True
            proxy.cut()
            await until(lambda: not server.hub.clients)
            assert server.hub.sessions == 0
            assert [name.split("/")[1] for name in closed] == ["kept"]


class PacedFake(FakeSynthesizer):
    """An engine that knows how many streams it can speak."""

    capacity: float | None = None


async def test_a_server_takes_no_more_sessions_than_its_engine_speaks_without_gaps() -> None:
    engine = PacedFake()
    async with Server(engine, ServerSettings(port=0)) as server, client(server.url) as remote:
        await collect(remote, request("Hm.", session="first"))
        engine.capacity = 1.3  # two sessions that speak six seconds of ten
        await collect(remote, request("Hm.", session="second"))
        assert server.hub.load == 1.0
        with pytest.raises(EngineBusyError, match="it has 2 sessions and its engine keeps 2 free of gaps"):
            await collect(remote, request("Hm.", session="third"))
        await collect(remote, request("Hm.", session="first"))  # who is in stays in
        engine.capacity = 0.2
        await collect(remote, request("Hm.", session="second"))
        remote.close_session("first")
        remote.close_session("second")
        await collect(remote, request("Hm.", session="third"))  # one is always taken
    settings = ServerSettings(port=0, admit_beyond_capacity=True)
    async with Server(engine, settings) as server, client(server.url) as remote:
        for number in range(4):
            await collect(remote, request("Hm.", session=f"s{number}"))


async def test_limits_are_refused_with_a_sentence() -> None:
    async with serving(max_sessions=1, max_text=40, max_clip_s=1.0, max_connections=1) as server:
        async with client(server.url) as remote:
            await collect(remote, request("Short enough."))
            with pytest.raises(EngineBusyError, match="1 sessions"):
                await collect(remote, request("Short enough.", session="another"))
            with pytest.raises(RefusedError, match="40 a chunk"):
                await collect(remote, request("x" * 41))
            with pytest.raises(RefusedError, match="takes 1 s"):
                await remote.encode(np.zeros(48000, dtype=np.float32))
            with pytest.raises(EngineBusyError, match="1 clients"):
                await RemoteSynthesizer(server.url).start()
            remote.close_session("s")
            assert finish(await collect(remote, request("Short enough.", session="another"))).frames


async def test_chunks_a_minute_are_limited() -> None:
    async with serving(max_chunks_per_minute=20) as server, client(server.url) as remote:
        await collect(remote, request("One."))
        await collect(remote, request("Two."))
        with pytest.raises(RefusedError, match="20 chunks a minute"):
            await collect(remote, request("Three."))


async def test_a_token_is_asked_for() -> None:
    async with serving(token="open sesame") as server:
        async with client(server.url, token="open sesame") as remote:
            assert finish(await collect(remote, request())).frames
        async with client(server.url.replace("ws://", "ws://open%20sesame@")) as remote:
            assert remote.url == server.url  # what messages show does not hold the token
        for wrong in (None, "open simsim"):
            with pytest.raises(RefusedError, match="token"):
                await RemoteSynthesizer(server.url, token=wrong).start()


async def test_a_voice_session_is_the_same_near_and_far() -> None:
    clip = (0.3 * np.sin(np.arange(24000) * 0.05)).astype(np.float32)
    voice = Voice.create(speakers="calm", references=Reference("A clip.", clip))
    settings = SessionSettings(sampling=Sampling(seed=1))
    results: list[tuple[bytes, str]] = []
    engine = FakeSynthesizer()
    async with serving(engine) as server, client(server.url) as remote:
        for one in (FakeSynthesizer(), remote):
            async with VoiceSession(one, voice=voice, settings=settings) as session:
                pcm = b""
                for text in ("Good morning. How are you today?", "I am calling about the parcel you sent."):
                    speech = session.speak(text)
                    pcm += await speech.collect()
                    session.settle(speech.id, speech.audio_s)
                results.append((pcm, session.context_text))
        await until(lambda: server.hub.sessions == 0)  # aclose freed it
    assert results[0] == results[1]
    assert results[0][1].count("\n") >= 1


@pytest.mark.parametrize("seed", range(6))
async def test_whatever_breaks_and_wherever_it_goes_on_the_sound_is_the_same(seed: int) -> None:
    rng = random.Random(seed)
    text = " ".join([LONG] * 2)
    async with VoiceSession(FakeSynthesizer()) as session:
        expected = await session.speak(text).collect()
    async with serving() as one, serving(FakeSynthesizer(frames_per_event=7)) as two, Proxy(one.port) as proxy:
        async with client(proxy.url, window_s=rng.choice([0.3, 1.0, 2.0])) as remote, VoiceSession(remote) as session:
            cuts = {rng.randrange(60) for _ in range(4)}
            heard = b""
            place = 0
            count = 0
            async for chunk in session.speak(text).audio():
                assert chunk.start == place
                place += chunk.samples
                heard += chunk.pcm
                if count in cuts:
                    proxy.target = rng.choice([one.port, two.port])
                    proxy.cut()
                    for _ in range(rng.randrange(30)):
                        await asyncio.sleep(0)
                count += 1
            assert heard == expected


async def test_two_hundred_cycles_leave_nothing() -> None:
    engine = FakeSynthesizer(frames_per_char=0.2)
    async with serving(engine, max_chunks_per_minute=10**6) as server, client(server.url) as remote:
        await collect(remote, request("Hi."))
        remote.close_session("s")
        before = len(asyncio.all_tasks())
        for number in range(200):
            async with VoiceSession(remote, session_id=f"cycle {number}") as session:
                await session.speak("Hello there.").collect()
        await until(lambda: server.hub.sessions == 0 and not engine.active)
        held = next(iter(server.hub.clients.values()))
        assert not held.streams
        assert not held.tasks
        assert not remote._streams
        assert not remote._sessions
        assert len(asyncio.all_tasks()) == before
        assert not engine._locks


# What must not take the client with it


@pytest.mark.parametrize("url", ["ws://host:port", "ws://127.0.0.1:99999", "ws://", "ws://:8765", "ws://h:0"])
def test_an_address_that_is_none_is_said_at_once(url: str) -> None:
    with pytest.raises(SettingsError, match="ws://host:port"):
        RemoteSynthesizer(url)


async def test_an_id_that_cannot_travel_harms_nobody() -> None:
    async with serving() as server, client(server.url) as remote:
        with pytest.raises(SettingsError, match="1 to 128 characters, not 129"):
            await collect(remote, replace(request(), session_id="x" * 129))
        with pytest.raises(SettingsError, match="not 0"):
            remote.prepare("", ContextSpec())
        await remote._line.close()  # type: ignore[union-attr]  # pyright: ignore
        await collect(remote, request())


async def test_a_client_that_breaks_tells_everybody(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving() as server, client(server.url) as remote:

        def broken(*_: object) -> None:
            raise RuntimeError("out of order")

        monkeypatch.setattr(remote, "_take", broken)
        with pytest.raises(RemoteError, match="the client broke: RuntimeError: out of order"):
            await asyncio.wait_for(collect(remote, request()), 10)
        monkeypatch.undo()
        await collect(remote, request())


async def test_a_reason_that_is_none_is_the_protocols_error() -> None:
    async with serving() as server, client(server.url) as remote:
        speaking = asyncio.ensure_future(collect(remote, request(LONG)))
        await until(lambda: bool(remote._streams))
        finished = wire.Finished(
            stream=next(iter(remote._streams)), seq=0, reason="bored", frames=0, error=None, timings={}
        )
        with pytest.raises(ProtocolError, match="'bored'"):
            remote._receive(wire.dump(finished))
        await speaking


@pytest.mark.parametrize("told", [True, False])
async def test_new_calls_leave_a_server_that_is_shutting_down(told: bool) -> None:
    first, second = FakeSynthesizer(), FakeSynthesizer()
    async with serving(first) as a, serving(second) as b:
        if not told:
            a.hub.draining = True
        async with client([a.url, b.url]) as remote:
            if told:
                await collect(remote, request(session="old"))
                draining = asyncio.ensure_future(a.drain())
                await until(lambda: a.hub.draining)
                await asyncio.wait_for(draining, 10)
                await until(lambda: remote.url == b.url and remote.connected)  # with nobody speaking, at once
            for number in range(3):
                await collect(remote, request(session=f"new {number}"))
    assert len(first.requests) == int(told)
    assert len(second.requests) == 3


async def test_two_servers_that_shut_down_refuse_and_do_not_take_turns() -> None:
    async with serving() as a, serving() as b:
        a.hub.draining = b.hub.draining = True
        async with client([a.url, b.url]) as remote:
            with pytest.raises(EngineBusyError, match="shutting down"):
                await collect(remote, request())
            assert remote.reconnections <= 2


async def test_codes_that_cannot_be_sent_decoded_are_refused_here() -> None:
    engine = FakeSynthesizer()
    async with serving(engine) as server, client(server.url) as remote:
        with pytest.raises(RefusedError, match="200 s of codes"):
            await remote.decode(engine.codes_for("x", 5000))
        with pytest.raises(ProtocolError):
            await remote.decode(np.zeros((3, 5), np.int16))
        assert len(await remote.decode(engine.codes_for("x", 4000))) == 4000 * 960
        assert remote.reconnections == 0
