"""Log lines with a call id and no words, and the spans of a turn."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from higgs_voice import PcmChunk, SessionSettings, VoiceSession, telemetry
from higgs_voice.backends.fake import FakeSynthesizer
from higgs_voice.backends.remote import RemoteSynthesizer
from higgs_voice.conversation.synthesizer import FinishReason, SpeakRequest
from higgs_voice.errors import EngineDiedError, SettingsError
from higgs_voice.server.app import Server, ServerSettings

TURN = "Hello there, my friend. Your password is xyzzy, keep it. And here comes a third one."


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """The JSON lines of this package."""
    ours = logging.getLogger("higgs_voice")
    handlers, level, propagate = ours.handlers[:], ours.level, ours.propagate
    stream = io.StringIO()
    telemetry.configure("json", level=logging.DEBUG, stream=stream)
    yield stream
    ours.handlers, ours.propagate = handlers, propagate
    ours.setLevel(level)


def lines(log: io.StringIO, event: str | None = None) -> list[dict[str, object]]:
    found = [json.loads(line) for line in log.getvalue().splitlines()]
    return [line for line in found if event in (None, line.get("event"))]


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """What the SDK exports, in a provider of this test's own."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    return exporter


def named(exporter: InMemorySpanExporter, name: str) -> list[ReadableSpan]:
    return [span for span in exporter.get_finished_spans() if span.name == f"higgs_voice.{name}"]


async def call(text: str = TURN, *, script: object = None, **settings: object) -> VoiceSession:
    """A turn, heard for 0.5 s."""
    engine = FakeSynthesizer(script=script)  # type: ignore[arg-type]
    session = VoiceSession(engine, settings=SessionSettings(**settings))
    async with session:
        speech = session.speak()
        for token in text.split(" "):
            speech.feed(token + " ")
        speech.end()
        async for _ in speech:
            pass
        session.settle(speech.id, 0.5)
    return session


# Logs


async def test_every_line_of_a_call_has_its_id_and_what_happened(log: io.StringIO) -> None:
    await call(call_id="CA123")
    assert [line["event"] for line in lines(log)] == [
        "session started",
        "chunk spoken",
        "chunk spoken",
        "chunk spoken",
        "turn spoken",
        "turn heard",
        "session closed",
    ]
    assert {line["call_id"] for line in lines(log)} == {"CA123"}
    chunk = lines(log, "chunk spoken")[1]
    assert chunk["level"] == "info"
    assert chunk["logger"] == "higgs_voice.session"
    assert chunk["chunk"] == 1
    assert chunk["reason"] == "eos"
    assert chunk["exchanges"] == 1
    assert float(str(chunk["audio_s"])) > 1.0
    assert {"ttfa_s", "rtf", "speech", "time"} <= set(chunk)
    heard = lines(log, "turn heard")[0]
    assert heard["heard_s"] == 0.5
    assert float(str(heard["audio_s"])) > 3.0
    assert heard["interrupted"] is True


async def test_what_was_said_is_in_no_line_unless_asked_for(log: io.StringIO) -> None:
    def script(request: SpeakRequest) -> FinishReason | None:  # its error holds the text
        return FinishReason.RUNAWAY if "xyzzy" in request.text else None

    await call(script=script)
    assert lines(log)
    assert lines(log, "chunk spoken")[1]["error"] == "RunawayError"
    assert lines(log, "chunk spoken")[1]["level"] == "warning"
    for word in TURN.replace(".", "").replace(",", "").split():
        if len(word) > 3:
            assert word not in log.getvalue()
    await call(log_text=True)
    assert "xyzzy" in log.getvalue()


async def test_a_turn_that_fails_says_which_error(log: io.StringIO) -> None:
    def script(request: SpeakRequest) -> BaseException:
        return EngineDiedError(f"it broke at {request.text}")

    with pytest.raises(EngineDiedError):
        await call(script=script)
    turn = lines(log, "turn spoken")[0]
    assert turn["level"] == "error"
    assert turn["error"] == "EngineDiedError"
    assert "xyzzy" not in log.getvalue()


