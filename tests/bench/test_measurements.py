"""What the measurements measure, on an engine of tones whose pace is known."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from higgs_voice.backends import local
from higgs_voice.backends.fake import FakeSynthesizer
from higgs_voice.bench import bargein, concurrency, context, latency
from higgs_voice.cli import app
from higgs_voice.conversation.synthesizer import SpeakRequest
from higgs_voice.errors import EngineDiedError
from tests.virtual_time import virtual

QUICK = context.Settings(turns=4, frames=10, pause_s=0.0, again=2)


@pytest.mark.parametrize(("name", "exchanges"), [("last_n", 5), ("seconds", 11), ("all", 11)])
async def test_context_is_three_chunks_a_turn_in_one_session(name: str, exchanges: int) -> None:
    engine = FakeSynthesizer()
    result = await context.measure(engine, name, QUICK)
    assert [len(turn) for turn in result.ttfa_s] == [3] * 4
    assert result.exchanges == exchanges
    session = engine.requests[0].session_id
    ours = [request for request in engine.requests if request.session_id == session]
    again = [request for request in engine.requests if request.session_id != session]
    assert (len(ours), len(again)) == (12, 6)
    # What is made again is the same, in a session and behind a voice that the engine has not met.
    assert len({request.session_id for request in again}) == 6
    assert len({request.context.voice.scene for request in again}) == 6
    for mine, theirs in zip(ours[-6:], again, strict=True):
        assert [item.text for item in theirs.context.exchanges] == [item.text for item in mine.context.exchanges]
        assert (theirs.text, theirs.sampling, theirs.next_context) == (mine.text, mine.sampling, None)
    assert result.ours_s == [value for turn in result.ttfa_s[-2:] for value in turn]
    assert len(result.documented_s) == len(result.rebuild_s) == 6
    assert set(result.as_json()) >= {"ttfa_ms", "ratio_last_first", "ratio_documented", "rebuild_ms"}


def test_ratios_are_of_medians_and_leave_the_first_turn_out() -> None:
    result = context.Result("all", ttfa_s=[[9.0]] + [[1.0]] * 5 + [[5.0]] * 3 + [[2.0]] * 5)
    assert result.ratio_last_first == 2.0
    result.ours_s, result.documented_s = [1.0, 9.0, 1.0], [4.0, 4.0, 4.0]
    assert result.ratio_documented == 0.25
    assert result.turns_ms[:2] == [9000.0, 1000.0]


async def test_latency_splits_each_turn() -> None:
    async def pace() -> None:
        await asyncio.sleep(0.01)

    engine = FakeSynthesizer(pace=lambda request, sent: pace())
    result = await latency.measure(engine, turns=3, frames=10, pause_s=0.0)
    assert len(engine.requests) == 4
    assert all(
        len(getattr(result, name)) == 3 for name in ("total", "chunking", "prefill", "steps", "codec", "transport")
    )
    assert all(value >= 0.01 for value in result.total)
    assert all(total >= steps for total, steps in zip(result.total, result.steps, strict=True))


async def test_bargein_counts_what_comes_after() -> None:
    engine = FakeSynthesizer(frames_per_event=1)
    result = await bargein.measure(engine, turns=14, frames=40)
    assert len(result.idle) == 14
    assert len(result.next_ttfa) == 13
    assert result.pcm_after == 0
    assert max(result.steps) <= 1
    assert not engine.active


@virtual
async def test_concurrency_finds_the_number_that_an_engine_keeps_up_with() -> None:
    """An engine that makes ten seconds of sound a second, whoever asks: it is too slow for many listeners at once."""
    clock = SimpleNamespace(perf_counter=asyncio.get_running_loop().time)
    lock = asyncio.Lock()

    async def pace(request: SpeakRequest, sent: int) -> None:
        async with lock:
            await asyncio.sleep(0.02)  # five frames, 0.2 s of sound

    engine = FakeSynthesizer(pace=pace)
    settings = concurrency.Settings(seconds=6.0, frames=20, pause_s=0.5, barge_in=0.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(concurrency, "time", clock)
        levels = await concurrency.measure(engine, [1, 20, 2], settings)
        again = await concurrency.measure(engine, [20, 1], settings, every=True)
    assert [level.underruns > 0 for level in levels] == [False, True]
    assert ([level.sessions for level in again], concurrency.capacity(again)) == ([20, 1], 1)
    found = concurrency.as_json(levels)
    assert found["capacity"] == 1
    assert set(found["ttfa_ms_p95"]) == {"1", "20"}
    assert found["levels"][1]["longest_gap_ms"] > 0


@pytest.mark.parametrize(
    ("words", "keys"),
    [
        (["context", "--turns", "3", "--pause", "0"], {"ttfa_ms", "ratio_last_first", "ratio_documented", "windows"}),
        (["latency", "--turns", "2", "--pause", "0"], {"ttfa_ms_p50", "split_ms_p50"}),
        (["bargein", "--turns", "2"], {"idle_ms_p50", "steps_after_max"}),
        (
            ["concurrency", "--sessions", "1", "--seconds", "0.2", "--frames", "3", "--pause", "0"],
            {"capacity", "ttfa_ms_p95"},
        ),
    ],
)
def test_the_last_line_is_json(words: list[str], keys: set[str]) -> None:
    result = CliRunner().invoke(app, ["bench", *words, "--model", "fake"])
    assert result.exit_code == 0, result.output
    *_, last = result.stdout.splitlines()
    found = json.loads(last)
    assert keys | {"host_took_percent"} <= set(found)
    assert found["machine"]["cpu"] in result.stdout.splitlines()[1]
    quiet = CliRunner().invoke(app, ["bench", *words, "--model", "fake", "--json"])
    assert len(quiet.stdout.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["context", "--turns", "20", "--frames", "2", "--pause", "0", "--window", "last_n"], [10, 20]),
        (["concurrency", "--sessions", "1,2", "--seconds", "0.1", "--frames", "3", "--pause", "0"], [1, 2]),
    ],
)
def test_who_ends_a_measurement_early_has_what_was_found_so_far(words: list[str], found: list[int]) -> None:
    result = CliRunner().invoke(app, ["bench", *words, "--model", "fake", "--json", "--partial"])
    assert result.exit_code == 0, result.output
    *partial, last = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["partial"] for line in partial] == [True, True]
    assert [len(line.get("levels") or line["windows"]["last_n"]["ttfa_ms"]) for line in partial] == found
    assert last["bench"] == words[0]
    assert set(partial[0]) - set(last) == {"partial"}
    assert set(last) - set(partial[0]) == {"host_took_percent"}


@pytest.mark.parametrize("name", ["context", "latency", "bargein", "concurrency"])
@pytest.mark.parametrize("random", [[], ["--random", "3b"]])
def test_number_types_reach_the_engine(name: str, random: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    types = ("codec_dtype", "kv_dtype", "weight_dtype")
    made: dict[str, Any] = {}

    def engine(*_: Any, **options: Any) -> None:
        given.append({name: kind for name, kind in options.items() if name in types})
        raise EngineDiedError("that is all that is to be seen")

    monkeypatch.setattr(local, "LocalSynthesizer", engine)
    monkeypatch.setattr("higgs_voice.model.loading.random_model", lambda *_, **options: made.update(options))
    for words in ([], ["--codec-dtype", "bfloat16"], ["--kv-dtype", "bfloat16"], ["--weight-dtype", "int8"]):
        done = CliRunner().invoke(app, ["bench", name, "--model", "nano", *random, *words])
        assert done.stderr == "higgs-voice: that is all that is to be seen\n"
    assert given[:3] == [{}, {"codec_dtype": "bfloat16"}, {"kv_dtype": "bfloat16"}]
    # Weights are made when a model is loaded: by the engine, or before it.
    assert (given[3], made.get("weight_dtype")) == (({}, "int8") if random else ({"weight_dtype": "int8"}, None))


def test_a_number_type_that_cannot_be_had_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    for words, sentence in (
        (["--model", "nano", "--codec-dtype", "float16"], "float32 or bfloat16, not in 'float16'"),
        (["--model", "nano", "--device", "cpu", "--codec-dtype", "bfloat16"], "on a CPU with AMX only"),
        (["--model", "fake", "--codec-dtype", "bfloat16"], "fake is not"),
        (["--baseline", "transformers", "--codec-dtype", "bfloat16"], "--baseline does not go with --codec-dtype"),
        (["--model", "nano", "--kv-dtype", "float16"], "float32 (auto) or in bfloat16, not in 'float16'"),
        (["--model", "fake", "--kv-dtype", "bfloat16"], "--kv-dtype bfloat16 is for a model in this process"),
        (["--model", "nano", "--weight-dtype", "int4"], "in its own type (auto) or in int8, not in 'int4'"),
        (["--model", "fake", "--weight-dtype", "int8"], "--weight-dtype int8 is for a model in this process"),
    ):
        done = CliRunner().invoke(app, ["bench", "bargein", *words])
        assert done.exit_code == 1
        assert isinstance(done.exception, SystemExit)
        (said,) = done.stderr.splitlines()
        assert said.startswith("higgs-voice: ")
        assert sentence in said


def test_the_first_line_and_the_last_say_in_what_was_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "LocalSynthesizer", lambda *_, **__: FakeSynthesizer())
    words = ["bench", "bargein", "--turns", "2", "--model", "nano"]
    for option, type_, said in (
        ("codec_dtype", "bfloat16", "codec in bfloat16"),
        ("kv_dtype", "bfloat16", "keys and values in bfloat16"),
        ("weight_dtype", "int8", "layers' weights in int8"),
    ):
        for more, kind in (([], None), (["--" + option.replace("_", "-"), type_], type_)):
            lines = CliRunner().invoke(app, [*words, *more]).stdout.splitlines()
            assert json.loads(lines[-1]).get(option) == kind
            assert (said in lines[0]) == (kind is not None)


@pytest.mark.parametrize("sessions", ["0", "2,-1", "two", ""])
def test_numbers_of_sessions_that_cannot_be_are_one_sentence(sessions: str) -> None:
    result = CliRunner().invoke(app, ["bench", "concurrency", "--sessions", sessions, "--model", "fake"])
    assert result.exit_code != 0
    assert "--sessions takes numbers such as 1,2,4" in result.stderr
