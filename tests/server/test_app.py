"""HTTP, the door, and what a server does with those who do not keep to the protocol."""

from __future__ import annotations

import asyncio
import io
import json
import re
import socket
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
import soundfile
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from higgs_voice import Reference, Voice, VoiceSession, wire
from higgs_voice.audio import write_wav
from higgs_voice.backends.fake import FakeSynthesizer
from higgs_voice.backends.remote import RemoteSynthesizer
from higgs_voice.conversation.presets import Presets
from higgs_voice.conversation.synthesizer import FinishReason, SpeakRequest
from higgs_voice.errors import EngineBusyError, RefusedError, SettingsError, VoiceError, VoiceFileError
from higgs_voice.server.app import Server, ServerSettings
from tests.backends.conformance import LONG, collect, request
from tests.server.proxy import until


@asynccontextmanager
async def serving(engine: FakeSynthesizer | None = None, **settings: object) -> AsyncGenerator[Server]:
    async with Server(engine or FakeSynthesizer(), ServerSettings(port=0, **settings)) as server:
        yield server


@asynccontextmanager
async def http(server: Server, **options: object) -> AsyncGenerator[httpx.AsyncClient]:
    url = server.url.replace("ws://", "http://")
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=20, **options) as client:  # type: ignore[arg-type]
        yield client


# The door


def test_other_hosts_need_a_token() -> None:
    with pytest.raises(SettingsError, match="token"):
        ServerSettings(host="0.0.0.0")
    assert ServerSettings(host="0.0.0.0", token="long enough").token
    with pytest.raises(
        SettingsError, match=r"^ServerSettings: host '0.0.0.0' is reached .* HIGGS_VOICE_TOKEN\), or use 127.0.0.1$"
    ):
        ServerSettings(host="0.0.0.0")
    with pytest.raises(SettingsError, match=r"^ServerSettings.token: String should have at least 8 characters$"):
        ServerSettings(token="sec-1")
    assert "long enough" not in repr(ServerSettings(token="long enough"))
    assert ServerSettings().host == "127.0.0.1"


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8765", 200),
        ("localhost", 200),
        ("[::1]:8765", 200),
        ("[::1]", 200),
        ("::1", 403),
        ("evil.example", 403),
        ("evil.example:8765", 403),
        ("[::1", 403),
        ("evil.example@127.0.0.1", 403),
        ("127.0.0.1/evil.example", 403),
        ("[::1].evil.example", 403),
        ("evil[::1]", 403),
        ("localhost:evil", 403),
        ("", 403),
    ],
)
async def test_without_a_token_it_goes_by_this_machines_names_only(host: str, status: int) -> None:
    async with serving() as server, http(server) as client:
        assert (await client.get("/v1/voices", headers={"Host": host})).status_code == status


async def test_what_is_not_there_has_the_shape_of_the_other_errors() -> None:
    async with serving() as server, http(server) as client:
        for method, path, status in (
            ("GET", "/v1/nothing", 404),
            ("GET", "/v1/audio/speech", 405),
            ("POST", "/v1/voices", 405),
        ):
            answer = await client.request(method, path, content=b"{}" if method == "POST" else None)
            assert answer.status_code == status
            assert f"{method} {path}" in answer.json()["error"]["message"]
            assert (status == 405) == ("allow" in answer.headers)
        headers = {"Content-Type": "application/json"}
        answer = await client.post("/v1/audio/speech", content=b'{"input": "\xff"}', headers=headers)
        assert answer.status_code == 400
        assert answer.json()["error"]["message"]


async def test_the_token_is_asked_for_everywhere_but_health() -> None:
    async with serving(token="open sesame") as server, http(server) as client:
        for path in ("/v1/voices", "/metrics", "/v1/load"):
            assert (await client.get(path)).status_code == 401
            assert (await client.get(path, headers={"Authorization": "Bearer open simsim"})).status_code == 401
            assert (await client.get(path, headers={"Authorization": "Bearer open sesame"})).status_code == 200
        assert (await client.post("/v1/audio/speech", json={"input": "Hi."})).status_code == 401
        assert (await client.get("/healthz")).status_code == 200
        assert (await client.get("/readyz")).status_code == 200


