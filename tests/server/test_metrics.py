"""What a server counts: for an operator, each figure means what its name says."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest

from higgs_voice import wire
from higgs_voice.backends.fake import FakeSynthesizer
from higgs_voice.conversation.synthesizer import FinishReason, SpeakRequest
from higgs_voice.errors import EngineBusyError, EngineError
from higgs_voice.server import hub as hub_module
from higgs_voice.server.hub import Client, Hub
from higgs_voice.server.metrics import Metrics
from higgs_voice.server.settings import ServerSettings
from tests.backends.conformance import LONG
from tests.server.proxy import until
from tests.server.test_app import http, line, refusal, serving
from tests.server.test_stops import speak

SECOND = 24_000


class Paper:
    """A connection that keeps what it is sent."""

    def __init__(self) -> None:
        self.sent: list[str | bytes] = []

    def send(self, data: str | bytes) -> None:
        self.sent.append(data)

    def close(self, code: int, reason: str) -> None: ...


class House:
    """A hub with one client on paper, and a clock that a test turns."""

    def __init__(self, engine: FakeSynthesizer, settings: ServerSettings | None = None) -> None:
        self.now = 0.0
        self.paper = Paper()
        self.hub = Hub(engine, settings or ServerSettings(), Metrics(), clock=lambda: self.now)
        self.client: Client = self.hub.join(wire.Hello(version=wire.VERSION, client="0" * 32), self.paper)

    def value(self, name: str, **labels: str) -> float:
        return self.hub.metrics.registry.get_sample_value(f"higgs_voice_{name}", labels) or 0.0

    def sounds(self) -> list[wire.AudioFrame]:
        frames = [wire.unpack(item) for item in self.paper.sent if isinstance(item, bytes)]
        return [frame for frame in frames if isinstance(frame, wire.AudioFrame)]

    def speak(self, **more: Any) -> None:
        self.client.receive(wire.parse_client(speak(1, **more)))

    def take(self, samples: int) -> None:
        """The listener has taken so much, of all that was sent."""
        self.client.receive(wire.Ack(stream=1, seq=self.sounds()[-1].seq + 1, samples=samples))

    async def settle(self) -> None:
        for _ in range(200):
            await asyncio.sleep(0)

    async def close(self) -> None:
        self.client.receive(wire.CloseSession(session="s"))
        await until(lambda: not self.client.tasks)


async def test_a_listener_that_pauses_is_no_underrun() -> None:
    house = House(FakeSynthesizer(frames_per_char=2))
    house.speak(window=SECOND)
    await house.settle()
    house.now = 20.0  # nothing was taken for so long
    house.take(SECOND // 2)
    await house.settle()
    house.take(SECOND)
    await house.settle()
    assert len(house.sounds()) > 9  # it went on: 0.2 s a piece, and more than 1.8 s
    assert house.value("underruns_total") == 0
    await house.close()


async def test_sound_that_comes_late_after_a_pause_is_one() -> None:
    gate = asyncio.Semaphore(6)
    house = House(FakeSynthesizer(frames_per_char=2, pace=lambda _, __: gate.acquire()))
    house.speak(window=SECOND)
    await house.settle()
    house.now = 20.0
    house.take(SECOND // 2)  # half a second is left to play
    await house.settle()
    house.now = 20.9
    gate.release()
    await house.settle()
    assert house.value("underruns_total") == 1
    gate.release()
    await house.close()


async def test_a_stop_of_what_was_made_and_not_taken_is_an_interruption() -> None:
    house = House(FakeSynthesizer())
    house.speak(text="Made before anybody listens.")
    await until(lambda: house.hub.streams == 0)
    house.client.receive(wire.Stop(stream=1))
    house.client.receive(wire.Stop(stream=1))
    assert house.value("interruptions_total") == 1
    assert house.value("chunks_total", reason="eos") == 1
    assert not house.client.streams


async def test_a_chunk_whose_client_is_gone_for_good_has_ended_too() -> None:
    house = House(FakeSynthesizer(frames_per_char=2))
    house.speak(window=SECOND)
    await house.settle()
    house.hub.leave(house.client, house.paper, for_good=True)
    await until(lambda: not house.client.tasks)
    assert sum(house.value("chunks_total", reason=reason) for reason in ("stopped", "eos", "error")) == 1


async def test_a_chunk_that_was_never_begun_has_ended_too() -> None:
    house = House(FakeSynthesizer())
    house.speak()
    house.hub.leave(house.client, house.paper, for_good=True)
    await house.settle()
    assert house.value("chunks_total", reason="stopped") == 1
    assert house.value("interruptions_total") == 1


async def test_a_last_ack_that_was_lost_with_the_line_is_no_interruption() -> None:
    house = House(FakeSynthesizer())
    house.speak(text="Heard to its end.")
    await until(lambda: house.hub.streams == 0)
    hello = wire.Hello(version=wire.VERSION, client="0" * 32, server=house.hub.id, sessions=("s",))
    house.hub.leave(house.client, house.paper, for_good=False)
    assert house.hub.join(hello, Paper()) is house.client
    assert not house.client.streams
    assert house.value("interruptions_total") == 0
    house.hub.end(house.client)


@pytest.mark.parametrize(
    ("steps", "how"),
    [
        (("speak", 0.9, "speak", 0.9, "close"), "no session was left"),
        (("speak", 0.9, "speak", 0.9, 0.2), "nothing was said for 1 s"),
        (("hold", 4.9, 0.2), "drain_s (5) was over"),
    ],
)
async def test_a_drain_waits_for_a_turn_whose_llm_pauses(steps: tuple[str | float, ...], how: str) -> None:
    held = asyncio.Semaphore(0)
    engine = FakeSynthesizer(pace=lambda asked, _: held.acquire() if asked.text == LONG else asyncio.sleep(0))
    house = House(engine, ServerSettings(quiet_s=1.0, drain_s=5.0))
    house.speak(text="The turn begins.")
    await until(lambda: house.hub.streams == 0)
    draining = asyncio.ensure_future(house.hub.drain())
    number = 1
    for step in steps:
        await asyncio.sleep(0.06)  # it looks every 50 ms
        assert not draining.done()
        match step:
            case "speak" | "hold":
                number += 1
                text = LONG if step == "hold" else "It goes on."
                house.client.receive(wire.parse_client(speak(number, text=text)))
                if step == "speak":
                    await until(lambda: house.hub.streams == 0)
            case "close":
                house.client.receive(wire.CloseSession(session="s"))
            case float():
                house.now += step
            case _:
                raise AssertionError(step)
    await asyncio.wait_for(draining, 2)
    assert house.hub.drained == how
    house.hub.end(house.client)


async def test_requests_over_http_count_too() -> None:
    async with serving() as server, http(server) as client:
        answer = await client.post("/v1/audio/speech", json={"input": "Hi there. And more.", "response_format": "pcm"})
        text = (await client.get("/metrics")).text
    chunks = len(server.hub.engine.requests)  # type: ignore[attr-defined]
    assert chunks >= 1
    assert f'higgs_voice_chunks_total{{reason="eos"}} {chunks}.0' in text
    assert f"higgs_voice_ttfa_seconds_count {chunks}.0" in text
    value = server.metrics.registry.get_sample_value("higgs_voice_audio_seconds_total")
    assert value == pytest.approx(len(answer.content) / 2 / SECOND, abs=0.5)  # pauses are not made
    assert "higgs_voice_interruptions_total 0.0" in text


async def test_who_hangs_up_over_http_has_interrupted() -> None:
    engine = FakeSynthesizer(frames_per_char=50, pace=lambda _, __: asyncio.sleep(0.005))
    async with serving(engine) as server, http(server) as client:
        async with client.stream("POST", "/v1/audio/speech", json={"input": LONG, "response_format": "pcm"}) as answer:
            await anext(answer.aiter_bytes())
        await until(lambda: not server.hub.http_streams)
        text = server.metrics.text().decode()
    assert "higgs_voice_interruptions_total 1.0" in text
    assert 'higgs_voice_chunks_total{reason="stopped"} 1.0' in text


async def test_a_request_that_the_engine_breaks_counts_as_an_error() -> None:
    def script(_: SpeakRequest) -> FinishReason | BaseException | None:
        return EngineError("it broke")

    async with serving(FakeSynthesizer(script=script)) as server, http(server) as client:
        assert (await client.post("/v1/audio/speech", json={"input": "Hi."})).status_code == 503
        assert 'higgs_voice_chunks_total{reason="error"} 1.0' in server.metrics.text().decode()


async def test_what_nobody_has_foreseen_has_the_shape_of_the_other_errors_and_counts() -> None:
    async with serving(FakeSynthesizer(script=lambda _: RuntimeError("a bug"))) as server, http(server) as client:
        answer = await client.post("/v1/audio/speech", json={"input": "Hi."})
        assert answer.status_code == 500
        assert answer.json()["error"] == {"message": "the server broke: RuntimeError", "type": "server_error"}
        assert 'higgs_voice_chunks_total{reason="error"} 1.0' in server.metrics.text().decode()


async def test_an_engine_that_is_full_counts_as_a_refusal() -> None:
    async with serving(FakeSynthesizer(script=lambda _: EngineBusyError("full"))) as server, http(server) as client:
        assert (await client.post("/v1/audio/speech", json={"input": "Hi."})).status_code == 429
        assert 'higgs_voice_refusals_total{why="capacity"} 1.0' in server.metrics.text().decode()


async def test_every_refusal_is_counted_by_its_reason() -> None:
    async with serving(max_text=20) as server, http(server) as client:
        for body in ({}, {"input": "x" * 21}, {"input": " "}, {"input": "Hi.", "voice": "nobody"}):
            assert (await client.post("/v1/audio/speech", json=body)).status_code == 400
        assert (await client.post("/v1/audio/speech", content=b"x" * 300_000)).status_code == 413
        assert (await client.get("/v1/audio/speech")).status_code == 405
        for path in ("/", "/health", "/docs", "/v1/nothing", "/.env", wire.PATH):
            assert (await client.get(path)).status_code == 404  # nothing was asked of this server
        headers = {"Content-Type": "application/json"}
        assert (await client.post("/v1/audio/speech", content=b"\xff", headers=headers)).status_code == 400
        async with line(server) as socket:
            await socket.send("no message")
            await refusal(socket)
        server.hub.draining = True
        assert (await client.post("/v1/audio/speech", json={"input": "Hi."})).status_code == 503
        text = server.metrics.text().decode()
    assert 'higgs_voice_refusals_total{why="request"} 7.0' in text
    assert 'higgs_voice_refusals_total{why="protocol"} 1.0' in text
    assert 'higgs_voice_refusals_total{why="draining"} 1.0' in text


async def test_every_refusal_leaves_a_line_without_words(caplog: pytest.LogCaptureFixture) -> None:
    gate = asyncio.Semaphore(1)
    engine = FakeSynthesizer(pace=lambda _, __: gate.acquire())
    limits: dict[str, Any] = {
        "max_text": 200,
        "max_http_streams": 1,
        "max_requests_per_minute": 1,
        "max_connections": 1,
    }
    spoken = {"input": LONG, "response_format": "pcm"}
    async with serving(engine, token="open sesame", **limits) as server, http(server) as stranger:
        async with http(server, headers={"Authorization": "Bearer open sesame"}) as client:

            async def refused(status: int, **body: str) -> None:
                assert (await client.post("/v1/audio/speech", json=body)).status_code == status

            with caplog.at_level("WARNING", logger="higgs_voice.server"):
                assert (await stranger.get("/v1/voices")).status_code == 401
                for path in ("/", "/health", "/docs"):
                    assert (await stranger.get(path)).status_code == 404
                await refused(400, input="xyzzy " * 100)
                await refused(400, inputs="xyzzy")
                async with client.stream("POST", "/v1/audio/speech", json=spoken) as answer:
                    pieces = answer.aiter_bytes()
                    await anext(pieces)
                    await refused(429, input="xyzzy")
                await until(lambda: not server.hub.http_streams)
                await refused(429, input="xyzzy")
                server.hub.draining = True
                await refused(503, input="xyzzy")
    lines = [f"why={why} path=/v1/audio/speech" for why in ("request", "request", "http", "rate", "draining")]
    expected = [f"refused client=127.0.0.1 {line}" for line in ("why=token path=/v1/voices", *lines)]
    assert caplog.messages == expected


async def test_every_reason_of_a_refusal_is_explained() -> None:
    """By the page that operators read, which names no others."""
    sources = "".join(path.read_text() for path in Path(hub_module.__file__).parent.glob("*.py"))
    given = re.findall(r'(?:_refused\(\w+, |_refuse\(|refusals\.labels\()"(\w+)"', sources)
    page = (Path(__file__).parents[2] / "docs" / "operating.md").read_text()
    table = page.partition("| `why` of `refused` |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == {*given, "loading"}
