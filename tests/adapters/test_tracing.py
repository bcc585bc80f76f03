"""Our spans hang under the framework's own."""

from __future__ import annotations

import pytest
from livekit.agents.telemetry import traces as livekit_traces
from livekit.plugins import higgs
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from higgs_voice import SessionSettings
from higgs_voice.adapters.pipecat import HiggsTTSService
from higgs_voice.backends.fake import FakeSynthesizer
from tests.adapters.livekit_kit import CONN
from tests.adapters.pipecat_kit import room

TEXT = "Good morning to you. How are you today?"


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(livekit_traces.tracer, "_tracer", provider.get_tracer("livekit-agents"))
    monkeypatch.setattr(trace, "get_tracer", lambda name, *_, **__: provider.get_tracer(name))
    return exporter


def above(exporter: InMemorySpanExporter, span: ReadableSpan) -> list[str]:
    """The names of the spans over a span, nearest first."""
    known = {item.context.span_id: item for item in exporter.get_finished_spans()}
    names: list[str] = []
    while span.parent is not None and span.parent.span_id in known:
        span = known[span.parent.span_id]
        names.append(span.name)
    return names


def turns(exporter: InMemorySpanExporter) -> list[ReadableSpan]:
    return [span for span in exporter.get_finished_spans() if span.name == "higgs_voice.turn"]


async def test_a_turn_hangs_under_pipecats_tts_span(spans: InMemorySpanExporter) -> None:
    tts = HiggsTTSService(engine=FakeSynthesizer(frames_per_char=0.5), session_settings=SessionSettings(call_id="CA1"))
    async with room(tts) as r:
        tts._tracing_enabled = True  # what PipelineParams' tracing switches on
        await r.say(TEXT)
        await r.until(lambda: bool(r.transcript()))
    (turn,) = turns(spans)
    assert above(spans, turn)[:1] == ["tts"]
    assert turn.attributes is not None
    assert turn.attributes["higgs_voice.call_id"] == "CA1"


async def test_a_turn_hangs_under_livekits_tts_request(spans: InMemorySpanExporter) -> None:
    async with higgs.TTS(engine=FakeSynthesizer()) as voice:
        stream = voice.stream(conn_options=CONN)
        stream.push_text(TEXT)
        stream.end_input()
        async with stream:
            async for _ in stream:
                pass
    (turn,) = turns(spans)
    assert above(spans, turn)[:1] == ["tts_request_run"]