async def test_a_token_from_a_file_with_a_line_feed(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(token="open-sesame\n") as server, http(server) as client:
        assert (await client.get("/v1/voices", headers={"Authorization": "Bearer open-sesame"})).status_code == 200
        engine = RemoteSynthesizer(server.url, token="open-sesame\n")
        async with aclosing(engine):
            await engine.start()
        with caplog.at_level("WARNING", logger="higgs_voice.server"):
            await client.get("/v1/voices", headers={"Authorization": "Bearer open-simsim"})
        assert [record.getMessage() for record in caplog.records] == [
            "refused client=127.0.0.1 why=token path=/v1/voices"
        ]
        stranger = RemoteSynthesizer(server.url, token="open-simsim")
        with pytest.raises(RefusedError, match=r"refuses the connection: a bearer token is needed: [^{}]*$"):
            await stranger.start()
        await stranger.aclose()
    with pytest.raises(SettingsError, match="ASCII"):
        ServerSettings(token="schlüssel-12")


async def test_a_description_counts_like_a_text() -> None:
    async with serving(max_text=40) as server, http(server) as client:
        body = {"input": "Hello there.", "instructions": "warm voice, " * 3}
        answer = await client.post("/v1/audio/speech", json=body)
        assert answer.status_code == 400
        assert "the input and the instructions have 48 characters" in answer.json()["error"]["message"]
        engine = RemoteSynthesizer(server.url)
        async with aclosing(engine):
            await engine.start()
            asked = request(text="Hello.")
            voice = replace(asked.context.voice, speakers=("SPEAKER0: " + "warm " * 20,))
            with pytest.raises(RefusedError, match="described in"):
                await collect(engine, replace(asked, context=replace(asked.context, voice=voice)))
            assert await collect(engine, request(text="Hello."))


async def test_web_pages_do_not_get_in() -> None:
    async with serving() as server, http(server) as client:
        assert (await client.get("/v1/voices", headers={"Origin": "http://evil.example"})).status_code == 403
        assert (await client.get("/v1/voices", headers={"Host": "evil.example"})).status_code == 403
        with pytest.raises(InvalidStatus, match="403"):
            await connect(
                server.url + wire.PATH, origin="http://evil.example", subprotocols=[wire.SUBPROTOCOL], proxy=None
            )


async def test_a_port_that_is_taken_is_one_sentence() -> None:
    async with serving() as server:
        with pytest.raises(SettingsError, match="choose another port"):
            await Server(FakeSynthesizer(), ServerSettings(port=server.port)).start()


async def test_readiness_follows_the_engine() -> None:
    loaded = asyncio.Event()

    class Slow(FakeSynthesizer):
        async def start(self) -> None:
            await loaded.wait()

    server = Server(Slow(), ServerSettings(port=0))
    starting = asyncio.ensure_future(server.start())
    await asyncio.sleep(0)
    async with http(server) as client:
        assert (await client.get("/healthz")).status_code == 200
        assert (await client.get("/readyz")).status_code == 503
        assert (await client.get("/v1/load")).json()["load"] == 1.0
        early = await client.post("/v1/audio/speech", json={"input": "Hi."})
        assert (await client.get("/v1/models")).status_code == 503
        assert (early.status_code, early.headers["retry-after"]) == (503, "2")
        assert "loading" in early.json()["error"]["message"]
        loaded.set()
        await starting
        assert (await client.get("/readyz")).status_code == 200
        assert (await client.get("/v1/load")).json() == {"load": 0.0, "sessions": 0, "streams": 0}
    await server.aclose()


# Speech over HTTP


@pytest.mark.parametrize("kind", ["pcm", "wav", "mp3", "opus"])
async def test_every_format_holds_the_same_speech(kind: str) -> None:
    async with serving() as server, http(server) as client:
        plain = await client.post("/v1/audio/speech", json={"input": LONG, "response_format": "pcm", "seed": 1})
        answer = await client.post("/v1/audio/speech", json={"input": LONG, "response_format": kind, "seed": 1})
    assert answer.status_code == 200
    expected = np.frombuffer(plain.content, dtype="<i2")
    if kind == "pcm":
        assert answer.content == plain.content
        return
    # A streamed file does not say how long it is: read to its end, and not by its header.
    data, rate = soundfile.read(io.BytesIO(answer.content), frames=10**6, dtype="int16")
    assert rate == (48000 if kind == "opus" and rate == 48000 else 24000)
    assert len(data) / rate == pytest.approx(len(expected) / 24000, abs=0.12)
    if kind == "wav":
        assert np.array_equal(data, expected)


async def test_speech_is_streamed_as_it_is_made() -> None:
    gate = asyncio.Semaphore(3)
    engine = FakeSynthesizer(pace=lambda _, __: gate.acquire())
    async with serving(engine) as server, http(server) as client:
        body = {"input": LONG, "response_format": "pcm"}
        async with client.stream("POST", "/v1/audio/speech", json=body) as answer:
            pieces = answer.aiter_bytes()
            first = await anext(pieces)
            assert first  # while the engine is held
            assert engine.active
            for _ in range(1000):
                gate.release()
            rest = b"".join([piece async for piece in pieces])
    assert len(rest) > len(first)


async def test_a_caller_who_hangs_up_stops_the_engine() -> None:
    engine = FakeSynthesizer(frames_per_char=50)
    async with serving(engine) as server, http(server) as client:
        body = {"input": LONG, "response_format": "pcm"}
        async with client.stream("POST", "/v1/audio/speech", json=body) as answer:
            await anext(answer.aiter_bytes())
        await until(lambda: not engine.active and not server.hub.http_streams)


async def test_a_caller_who_takes_nothing_is_hung_up_on() -> None:
    async with serving(FakeSynthesizer(frames_per_char=50), stall_s=0.3, max_http_streams=1) as server:
        body = json.dumps({"input": LONG * 20, "response_format": "pcm"}).encode()
        with socket.socket() as stalled:
            stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            stalled.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(stalled, ("127.0.0.1", server.port))
            head = f"POST /v1/audio/speech HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            await loop.sock_sendall(stalled, head.encode() + body)
            await until(lambda: server.hub.http_streams == 1)
            await until(lambda: server.hub.http_streams == 0)
            async with http(server) as client:
                assert (await client.post("/v1/audio/speech", json={"input": "Hi."})).status_code == 200


async def test_server_sent_events() -> None:
    async with serving() as server, http(server) as client:
        answer = await client.post(
            "/v1/audio/speech", json={"input": "Hi there.", "response_format": "pcm", "stream_format": "sse"}
        )
    events = [json.loads(line.removeprefix("data: ")) for line in answer.text.split("\n\n") if line]
    assert [event["type"] for event in events][-1] == "speech.audio.done"
    assert all(event["type"] == "speech.audio.delta" for event in events[:-1])


@pytest.mark.parametrize(
    ("body", "status", "match"),
    [
        ({}, 400, "input"),
        (["Hi."], 400, "body: Input should be a valid dictionary"),
        ({"input": ""}, 400, "input"),
        ({"input": "  "}, 400, "blank"),
        ({"input": "…"}, 400, "nothing that can be spoken"),
        ({"input": "x" * 101}, 400, "takes 100"),
        ({"input": "Hi.", "speed": 0.25}, 400, "speed is 0.25; this server speaks from 0.5 to 2"),
        ({"input": "Hi.", "speed": 4.0}, 400, "speed is 4"),
        ({"input": "Hi.", "speed": "fast"}, 400, "speed"),
        ({"input": "Hi.", "response_format": "aac"}, 400, "response_format"),
        ({"input": "Hi.", "voice": "../../etc/passwd"}, 400, "has no voice"),
        ({"input": "Hi.", "voice": "nobody"}, 400, "has: ada, default"),
        ({"input": "Hi.", "extra": 1}, 400, "extra"),
    ],
)
async def test_what_cannot_be_served_is_refused_with_a_sentence(
    body: dict[str, object] | list[str], status: int, match: str
) -> None:
    async with serving(max_text=100) as server, http(server) as client:
        answer = await client.post("/v1/audio/speech", json=body)
    assert answer.status_code == status
    assert match in answer.json()["error"]["message"]


async def test_a_body_that_is_no_json_is_said_with_its_place() -> None:
    async with serving() as server, http(server) as client:
        headers = {"Content-Type": "application/json"}
        answer = await client.post("/v1/audio/speech", content=b'{"input": Hi}', headers=headers)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == "the body is no JSON: Expecting value (character 10)"


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (None, "the body is of no type"),
        ("application/x-www-form-urlencoded", "the body is application/x-www-form-urlencoded"),
        ("text/plain; charset=utf-8", "the body is text/plain"),
    ],
)
async def test_a_body_that_is_not_called_json_is_told_what_to_send(kind: str | None, said: str) -> None:
    async with serving() as server, http(server) as client:
        headers = {"Content-Type": kind} if kind else {}
        answer = await client.post("/v1/audio/speech", content=b'{"input": "Hi."}', headers=headers)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == f"{said}; send Content-Type: application/json"


