"""The dashboard against a real Prometheus: after some traffic every query of every panel has an answer.

Not collected by default; `make test-dashboard` runs it. It needs the program `prometheus`.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from higgs_voice import PcmChunk, VoiceSession
from higgs_voice.backends.fake import FakeSynthesizer
from higgs_voice.backends.remote import RemoteSynthesizer
from higgs_voice.server.app import Server, ServerSettings

ROOT = Path(__file__).resolve().parents[2]
TURN = "Hello there, my friend. This is the second sentence of mine. And here comes a third one."


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def configuration(server: Server) -> str:
    """The one that is shipped, for this server and in a hurry."""
    text = (ROOT / "deploy" / "prometheus.yml").read_text()
    assert "127.0.0.1:8765" in text
    assert "scrape_interval: 5s" in text
    return text.replace("127.0.0.1:8765", f"127.0.0.1:{server.port}").replace(
        "scrape_interval: 5s", "scrape_interval: 1s"
    )


@asynccontextmanager
async def prometheus(server: Server, folder: Path) -> AsyncGenerator[httpx.AsyncClient]:
    program = shutil.which("prometheus")
    if program is None:
        pytest.fail("this test needs Prometheus: apt-get install prometheus (Debian), brew install prometheus (macOS)")
    config = folder / "prometheus.yml"
    config.write_text(configuration(server))
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        program,
        f"--config.file={config}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            yield client
    finally:
        process.terminate()
        await process.wait()


async def traffic(server: Server) -> None:
    """A turn, a barge-in, and a request that is refused."""
    remote = RemoteSynthesizer(server.url)
    async with VoiceSession(remote) as session:
        await session.speak(TURN).collect()
        speech = session.speak(TURN)
        async for item in speech:
            if isinstance(item, PcmChunk):
                speech.stop()
        session.settle(speech.id, 0.1)
    await remote.aclose()
    async with httpx.AsyncClient(trust_env=False) as web:
        page = await web.get(f"http://127.0.0.1:{server.port}/v1/voices", headers={"Origin": "https://example.com"})
        assert page.status_code == 403


@pytest.mark.timeout(120)
async def test_every_panel_has_data_after_some_traffic(tmp_path: Path) -> None:
    board = json.loads((ROOT / "deploy" / "grafana" / "higgs-voice.json").read_text())
    asked = {
        f"{panel['title']}: {target['expr']}": target["expr"]
        .replace("$__rate_interval", "5s")
        .replace("$job", "higgs-voice")
        .replace("$instance", ".*")
        for panel in board["panels"]
        for target in panel["targets"]
    }
    async with Server(FakeSynthesizer(), ServerSettings(port=0)) as server:
        async with prometheus(server, tmp_path) as client:
            left = dict(asked)
            for _ in range(60):
                await traffic(server)
                for name, query in list(left.items()):
                    try:
                        answer = await client.get("/api/v1/query", params={"query": query})
                    except httpx.TransportError:
                        break  # it is starting
                    assert answer.status_code in (200, 503), f"{name}: {answer.text}"
                    if answer.status_code == 200 and _has_number(answer.json()["data"]["result"]):
                        del left[name]
                if not left:
                    break
                await asyncio.sleep(0.5)
    assert not left, "no data for: " + "; ".join(left)


def _has_number(result: list[dict[str, list[object]]]) -> bool:
    return any(str(item["value"][1]) != "NaN" for item in result)
