"""A server that is lost in mid-sentence: milliseconds until the next sound comes from another one.

Two servers in this process, each with its own engine over the same weights. A client is told of both; every turn the one in use ends after
`--after` seconds of a sentence. In turns, the other one goes `behind` what was said, or is one that cannot and speaks the sentence `anew`
up to that place.

    python benchmarks/takeover.py [--turns 8] [--after 5] [--model nano] [--device auto] [--kv-dtype auto]
"""

from __future__ import annotations

import argparse
import asyncio
import time
from dataclasses import asdict, replace
from typing import Any

from common import Place, Spread, emit, ms

from higgs_voice import PcmChunk, SessionSettings, VoiceSession
from higgs_voice.backends.local import LocalSynthesizer
from higgs_voice.backends.remote import RemoteSynthesizer
from higgs_voice.bench.common import HostShare, sampling_for
from higgs_voice.config import engine_kind
from higgs_voice.errors import ConnectionLostError
from higgs_voice.model.loading import load
from higgs_voice.server.app import Server, ServerSettings
from higgs_voice.text import ChunkerSettings

TEXT = (
    "Please hold the line for a moment while I look it up for you because the list of the parts that we keep in the other "
    "house is a long one and I have to read all of it"
)
"""Some ten seconds, in one chunk."""
AHEAD_S = 0.5
"""Sound that the server may send ahead, so that it has not said everything when it is lost."""


class Pair:
    """Two engines behind two servers, of which the one in use can be ended and begun again."""

    def __init__(self, options: argparse.Namespace) -> None:
        loaded = load(options.model, device=options.device)
        self.engines = [LocalSynthesizer(loaded=loaded, kv_dtype=options.kv_dtype) for _ in range(2)]
        self.servers: list[Server] = []
        self.urls: list[str] = []

    async def start(self) -> None:
        for engine in self.engines:
            await engine.start()
            self.servers.append(await self._serve(engine, 0))
        self.urls = [server.url for server in self.servers]

    async def aclose(self) -> None:
        for server in self.servers:
            await server.aclose()
        for engine in self.engines:
            await engine.aclose()

    def say_whether(self, continues: bool) -> None:
        for engine in self.engines:
            engine._info = replace(engine.info, continues=continues)  # pyright: ignore[reportPrivateUsage]

    async def end(self, url: str) -> None:
        await self.servers[self.urls.index(url)].aclose()

    async def begin_again(self, url: str) -> None:
        place = self.urls.index(url)
        self.servers[place] = await self._serve(self.engines[place], int(url.rpartition(":")[2]))

    @staticmethod
    async def _serve(engine: LocalSynthesizer, port: int) -> Server:
        server = Server(engine, ServerSettings(port=port, grace_s=0.0, drain_s=0.0, admit_beyond_capacity=True))
        await server.start()
        return server


async def turn(pair: Pair, text: str, after_s: float, seed: int) -> float | None:
    """Seconds from the loss to the next sound; None where there was none."""
    client = RemoteSynthesizer(pair.urls, window_s=AHEAD_S)
    settings = SessionSettings(sampling=sampling_for(300, seed=seed), chunker=ChunkerSettings(first_max_chars=200))
    ending: asyncio.Task[None] | None = None
    url = ""
    lost_at = found = 0.0
    try:
        async with VoiceSession(client, settings=settings) as session:
            speech = session.speak(text)
            heard = 0.0
            async for event in speech:
                if not isinstance(event, PcmChunk):
                    continue
                heard += event.duration_s
                if lost_at and not found and ending is not None and ending.done():
                    found = time.perf_counter()
                elif heard >= after_s and not lost_at:
                    lost_at, url = time.perf_counter(), client.url
                    ending = asyncio.create_task(pair.end(url))
                    await ending
    except ConnectionLostError:
        found = 0.0
    finally:
        await client.aclose()
        if ending is not None:
            await pair.begin_again(url)
    return found - lost_at if found else None


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    pair = Pair(options)
    await pair.start()
    kinds = {"behind": True, "anew": False}
    found: dict[str, list[float | None]] = {kind: [] for kind in kinds}
    try:
        for number in range(options.turns):
            for kind in list(kinds)[:: 1 if number % 2 else -1]:
                pair.say_whether(kinds[kind])
                found[kind].append(await turn(pair, TEXT, options.after, number))
    finally:
        await pair.aclose()
    spread = {kind: [ms(gap) for gap in each if gap is not None] for kind, each in found.items()}
    return {
        kind: {"gap_ms": asdict(Spread.of(gaps)) if gaps else None, "lost": options.turns - len(gaps)}
        for kind, gaps in spread.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--after", type=float, default=5.0, help="seconds that are spoken before, up to 7")
    parser.add_argument("--model", default="nano")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--kv-dtype", default="auto")
    options = parser.parse_args()
    if options.turns < 1 or options.after <= 0:
        parser.error("--turns is one or more and --after more than nought")
    if engine_kind(options.model) != "local":
        parser.error(f"--model is one that runs in this process, and {options.model} is not")
    place, host = Place.here(), HostShare()
    print("\n".join(place.lines()))
    found = asyncio.run(measure(options))
    for kind, each in found.items():
        gap = each["gap_ms"]
        said = f"next sound after {gap['p50']:.0f} ms (p95 {gap['p95']:.0f})" if gap else "no more sound"
        print(f"{kind}: {said}, {each['lost']} sentences lost")
    print(emit("takeover", place, {"after_s": options.after, **found, "host_took_percent": host.percent}))


if __name__ == "__main__":
    main()
