"""`higgs-voice bench context | latency | bargein | concurrency`: the measurements of this machine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.console import Console

from .cli_parts import (
    CodecDtype,
    Debug,
    Device,
    Dtype,
    Folder,
    KvDtype,
    Model,
    WeightDtype,
    command,
    number_types,
)
from .errors import SettingsError

if TYPE_CHECKING:
    from .bench import concurrency as concurrency_bench
    from .bench.common import Place
    from .conversation.voice import Voice

_T = TypeVar("_T")

bench_app = typer.Typer(
    help="Measure this machine. Each measurement says where it ran and ends with one JSON line.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Turns = Annotated[int, typer.Option(min=1, help="Turns of the conversation.")]
Frames = Annotated[int, typer.Option(min=1, help="Frames of every chunk, 25 a second.")]
Random = Annotated[
    str | None,
    typer.Option("--random", help="3b: the published model's shapes with random weights, instead of --model."),
]
Baseline = Annotated[
    list[str] | None,
    typer.Option(
        help="boson or transformers: the documented algorithm on that engine, beside ours, with the same weights. May be repeated."
    ),
]
BenchVoice = Annotated[str | None, typer.Option("--voice", help="A voice's name, instead of the measurement's own.")]
BenchJson = Annotated[bool, typer.Option("--json", help="Print nothing but the last line.")]
BenchPartial = Annotated[
    bool,
    typer.Option("--partial", help="A JSON line now and then too, of what was found so far, with partial: true."),
]
PARTS = {"codec_dtype": "codec", "kv_dtype": "keys and values", "weight_dtype": "layers' weights"}
TURNS_SO_FAR = 10
"""Turns of `bench context` between two lines of --partial."""


@dataclass(slots=True)
class _Bench:
    """What the measurements do alike: an engine, the place on top, JSON at the end."""

    name: str
    model: str
    random: str | None
    device: str
    dtype: str
    types: Mapping[str, str]
    """See `number_types`."""
    quiet: bool
    named: str | None = None
    folder: Path | None = None
    partial: bool = False
    """Whether `so_far` prints."""
    voice: Voice | None = None
    """The one that `named` means, once the engine is there."""
    place: Place = field(init=False)
    """Once the engine is there."""
    console: Console = field(default_factory=lambda: Console(highlight=False))

    def __post_init__(self) -> None:
        self.console.quiet = self.quiet

    def run(self, measure: Callable[[Any], Coroutine[Any, Any, dict[str, Any]]]) -> None:
        from .bench.common import HostShare, Place, engine_for
        from .conversation.presets import find_voice
        from .heap import settled

        async def work() -> dict[str, Any]:
            engine = engine_for(
                self.model,
                random=self.random,
                device=self.device,
                dtype=self.dtype,
                **self.types,
            )
            try:
                await engine.start()
                if self.named is not None:
                    self.voice = await find_voice(self.named, engine, folder=self.folder)
                self.place = Place.here()
                types = "".join(f", {PARTS[part]} in {kind}" for part, kind in self.types.items())
                self.say(f"{self.name}: {self.what}{types}", *self.place.lines())
                host = HostShare()
                with settled():
                    found = await measure(engine)
                taken = host.percent
                if taken is not None:
                    self.say(f"the host took {taken:.1f} % of the processors meanwhile")
                return {**found, "host_took_percent": taken}
            finally:
                await engine.aclose()

        self._emit(asyncio.run(work()))

    @property
    def what(self) -> str:
        """That is measured."""
        return f"{self.random} shapes, random weights" if self.random else self.model

    def so_far(self, found: dict[str, Any]) -> None:
        """With --partial, what is left of a measurement that is ended before its end."""
        if self.partial:
            self._emit({"partial": True, **found})

    def _emit(self, found: dict[str, Any]) -> None:
        from .bench.common import emit

        named = {"voice": self.named} if self.named is not None else {}
        typer.echo(emit(self.name, self.place, {"model": self.what, **named, **self.types, **found}))

    def say(self, *lines: str) -> None:
        for line in lines:
            self.console.print(line, markup=False, soft_wrap=True)


def _baselines(names: list[str] | None, random: str | None, types: Mapping[str, str]) -> list[str]:
    """Errors: `SettingsError`."""
    if not names:
        return []
    from .bench.baseline import NAMES

    if random:
        raise SettingsError("a baseline reads a checkpoint of its own; --baseline does not go with --random")
    for part in types:
        option = "--" + part.replace("_", "-")
        raise SettingsError(f"a baseline has one number type; --baseline does not go with {option}")
    for name in names:
        if name not in NAMES:
            raise SettingsError(f"there is no baseline {name!r}; there are: {', '.join(NAMES)}")
    return names


async def _on_baseline(
    name: str, model: str, device: str, dtype: str, measure: Callable[[Any], Coroutine[Any, Any, _T]]
) -> _T:
    """A measurement on a baseline's engine, which is there for it alone."""
    from .bench.baseline import baseline

    engine = baseline(name, model, device=device, dtype=dtype)
    try:
        await engine.start()
        return await measure(engine)
    finally:
        await engine.aclose()