async def test_openais_client_finds_the_model_and_the_voices() -> None:
    openai = pytest.importorskip("openai")
    async with serving(token="open sesame") as server:
        url = server.url.replace("ws://", "http://") + "/v1"
        async with (
            httpx.AsyncClient(trust_env=False) as line,
            openai.AsyncOpenAI(base_url=url, api_key="open sesame", max_retries=0, http_client=line) as client,
        ):
            (model,) = (await client.models.list()).data
            assert (model.id, model.object, model.owned_by) == ("fake", "model", "higgs-voice")
            answer = await client.audio.speech.create(model=model.id, voice="ada", input="Hi.", response_format="pcm")
            assert len(answer.content) > 1000
            with pytest.raises(openai.BadRequestError, match="this server has no voice 'alloy'; it has: ada, default,"):
                await client.audio.speech.create(model=model.id, voice="alloy", input="Hi.")


@pytest.mark.parametrize("speed", [0.5, 1.6, 2.0])
async def test_speed_is_the_speech_rate(speed: float) -> None:
    async with serving() as server, http(server) as client:

        async def spoken_s(**more: float) -> float:
            body = {"input": "A sentence that is long enough to be measured.", "response_format": "pcm", **more}
            answer = await client.post("/v1/audio/speech", json=body)
            assert answer.status_code == 200
            return len(answer.content) / 48000

        assert await spoken_s(speed=speed) == pytest.approx(await spoken_s() / speed, rel=0.05)