async def test_a_call_without_an_id_has_that_of_its_session(log: io.StringIO) -> None:
    session = await call()
    assert {line["call_id"] for line in lines(log)} == {session.id}


async def test_the_call_id_reaches_the_engine_in_the_sessions_id() -> None:
    """What crosses the wire is the session's id: it names the call, and is another one for every session."""
    engine = FakeSynthesizer()
    settings = SessionSettings(call_id="CA123")
    for _ in range(2):
        async with VoiceSession(engine, settings=settings) as session:
            await session.speak("Hello there.").collect()
    ids = [request.session_id for request in engine.requests]
    assert ids[0] != ids[1]
    assert [telemetry.call_of(item) for item in ids] == ["CA123", "CA123"]
    assert telemetry.call_of("0123abcd") == "0123abcd"
    longest = VoiceSession(engine, settings=SessionSettings(call_id="x" * 80))
    assert len(f"{longest.id}/1000000/1000") <= 128  # the wire's names


def test_a_call_id_that_a_log_cannot_carry_is_refused() -> None:
    for bad in ("", "a b", "a~b", "x" * 81, "a\nb"):
        with pytest.raises(SettingsError, match="call_id"):
            SessionSettings(call_id=bad)


def test_lines_of_others_and_tracebacks_are_json_too() -> None:
    try:
        raise ValueError("no")
    except ValueError:
        record = logging.LogRecord("uvicorn", logging.ERROR, "f.py", 1, "it %s", ("broke",), sys.exc_info())
    line = json.loads(telemetry.JsonFormatter().format(record))
    assert line["message"] == "it broke"
    assert line["logger"] == "uvicorn"
    assert "ValueError: no" in line["exception"]


def test_a_text_line_shows_its_fields() -> None:
    stream = io.StringIO()
    ours = logging.getLogger("higgs_voice")
    handlers, level, propagate = ours.handlers[:], ours.level, ours.propagate
    try:
        telemetry.configure("text", stream=stream)
        log = logging.getLogger("higgs_voice.test")
        telemetry.event(log, "chunk spoken", call_id="CA1", audio_s=1.23456, reason="two words", error=None)
        telemetry.event(log, "unseen", level=logging.DEBUG)
    finally:
        ours.handlers, ours.propagate = handlers, propagate
        ours.setLevel(level)
    (line,) = stream.getvalue().splitlines()
    assert line.endswith('higgs_voice.test: chunk spoken call_id=CA1 audio_s=1.2346 reason="two words"')


# Spans


async def test_a_turn_is_a_tree_of_spans_under_the_frameworks(spans: InMemorySpanExporter) -> None:
    with trace.get_tracer("framework").start_as_current_span("tts") as outer:
        session = await call(call_id="CA123")
    (turn,) = named(spans, "turn")
    assert turn.parent is not None
    assert turn.parent.span_id == outer.get_span_context().span_id
    children = {
        span.name: span
        for span in spans.get_finished_spans()
        if span.parent and span.parent.span_id == turn.context.span_id
    }
    assert set(children) == {"higgs_voice.text", "higgs_voice.chunk", "higgs_voice.playout"}
    chunks = named(spans, "chunk")
    assert [span.attributes["higgs_voice.chunk"] for span in chunks if span.attributes] == [0, 1, 2]
    firsts = named(spans, "first_pcm")
    assert [span.parent.span_id for span in firsts if span.parent] == [span.context.span_id for span in chunks]
    (text,), (playout,) = named(spans, "text"), named(spans, "playout")
    # token -> chunk -> first PCM -> playout, in this order
    order = [text.start_time, text.end_time, chunks[0].start_time, firsts[0].end_time, playout.start_time]
    assert order == sorted(order)  # type: ignore[type-var]
    assert all(
        span.attributes and span.attributes["higgs_voice.call_id"] == "CA123"
        for span in spans.get_finished_spans()[:-1]
    )
    assert playout.attributes is not None
    assert playout.attributes["higgs_voice.heard_s"] == 0.5
    assert turn.attributes is not None
    assert turn.attributes["higgs_voice.chunks"] == 3
    assert session.call_id == "CA123"