@bench_app.command("context")
@command
def bench_context(
    turns: Turns = 50,
    window: Annotated[str, typer.Option(help="last_n (5), seconds (20 to 40), all, or every.")] = "every",
    frames: Frames = 50,
    pause: Annotated[float, typer.Option(min=0.0, help="Seconds that the caller talks between turns.")] = 1.0,
    model: Model = "nano",
    random: Random = None,
    voice: BenchVoice = None,
    folder: Folder = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    codec_dtype: CodecDtype = "float32",
    kv_dtype: KvDtype = "auto",
    weight_dtype: WeightDtype = "auto",
    baseline: Baseline = None,
    as_json: BenchJson = False,
    partial: BenchPartial = False,
    debug: Debug = False,
) -> None:
    """Time to first audio over a conversation, ours and by the documented algorithm (everything prefilled for every chunk)."""
    from .bench import context

    if window not in (*context.WINDOWS, "every"):
        raise SettingsError(f"there is no window {window!r}; there are: {', '.join(context.WINDOWS)}, every")
    names = list(context.WINDOWS) if window == "every" else [window]
    types = number_types(model, codec_dtype, kv_dtype, weight_dtype)
    others = _baselines(baseline, random, types)
    bench = _Bench("context", model, random, device, dtype, types, as_json, voice, folder, partial)

    def found_in(results: list[context.Result]) -> dict[str, Any]:
        first = results[0].as_json()
        top = {
            key: first[key]
            for key in (
                "ttfa_ms",
                "ttfa_ms_p50",
                "ttfa_ms_p95",
                "ttfa_ms_p99",
                "ratio_last_first",
                "ratio_documented",
                "rebuild_ms",
                "rtf",
            )
        }
        windows = {result.window: result.as_json() for result in results}
        return {"window": results[0].window, **top, "turns": turns, "frames": frames, "windows": windows}

    async def measure(engine: Any) -> dict[str, Any]:
        bench.say(
            f"{turns} turns of {context.CHUNKS} chunks of {frames} frames, {pause:g} s between turns; ms to first PCM"
        )
        results: list[context.Result] = []
        baselines: dict[str, dict[str, Any]] = {}
        for name in names:
            with bench.console.status(name) as status:

                def on_turn(result: context.Result, status: Any = status) -> None:
                    turn = len(result.ttfa_s)
                    status.update(f"{result.window}: turn {turn} of {turns}")
                    if turn % TURNS_SO_FAR == 0:
                        bench.so_far(found_in([*results, result]))

                settings = context.Settings(turns=turns, frames=frames, pause_s=pause)
                result = await context.measure(engine, name, settings, voice=bench.voice, on_turn=on_turn)
            results.append(result)
            for other in others:
                beside = await _on_baseline(
                    other,
                    model,
                    device,
                    dtype,
                    lambda engine, name=name, settings=settings: context.measure(
                        engine, name, replace(settings, again=0), voice=bench.voice
                    ),
                )
                baselines.setdefault(other, {})[name] = beside.as_json()
                bench.say(
                    f"{name:8} {beside.spread()}  last/first {beside.ratio_last_first:.2f}  on {other}, everything prefilled for "
                    f"every chunk; ours over it {result.spread().p50 / beside.spread().p50:.2f}  rtf {beside.rtf:.2f}"
                )
            found = result.as_json()
            bench.say(
                f"{name:8} {result.spread()}  last/first {result.ratio_last_first:.2f}  "
                f"ours/documented {result.ratio_documented:.2f} (documented {found['documented_ttfa_ms']} ms, "
                f"rebuild of {result.rows} rows {found['rebuild_ms']} ms)  rtf {result.rtf:.2f}"
            )
        return found_in(results) | ({"baselines": baselines} if baselines else {})

    bench.run(measure)


@bench_app.command("latency")
@command
def bench_latency(
    turns: Turns = 30,
    frames: Frames = 50,
    pause: Annotated[float, typer.Option(min=0.0, help="Seconds between turns.")] = 0.5,
    model: Model = "nano",
    random: Random = None,
    voice: BenchVoice = None,
    folder: Folder = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    codec_dtype: CodecDtype = "float32",
    kv_dtype: KvDtype = "auto",
    weight_dtype: WeightDtype = "auto",
    as_json: BenchJson = False,
    debug: Debug = False,
) -> None:
    """Text in to first PCM out at the client, and where the time goes."""
    from .bench import latency

    bench = _Bench(
        "latency",
        model,
        random,
        device,
        dtype,
        number_types(model, codec_dtype, kv_dtype, weight_dtype),
        as_json,
        voice,
        folder,
    )

    async def measure(engine: Any) -> dict[str, Any]:
        result = await latency.measure(engine, turns=turns, frames=frames, pause_s=pause, voice=bench.voice)
        for name, spread in result.spreads().items():
            bench.say(f"{name:10} {spread} ms")
        return {"turns": turns, **result.as_json()}

    bench.run(measure)