async def test_a_server_without_libsonic_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "libsonic", None)
    async with serving() as server, http(server) as client:
        answer = await client.post("/v1/audio/speech", json={"input": "Hi.", "speed": 1.5})
        assert answer.status_code == 400
        assert answer.json()["error"]["message"] == (
            'speed is 1.5; this server takes only 1 until it has libsonic: pip install "higgs-voice[rate]"'
        )
        assert (await client.post("/v1/audio/speech", json={"input": "Hi.", "speed": 1})).status_code == 200


async def test_an_engine_that_fails_before_the_first_sound_has_a_status() -> None:
    def script(_: SpeakRequest) -> BaseException:
        return EngineBusyError("full")

    async with serving(FakeSynthesizer(script=script)) as server, http(server) as client:
        assert (await client.post("/v1/audio/speech", json={"input": "Hi."})).status_code == 429
        assert server.hub.http_streams == 0


async def test_requests_are_limited_at_once_and_by_the_minute() -> None:
    gate = asyncio.Semaphore(1)
    engine = FakeSynthesizer(pace=lambda _, __: gate.acquire())
    async with serving(engine, max_http_streams=1, max_requests_per_minute=20) as server, http(server) as client:
        body = {"input": LONG, "response_format": "pcm"}
        async with client.stream("POST", "/v1/audio/speech", json=body) as answer:
            pieces = answer.aiter_bytes()
            await anext(pieces)  # held: a generator that is thrown away closes the answer
            refused = await client.post("/v1/audio/speech", json=body)
            assert refused.status_code == 429
            assert "1 requests are being spoken" in refused.json()["error"]["message"]
        for _ in range(10000):
            gate.release()
        await until(lambda: not server.hub.http_streams)
        assert (await client.post("/v1/audio/speech", json=body)).status_code == 200
        refused = await client.post("/v1/audio/speech", json=body)
        assert refused.status_code == 429
        assert "20 requests a minute" in refused.json()["error"]["message"]


async def test_voices_are_the_operators(tmp_path: Path) -> None:
    tone = (0.3 * np.sin(np.arange(24000) * 0.05) * 32767).astype("<i2").tobytes()
    write_wav(tmp_path / "ann.wav", tone)
    (tmp_path / "ann.txt").write_text("What Ann says.")
    write_wav(tmp_path / "no_transcript.wav", tone)
    Voice.create(name="bob", speakers="old; slow", references=Reference("x", np.ones(24000, np.float32))).save(
        tmp_path / "bob.voice"
    )
    engine = FakeSynthesizer()
    async with serving(engine, voices=tmp_path) as server, http(server) as client:
        names = [item["id"] for item in (await client.get("/v1/voices")).json()["data"]]
        assert names == sorted(["ann", "bob", *Presets(None).names()])
        assert "ada" in names
        for voice in ("ann", "bob"):
            assert (await client.post("/v1/audio/speech", json={"input": "Hi.", "voice": voice})).status_code == 200
        assert (await client.post("/v1/audio/speech", json={"input": "Hi.", "instructions": "deep"})).status_code == 200
    ann, bob, described = engine.requests
    assert ann.context.voice.references[0].text == "What Ann says."
    assert bob.context.voice.speakers == ("SPEAKER0: old; slow",)
    assert described.context.voice.speakers == ("SPEAKER0: deep",)
    with pytest.raises(SettingsError, match="does not exist"):
        Server(engine, ServerSettings(voices=tmp_path / "nowhere"))