async def test_spans_hold_no_words_unless_asked_for(spans: InMemorySpanExporter) -> None:
    def script(request: SpeakRequest) -> FinishReason | None:
        return FinishReason.RUNAWAY if "xyzzy" in request.text else None

    await call(script=script)
    assert all("xyzzy" not in span.to_json() for span in spans.get_finished_spans())
    failed = named(spans, "chunk")[1]
    assert failed.attributes is not None
    assert failed.attributes["error.type"] == "RunawayError"
    assert not failed.status.is_ok
    await call(log_text=True)
    assert any("xyzzy" in span.to_json() for span in spans.get_finished_spans())


async def test_an_interrupted_turn_ends_all_its_spans(spans: InMemorySpanExporter) -> None:
    engine = FakeSynthesizer()
    async with VoiceSession(engine) as session:
        speech = session.speak(TURN)
        async for item in speech:
            if isinstance(item, PcmChunk):
                speech.stop()
        assert not named(spans, "turn")  # what was heard is not known yet
        session.settle(speech.id, 0.1)
        await asyncio.sleep(0.01)
    (turn,) = named(spans, "turn")
    assert turn.attributes is not None
    assert turn.attributes["higgs_voice.interrupted"] is True
    assert len(named(spans, "chunk")) == len(named(spans, "first_pcm")) == 1
    assert len(named(spans, "playout")) == 1


async def test_a_turn_that_is_generated_before_it_is_played_waits_for_its_playout(spans: InMemorySpanExporter) -> None:
    async with VoiceSession(FakeSynthesizer()) as session:
        speech = session.speak("Hello there.")
        while not speech.finished:
            await asyncio.sleep(0)
        assert not named(spans, "turn")
        await speech.collect()
        session.settle(speech.id, 1e9)
        assert len(named(spans, "turn")) == 1
        assert len(named(spans, "playout")) == 1


async def test_a_session_that_closes_ends_the_spans_it_has_open(spans: InMemorySpanExporter) -> None:
    async with VoiceSession(FakeSynthesizer()) as session:
        await session.speak("Hello there.").collect()
        session.speak()
        await asyncio.sleep(0)
    assert len(named(spans, "turn")) == 2


async def test_a_turn_without_opentelemetry_is_spoken_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:

    telemetry.load_tracing.cache_clear()
    monkeypatch.setitem(sys.modules, "opentelemetry.trace", None)
    try:
        assert telemetry.load_tracing() is None
        await call()
    finally:
        telemetry.load_tracing.cache_clear()


# The server


async def test_a_servers_lines_carry_the_calls_id_across_the_wire(log: io.StringIO) -> None:
    async with Server(FakeSynthesizer(), ServerSettings(port=0)) as server:
        remote = RemoteSynthesizer(server.url)
        async with VoiceSession(remote, settings=SessionSettings(call_id="CA123")) as session:
            await session.speak(TURN).collect()
        await remote.aclose()
    served = lines(log, "chunk served")
    assert [line["call_id"] for line in served] == ["CA123"] * 3
    assert all(line["reason"] == "eos" and float(str(line["first_pcm_s"])) >= 0 for line in served)
    assert lines(log, "ready")
    assert lines(log, "client connected")
    assert "xyzzy" not in log.getvalue()


def test_the_command_writes_json_lines_and_nothing_else() -> None:
    """A server process from start to end: every line of its standard error is an object."""
    command = [
        sys.executable,
        "-m",
        "higgs_voice.cli",
        "serve",
        "--model",
        "fake",
        "--port",
        "0",
        "--log-format",
        "json",
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        ready = json.loads(process.stderr.readline())
        process.send_signal(signal.SIGTERM)
        rest = process.stderr.read().splitlines()
    assert ready["event"] == "ready"
    assert ready["url"].startswith("ws://127.0.0.1:")
    assert [json.loads(line)["event"] for line in rest] == ["draining", "stopped"]
    assert process.returncode == 0