@bench_app.command("bargein")
@command
def bench_bargein(
    turns: Turns = 30,
    model: Model = "nano",
    random: Random = None,
    voice: BenchVoice = None,
    folder: Folder = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    codec_dtype: CodecDtype = "float32",
    kv_dtype: KvDtype = "auto",
    weight_dtype: WeightDtype = "auto",
    baseline: Baseline = None,
    as_json: BenchJson = False,
    debug: Debug = False,
) -> None:
    """From an interruption to the last step and the last PCM, and to the next turn's first sound."""
    from .bench import bargein

    types = number_types(model, codec_dtype, kv_dtype, weight_dtype)
    others = _baselines(baseline, random, types)
    bench = _Bench("bargein", model, random, device, dtype, types, as_json, voice, folder)

    async def measure(engine: Any) -> dict[str, Any]:
        result = await bargein.measure(engine, turns=turns, voice=bench.voice)
        for name, spread in result.spreads().items():
            bench.say(f"{name:24} {spread} ms")
        bench.say(f"steps after it {max(result.steps, default=0)} at most; PCM after it {result.pcm_after} pieces")
        baselines: dict[str, Any] = {}
        for other in others:
            beside = await _on_baseline(
                other, model, device, dtype, lambda engine: bargein.measure(engine, turns=turns, voice=bench.voice)
            )
            found = beside.as_json()
            if other == "boson":  # its steps are taken in another process, which does not tell of them
                found = {key: value for key, value in found.items() if not key.startswith(("idle", "steps"))}
            baselines[other] = found
            for name, spread in beside.spreads().items():
                if other != "boson" or name.startswith("next"):
                    bench.say(f"{name:24} {spread} ms on {other}")
        return {"turns": turns, **result.as_json()} | ({"baselines": baselines} if baselines else {})

    bench.run(measure)


@bench_app.command("concurrency")
@command
def bench_concurrency(
    sessions: Annotated[str, typer.Option(help="Numbers of sessions, one after another.")] = "1,2,4,6,8",
    seconds: Annotated[float, typer.Option(min=0.1, help="Measured for each number.")] = 30.0,
    frames: Frames = 50,
    pause: Annotated[float, typer.Option(min=0.0, help="Seconds between a session's turns.")] = 4.0,
    every: Annotated[bool, typer.Option("--every", help="Go on behind a number of sessions that had a gap.")] = False,
    model: Model = "nano",
    random: Random = None,
    voice: BenchVoice = None,
    folder: Folder = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    codec_dtype: CodecDtype = "float32",
    kv_dtype: KvDtype = "auto",
    weight_dtype: WeightDtype = "auto",
    as_json: BenchJson = False,
    partial: BenchPartial = False,
    debug: Debug = False,
) -> None:
    """How many sessions one engine serves without a gap, at an agent's rhythm."""
    from .bench import concurrency

    try:
        counts = [int(part) for part in sessions.split(",")]
    except ValueError as error:
        raise SettingsError(f"--sessions takes numbers such as 1,2,4, not {sessions!r}") from error
    if min(counts) < 1:
        raise SettingsError(f"--sessions takes numbers such as 1,2,4, none of them below one, not {sessions!r}")
    bench = _Bench(
        "concurrency",
        model,
        random,
        device,
        dtype,
        number_types(model, codec_dtype, kv_dtype, weight_dtype),
        as_json,
        voice,
        folder,
        partial,
    )
    so_far: list[concurrency_bench.Level] = []

    def on_level(level: concurrency_bench.Level) -> None:
        found = level.as_json()
        bench.say(
            f"{level.sessions:4} sessions: first PCM p50 {found['ttfa_ms_p50']} p95 {found['ttfa_ms_p95']} ms, "
            f"{level.underruns} underruns (longest {found['longest_gap_ms']} ms), {found['audio_s_per_s']:.1f} s of sound a second"
        )
        so_far.append(level)
        bench.so_far(concurrency.as_json(so_far))

    async def measure(engine: Any) -> dict[str, Any]:
        settings = concurrency.Settings(seconds=seconds, frames=frames, pause_s=pause)
        levels = await concurrency.measure(engine, counts, settings, voice=bench.voice, on_level=on_level, every=every)
        bench.say(f"capacity: {concurrency.capacity(levels)} sessions without a gap")
        return concurrency.as_json(levels)

    bench.run(measure)