async def test_a_client_names_a_voice_of_the_server_and_gets_codes(tmp_path: Path) -> None:
    class Counting(FakeSynthesizer):
        encoded = 0

        async def encode(self, pcm: np.ndarray) -> np.ndarray:
            self.encoded += 1
            return await super().encode(pcm)

    sound = np.random.default_rng(1).normal(0, 0.1, 48000).astype(np.float32)
    Voice.create(scene="A hall.", references=Reference("What Ann says.", sound)).save(tmp_path / "ann.voice")
    engine = Counting()
    async with serving(engine, voices=tmp_path) as server:
        client = RemoteSynthesizer(server.url)
        voice = await client.voice("ann")
        (clip,) = voice.references
        assert (voice.name, voice.scene, clip.text, clip.codec) == ("ann", "A hall.", "What Ann says.", "fake")
        assert not len(clip.pcm)  # the operator's clip stays where it is
        assert clip.codes is not None
        assert clip.codes.shape == (8, 50)
        await client.voice("ann")
        async with VoiceSession(client, voice=voice) as session:
            await session.speak("Hello there.").collect()
        assert engine.encoded == 1
        assert np.array_equal(engine.requests[0].context.voice.references[0].codes, clip.codes)
        with pytest.raises(RefusedError, match="this server has no voice 'nobody'; it has: ada, ann"):
            await client.voice("nobody")
        with pytest.raises(VoiceError, match="cannot be the name"):
            await client.voice("../ann")
        await client.aclose()


async def test_a_voice_that_cannot_be_read_is_the_clients_error_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "bad.voice").write_bytes(b"no voice at all")
    async with serving(voices=tmp_path) as server, http(server) as web:
        client = RemoteSynthesizer(server.url)
        with pytest.raises(VoiceFileError, match="cannot be read"):
            await client.voice("bad")
        assert (await client.voice("ada")).speakers == ("feminine; american",)
        await client.aclose()
        answer = await web.post("/v1/audio/speech", json={"input": "Hi.", "voice": "bad"})
        assert (answer.status_code, "cannot be read" in answer.json()["error"]["message"]) == (400, True)


async def test_an_operators_voice_that_changes_is_read_again(tmp_path: Path) -> None:
    engine = FakeSynthesizer()
    async with serving(engine, voices=tmp_path) as server, http(server) as client:
        for scene in ("One.", "Another."):
            Voice.create(name="someone else", scene=scene).save(tmp_path / "ann.voice")
            assert (await client.post("/v1/audio/speech", json={"input": "Hi.", "voice": "ann"})).status_code == 200
        (tmp_path / "ann.voice").unlink()
        assert (await client.post("/v1/audio/speech", json={"input": "Hi.", "voice": "ann"})).status_code == 400
    assert [request.context.voice.scene for request in engine.requests] == ["One.", "Another."]


async def test_metrics_count() -> None:
    async with serving() as server, http(server) as client:
        remote = RemoteSynthesizer(server.url)
        await remote.start()
        await collect(remote, request())
        text = (await client.get("/metrics")).text
        await remote.aclose()
    assert "higgs_voice_ttfa_seconds_count 1.0" in text
    assert 'higgs_voice_chunks_total{reason="eos"} 1.0' in text
    assert "higgs_voice_sessions 1.0" in text
    for name in ("rtf", "queue", "underruns_total", "interruptions_total", "kv_bytes"):
        assert f"higgs_voice_{name}" in text


# The protocol's edges


@asynccontextmanager
async def line(server: Server, *, hello: bool = True) -> AsyncGenerator[ClientConnection]:
    async with connect(server.url + wire.PATH, subprotocols=[wire.SUBPROTOCOL], proxy=None) as socket:  # type: ignore[list-item]
        if hello:
            await socket.send(wire.dump(wire.Hello(version=wire.VERSION, client="0" * 32)))
            assert isinstance(wire.parse_server(str(await socket.recv())), wire.Welcome)
        yield socket


