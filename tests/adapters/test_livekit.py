"""The TTS by itself: what the framework demands of every plugin."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from livekit.agents import APIConnectionError, APIConnectOptions, APIError, APIStatusError, APITimeoutError, tts
from livekit.agents.types import USERDATA_TIMED_TRANSCRIPT
from livekit.plugins import higgs

from higgs_voice import SessionSettings, Voice
from higgs_voice.backends.fake import FakeSynthesizer
from higgs_voice.conversation.synthesizer import FinishReason, SpeakRequest
from higgs_voice.errors import ConnectionLostError, EngineBusyError, EngineDiedError, RefusedError, SettingsError
from higgs_voice.server.app import Server, ServerSettings
from tests.adapters.livekit_kit import CONN
from tests.server.proxy import Proxy, until
from tests.virtual_time import no_more_tasks_than

TEXT = "The quick brown fox jumps over the lazy dog. It does so every day, at noon.  Then it rests!"


@pytest_asyncio.fixture(autouse=True)
async def _no_leaked_tasks() -> AsyncGenerator[None]:
    before = asyncio.all_tasks()
    yield
    await no_more_tasks_than(before)
    gc.collect()


async def spoken(stream: tts.SynthesizeStream, *texts: str) -> list[tts.SynthesizedAudio]:
    for text in texts:
        stream.push_text(text)
    stream.end_input()
    async with stream:
        return [event async for event in stream]


def pcm(events: list[tts.SynthesizedAudio]) -> bytes:
    return b"".join(event.frame.data.tobytes() for event in events)


def pieces(text: str, size: int = 5) -> Iterator[str]:
    return (text[start : start + size] for start in range(0, len(text), size))


async def test_a_stream_keeps_the_frameworks_rules() -> None:
    engine = FakeSynthesizer()
    async with higgs.TTS(engine=engine) as voice:
        metrics: list[Any] = []
        voice.on("metrics_collected", metrics.append)
        events = await spoken(voice.stream(conn_options=CONN), *pieces(TEXT))
    assert len({event.request_id for event in events}) == 1
    assert events[0].request_id
    assert len({event.segment_id for event in events}) == 1
    assert events[0].segment_id
    assert [event.is_final for event in events].count(True) == 1
    assert events[-1].is_final
    assert events[-1].frame.duration < 0.25
    assert all(event.frame.duration < 0.25 for event in events)
    assert all(event.frame.sample_rate == 24000 and event.frame.num_channels == 1 for event in events)
    made = sum(request.text != "" for request in engine.requests)
    assert made >= 2
    assert sum(event.frame.samples_per_channel for event in events) == engine.steps * 960
    assert len(metrics) == 1
    assert metrics[0].characters_count == len(TEXT)
    assert metrics[0].streamed
    assert not metrics[0].cancelled
    assert metrics[0].ttfb > 0
    assert metrics[0].audio_duration == pytest.approx(engine.steps / 25, abs=0.02)
    assert metrics[0].metadata.model_provider == "higgs-voice"


async def test_what_comes_out_is_what_the_engine_made() -> None:
    engine = FakeSynthesizer()
    async with higgs.TTS(engine=engine, settings=SessionSettings(crossfade=False)) as voice:
        events = await spoken(voice.stream(conn_options=CONN), *pieces(TEXT))
    sound = np.concatenate(
        [
            engine.sound_of(engine.codes_for(request.text, max(2, round(len(request.text) * 1.5))))
            for request in engine.requests
        ]
    )
    assert np.abs(np.frombuffer(pcm(events), dtype="<i2") / 32767 - sound).max() < 1e-3


async def test_the_timed_words_are_the_text() -> None:
    async with higgs.TTS(engine=FakeSynthesizer()) as voice:
        events = await spoken(voice.stream(conn_options=CONN), *pieces(TEXT, 3))
    words = [word for event in events for word in event.frame.userdata.get(USERDATA_TIMED_TRANSCRIPT, [])]
    assert "".join(words) == TEXT
    times = [time for word in words for time in (word.start_time, word.end_time)]
    assert times == sorted(times)
    assert times[-1] <= sum(event.frame.duration for event in events) + 0.01
    assert voice.capabilities.aligned_transcript


@pytest.mark.parametrize("text", ["…", "!?", "🙂", "* * *"])
async def test_text_with_nothing_to_say_is_a_moment_of_silence(text: str) -> None:
    engine = FakeSynthesizer()
    async with higgs.TTS(engine=engine) as voice:
        events = await spoken(voice.stream(conn_options=CONN), text)
        assert events[-1].is_final
        assert set(pcm(events)) == {0}
        assert sum(event.frame.duration for event in events) <= 0.05
        assert not engine.requests
        frames = [event async for event in voice.synthesize(text, conn_options=CONN)]
        assert frames[-1].is_final


@pytest.mark.parametrize("text", ["", " ", "\n \t"])
async def test_blank_text_is_nothing(text: str) -> None:
    engine = FakeSynthesizer()
    async with higgs.TTS(engine=engine) as voice:
        assert await spoken(voice.stream(conn_options=CONN), text) == []
        async with voice.synthesize(text, conn_options=CONN) as chunked:
            assert [event async for event in chunked] == []
        assert not engine.requests


async def test_synthesize_is_one_segment_of_the_whole_text() -> None:
    engine = FakeSynthesizer()
    async with higgs.TTS(engine=engine) as voice:
        metrics: list[Any] = []
        voice.on("metrics_collected", metrics.append)
        async with voice.synthesize(TEXT, conn_options=CONN) as chunked:
            events = [event async for event in chunked]
        assert [event.is_final for event in events].count(True) == 1
        assert sum(event.frame.samples_per_channel for event in events) == engine.steps * 960
        assert len(metrics) == 1
        session = voice.conversation().session
        assert session is not None
        assert session.stats.exchanges == len(engine.requests)  # what was made in full counts as heard


async def test_a_flush_speaks_what_is_there() -> None:
    engine = FakeSynthesizer()
    async with higgs.TTS(engine=engine) as voice, voice.stream(conn_options=CONN) as stream:
        stream.push_text("Just a moment")
        stream.flush()
        first = await asyncio.wait_for(anext(stream), 5)
        assert first.frame.duration > 0
        assert engine.requests[0].text.startswith("Just a moment")
        stream.end_input()
        assert [event.is_final async for event in stream][-1]


async def test_one_voice_over_many_streams() -> None:
    engine = FakeSynthesizer(frames_per_char=0.3)
    async with higgs.TTS(engine=engine) as voice:
        for number in range(3):
            await spoken(voice.stream(conn_options=CONN), f"This is sentence number {number}.")
            await asyncio.sleep(0.4)  # it plays out by the clock
    assert len({request.session_id for request in engine.requests}) == 1
    assert [len(request.context.exchanges) for request in engine.requests] == [0, 1, 2]


async def test_an_abandoned_stream_stops_the_engine_and_the_next_is_whole() -> None:
    engine = FakeSynthesizer(frames_per_char=30)
    async with higgs.TTS(engine=engine) as voice:
        async with voice.stream(conn_options=CONN) as stream:
            stream.push_text("A long one that nobody waits for until the end.")
            stream.end_input()
            await anext(stream)
        await until(lambda: not engine.active)
        made = engine.steps
        engine._frames_per_char = 1.5
        events = await spoken(voice.stream(conn_options=CONN), "A short one.")
        assert sum(event.frame.samples_per_channel for event in events) == (engine.steps - made) * 960


async def test_a_stream_that_is_never_fed_ends_quietly() -> None:
    engine = FakeSynthesizer()
    async with higgs.TTS(engine=engine) as voice:
        assert await spoken(voice.stream(conn_options=CONN)) == []
        async with voice.stream(conn_options=CONN):
            pass
    assert not engine.requests


# Errors


async def test_an_engine_that_fails_is_tried_again_as_often_as_it_may() -> None:
    engine = FakeSynthesizer(script=lambda _: ConnectionLostError("gone"))
    async with higgs.TTS(engine=engine) as voice:
        errors: list[tts.TTSError] = []
        voice.on("error", errors.append)
        with pytest.raises(APIConnectionError):
            await spoken(
                voice.stream(conn_options=APIConnectOptions(max_retry=3, retry_interval=0.0, timeout=1)), "Hi."
            )
    assert len(engine.requests) == 4
    assert [error.recoverable for error in errors] == [True, True, True, False]


async def test_a_second_try_speaks_the_text_from_its_beginning() -> None:
    tries: list[str] = []

    def script(request: SpeakRequest) -> BaseException | None:
        tries.append(request.text)
        return EngineDiedError("oh") if len(tries) == 1 else None

    async with higgs.TTS(engine=FakeSynthesizer(script=script)) as voice:
        events = await spoken(voice.stream(conn_options=CONN), *pieces("Hello there, my friend."))
    assert events[-1].is_final
    assert tries[0] == tries[1]


@pytest.mark.parametrize(
    ("error", "kind", "retryable"),
    [
        (ConnectionLostError("x"), APIConnectionError, True),
        (EngineDiedError("x"), APIConnectionError, True),
        (EngineBusyError("x"), APIStatusError, True),
        (RefusedError("x"), APIStatusError, False),
        (SettingsError("x"), APIError, False),
    ],
)
async def test_errors_are_the_frameworks(error: Exception, kind: type[APIError], retryable: bool) -> None:
    async with higgs.TTS(engine=FakeSynthesizer(script=lambda _: error)) as voice:
        with pytest.raises(kind, match="x") as raised:
            await spoken(voice.stream(conn_options=APIConnectOptions(max_retry=0, timeout=1)), "Hi.")
        assert raised.value.retryable is retryable


async def test_no_sound_at_all_is_an_error_that_may_pass() -> None:
    engine = FakeSynthesizer(script=lambda _: FinishReason.COLLAPSE)
    async with higgs.TTS(engine=engine) as voice:
        with pytest.raises(APIError) as raised:
            await spoken(voice.stream(conn_options=APIConnectOptions(max_retry=0, timeout=1)), "Hi.")
        assert raised.value.retryable


async def test_a_silent_engine_is_given_up_at_the_deadline() -> None:
    never = asyncio.Event()
    engine = FakeSynthesizer(pace=lambda _, __: never.wait())
    async with higgs.TTS(engine=engine) as voice:
        began = asyncio.get_running_loop().time()
        with pytest.raises(APITimeoutError):
            await spoken(voice.stream(conn_options=APIConnectOptions(max_retry=0, timeout=0.3)), "Hello.")
        assert 0.25 < asyncio.get_running_loop().time() - began < 3.0
        with pytest.raises(APITimeoutError):
            async with voice.synthesize("Hello.", conn_options=APIConnectOptions(max_retry=0, timeout=0.3)) as chunked:
                await chunked.collect()
        never.set()


async def test_a_slow_llm_is_no_timeout() -> None:
    async with higgs.TTS(engine=FakeSynthesizer()) as voice:
        async with voice.stream(conn_options=APIConnectOptions(max_retry=0, timeout=0.1)) as stream:
            stream.push_text("The first sentence is here. ")
            await anext(stream)
            await asyncio.sleep(0.35)
            stream.push_text("The second came late.")
            stream.end_input()
            assert [event.is_final async for event in stream][-1]


# Options


async def test_update_options_holds_from_the_next_stream_on() -> None:
    engine = FakeSynthesizer()
    async with higgs.TTS(engine=engine, voice="feminine; warm") as voice:
        await spoken(voice.stream(conn_options=CONN), "One.")
        voice.update_options(voice="masculine; old")
        await spoken(voice.stream(conn_options=CONN), "Two.")
        voice.update_options(scene="A church.", context="keep")
        await spoken(voice.stream(conn_options=CONN), "Three.")
        voice.update_options(sampling=higgs.Sampling(temperature=0.1, seed=4))
        await spoken(voice.stream(conn_options=CONN), "Four.")
    one, two, three, four = engine.requests
    assert one.context.voice.speakers == ("SPEAKER0: feminine; warm",)
    assert two.context.voice.speakers == ("SPEAKER0: masculine; old",)
    assert not two.context.exchanges
    assert three.context.voice.scene == "A church."
    assert three.context.voice.speakers == ("SPEAKER0: masculine; old",)
    assert len(three.context.exchanges) == 1
    assert four.sampling.temperature == 0.1
    assert four.context.voice.scene == "A church."


async def test_prewarm_makes_the_voice_ready() -> None:
    engine = FakeSynthesizer()
    async with higgs.TTS(engine=engine, voice=Voice.create(scene="Here.")) as voice:
        voice.prewarm()
        await until(lambda: bool(engine.prepared))
        assert engine.prepared[0].voice.scene == "Here."


def test_prewarm_without_a_loop_is_no_error() -> None:
    higgs.TTS(engine=FakeSynthesizer()).prewarm()


# A server


async def test_engines_are_shared_by_name_and_the_line_is_made_again() -> None:
    engine = FakeSynthesizer(frames_per_char=0.5)
    async with Server(engine, ServerSettings(port=0, token="open sesame")) as server, Proxy(server.port) as proxy:
        one = higgs.TTS(model=proxy.url, token="open sesame")
        two = higgs.TTS(model=proxy.url, token="open sesame", voice="deep; calm")
        assert one.model == proxy.url
        metrics: list[Any] = []
        one.on("metrics_collected", metrics.append)
        await spoken(one.stream(conn_options=CONN), "One.")
        await spoken(two.stream(conn_options=CONN), "Two.")
        assert proxy.connections == 1
        proxy.cut()
        await spoken(one.stream(conn_options=CONN), "Three.")
        assert proxy.connections == 2
        assert [item.connection_reused for item in metrics] == [False, True]
        await one.aclose()
        await two.aclose()
        await until(lambda: not server.hub.clients)
    assert not engine._locks


async def test_a_wrong_token_is_not_tried_again() -> None:
    async with Server(FakeSynthesizer(), ServerSettings(port=0, token="open sesame")) as server:
        voice = higgs.TTS(model=server.url)
        errors: list[tts.TTSError] = []
        voice.on("error", errors.append)
        with pytest.raises(APIStatusError, match="token"):
            await spoken(voice.stream(conn_options=CONN), "Hi.")
        assert len(errors) == 1
        await voice.aclose()


async def test_load_fnc_is_the_servers_load() -> None:
    async with Server(FakeSynthesizer(), ServerSettings(port=0, max_sessions=4)) as server:
        load = higgs.EngineLoad(server.url)
        assert await asyncio.to_thread(load) == 0.0
        voice = higgs.TTS(model=server.url)
        await spoken(voice.stream(conn_options=CONN), "Hi.")
        assert await asyncio.to_thread(load._ask) == 0.25
        began = asyncio.get_running_loop().time()
        load()  # from the loop's own thread: it does not wait
        assert asyncio.get_running_loop().time() - began < 0.05
        await voice.aclose()
        url = server.url
    assert await asyncio.to_thread(higgs.EngineLoad(url)) == 1.0
    with pytest.raises(SettingsError):
        higgs.EngineLoad("nano")


def test_the_plugin_is_registered_and_brings_no_torch() -> None:
    code = """
import sys
from livekit.agents import Plugin
from livekit.plugins import higgs
assert [p for p in Plugin.registered_plugins if p.package == "livekit.plugins.higgs"]
assert higgs.TTS().provider == "higgs-voice"
assert not {"torch", "transformers"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