async def refusal(socket: ClientConnection) -> tuple[str, int]:
    """The sentence and the close code of a refused connection."""
    message = wire.parse_server(str(await asyncio.wait_for(socket.recv(), 5)))
    assert isinstance(message, wire.Refusal)
    with pytest.raises(ConnectionClosed) as closed:
        await socket.recv()
    assert closed.value.rcvd is not None
    return message.failure.message, closed.value.rcvd.code


@pytest.mark.parametrize(
    ("data", "match"),
    [
        ("not json", "JSON"),
        ('{"type": "nothing"}', "does not match"),
        ('{"type": "stop"}', "stream"),
        ('{"type": "stop", "stream": 1, "more": 2}', "Extra"),
        (b"", "kind None"),
        (b"\x09abc", "kind 9"),
        (b"\x02\x00", "cut short"),
        (wire.ExchangeFrame("x", np.full((8, 3), 1024, np.int16)).pack(), "outside 0…1023"),
        (wire.ExchangeFrame("x", np.full((8, 3), -1, np.int16)).pack(), "outside 0…1023"),
        (wire.ExchangeFrame("x", np.zeros((4, 3), np.int16)).pack(), r"\[4, 3\]"),
        (wire.ExchangeFrame("x", np.zeros((8, 9000), np.int16)).pack(), r"\[8, 9000\]"),
        (wire.ExchangeFrame("x", np.zeros((8, 3), np.int16)).pack() + b"!", "longer"),
        (wire.CodesFrame(1, np.full((8, 3), 5000, np.int16)).pack(), "outside"),
        (wire.SoundFrame(1, np.zeros(3, np.float32)).pack(), "none belongs"),
        (wire.dump(wire.Hello(version=1, client="0" * 32)), "none belongs"),
    ],
)
async def test_what_is_not_of_the_protocol_ends_the_line_with_a_sentence(data: str | bytes, match: str) -> None:
    async with serving() as server, line(server) as socket:
        await socket.send(data)
        message, code = await refusal(socket)
        assert code == wire.CLOSE_PROTOCOL
        assert re.search(match, message)
        await until(lambda: not server.hub.clients)


async def test_another_version_is_refused() -> None:
    async with serving() as server, line(server, hello=False) as socket:
        await socket.send(wire.dump(wire.Hello(version=2, client="0" * 32)))
        message, code = await refusal(socket)
        assert "version 1" in message
        assert code == wire.CLOSE_PROTOCOL


async def test_a_connection_begins_with_hello() -> None:
    async with serving() as server, line(server, hello=False) as socket:
        await socket.send(wire.dump(wire.Stop(stream=1)))
        assert "'hello'" in (await refusal(socket))[0]


async def test_small_messages_do_not_wait_for_the_last_ones_acknowledgement() -> None:
    async with serving() as server, line(server):
        (held,) = server._uvicorn.server_state.connections  # type: ignore[union-attr]  # pyright: ignore
        sock = held.transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_the_same_client_on_a_new_line_replaces_the_old_one() -> None:
    async with serving() as server, line(server) as old, line(server):
        with pytest.raises(ConnectionClosed) as closed:
            await old.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == wire.CLOSE_REPLACED
        assert len(server.hub.clients) == 1


async def test_a_drain_finishes_what_is_said_and_takes_nothing_new() -> None:
    gate = asyncio.Semaphore(1)
    engine = FakeSynthesizer(pace=lambda _, __: gate.acquire())
    async with serving(engine) as server, http(server) as client:
        remote = RemoteSynthesizer(server.url)
        await remote.start()
        speaking = asyncio.ensure_future(collect(remote, request(LONG)))
        await until(lambda: server.hub.streams == 1)
        draining = asyncio.ensure_future(server.drain())
        await until(lambda: server.hub.draining)
        assert (await client.get("/readyz")).status_code == 503
        assert (await client.get("/v1/load")).json()["load"] == 1.0
        assert (await client.post("/v1/audio/speech", json={"input": "Hi."})).status_code == 503
        with pytest.raises(EngineBusyError, match="shutting down"):
            await collect(remote, request(session="new"))
        assert not draining.done()
        for _ in range(1000):
            gate.release()
        events = await speaking
        assert events[-1].reason is FinishReason.EOS  # type: ignore[union-attr]
        await asyncio.wait_for(draining, 5)
        await remote.aclose()


async def test_a_client_without_a_session_keeps_no_place() -> None:
    async with serving(max_connections=1) as server:
        async with line(server) as socket:
            (held,) = server.hub.clients.values()
            socket.transport.abort()
            await until(lambda: not server.hub.clients)
        assert held.expiry is None
