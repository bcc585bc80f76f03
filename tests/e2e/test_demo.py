"""The demo, shortened, as a stranger runs it; and what it measures with, on recordings whose gaps are known."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[2]
RATE = 48000


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.syspath_prepend(str(ROOT / "agents"))
    import demo_report

    return demo_report


def babble(seconds: float, seed: int = 0) -> NDArray[np.float32]:
    """Something like speech: noise in bands, loud and soft, [n] at 24 kHz."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=int(seconds * 24000)).astype(np.float32)
    smooth = np.convolve(noise, np.ones(8, dtype=np.float32) / 8, mode="same")
    loudness = 0.6 + 0.4 * np.sin(2 * np.pi * 3 * np.arange(noise.size) / 24000)
    return (0.3 * smooth * loudness).astype(np.float32)


def packets(
    sound: NDArray[np.float32], began: float, late: dict[int, float]
) -> tuple[NDArray[np.float64], NDArray[np.int16]]:
    """As a listener gets it: 20 ms packets at 48 kHz; `late`: seconds that packet n and those behind it come too late."""
    wide = np.repeat(sound, 2)
    count = wide.size // 960
    arrivals = began + np.arange(count) * 0.02
    for packet, seconds in late.items():
        arrivals[packet:] = np.maximum(arrivals[packet:], arrivals[packet] + seconds)
    return arrivals, (wide[: count * 960].reshape(count, 960) * 32767).astype(np.int16)


@pytest.mark.parametrize(("gap_s", "place_s"), [(0.0, 1.0), (0.03, 1.5), (0.25, 2.0)])
def test_a_gap_that_the_transport_made_is_found(report: object, gap_s: float, place_s: float) -> None:
    from demo_report import Said, measure, play  # type: ignore[import-not-found]

    sound = babble(4.0)
    cut = int(place_s * 24000)
    lead = np.zeros(24000, dtype=np.float32)
    heard = np.concatenate([lead, sound[:cut], np.zeros(int(gap_s * 24000), dtype=np.float32), sound[cut:], lead])
    said = Said(1, 101.0, bytearray((sound * 32767).astype("<i2").tobytes()))
    findings = measure([said], play(*packets(heard, 100.0, {})), None)
    assert findings.gap_s == pytest.approx(gap_s, abs=0.004)


def test_packets_that_come_too_late_are_a_gap_and_a_little_lateness_is_not(report: object) -> None:
    from demo_report import Said, measure, play  # type: ignore[import-not-found]

    sound = babble(4.0)
    said = Said(1, 100.0, bytearray((sound * 32767).astype("<i2").tobytes()))
    assert measure([said], play(*packets(sound, 100.0, {70: 0.05})), None).gap_s < 0.004
    assert measure([said], play(*packets(sound, 100.0, {70: 0.16})), None).gap_s == pytest.approx(0.1, abs=0.01)


def test_silence_after_a_barge_in_is_measured_from_the_callers_first_sound(report: object) -> None:
    from demo_report import Said, measure, play  # type: ignore[import-not-found]

    sound = np.concatenate([babble(2.0), np.zeros(48000, dtype=np.float32)])
    said = Said(1, 100.0, bytearray((sound * 32767).astype("<i2").tobytes()))
    findings = measure([said], play(*packets(sound, 100.0, {})), 101.5)
    assert findings.silence_s == pytest.approx(0.5 + 0.06, abs=0.02)  # the device holds 60 ms back


async def test_the_scripted_llm_streams_what_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "agents"))
    from pipecat.frames.frames import LLMContextFrame, LLMFullResponseEndFrame, LLMFullResponseStartFrame, LLMTextFrame
    from pipecat.processors.aggregators.llm_context import LLMContext
    from pipecat.tests.utils import run_test
    from pipecat_bot import STALL, ScriptedLLM, stand_in  # type: ignore[import-not-found]

    text = "Hello there,  my friend.\nIt costs 3.50!"
    llm = ScriptedLLM(lambda context: text[:10] + STALL + text[10:], first_token_s=0, tokens_per_s=1e6, stall_s=0)
    down, _ = await run_test(llm, frames_to_send=[LLMContextFrame(LLMContext())])
    assert isinstance(down[0], LLMFullResponseStartFrame)
    assert isinstance(down[-1], LLMFullResponseEndFrame)
    tokens = [frame.text for frame in down if isinstance(frame, LLMTextFrame)]
    assert "".join(tokens) == text
    assert len(tokens) > 8
    assert stand_in(LLMContext()).startswith("Hello")


async def test_the_ears_give_text_and_never_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "agents"))
    from pipecat.frames.frames import TranscriptionFrame
    from pipecat_bot import PocketsphinxEars  # type: ignore[import-not-found]

    ears = PocketsphinxEars()
    for sound in (bytes(32000), (babble(1.0)[::2] * 32767).astype("<i2").tobytes()):
        async for frame in ears.run_stt(sound):
            assert isinstance(frame, TranscriptionFrame)
            assert frame.text


def test_the_demo_shortened(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, str(ROOT / "agents" / "demo.py"), "--short", "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    figures = json.loads((tmp_path / "demo.json").read_text())
    assert figures["vad_ms"] > 0
    longest_pause_ms = 530  # the caller may come in between two sentences, where it is silent already
    # A machine that others use may be late to hear the caller; once it has, silence is not far.
    assert figures["vad_ms"] - 100 - longest_pause_ms < figures["silence_ms"] < figures["vad_ms"] + 2000
    assert len(figures["ttfa_ms"]) >= 3
    assert (tmp_path / "demo.wav").stat().st_size > 24000 * 2 * 5
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")
    assert run.stdout.count("after the barge-in, voice and LLM remember the same") == 1
    assert run.stdout.count("at the end, voice and LLM remember the same") == 1


@pytest.mark.parametrize("count", [3, 41])
def test_what_both_remember_is_shown_in_whole_words(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "agents"))
    import demo  # type: ignore[import-not-found]
    from rich.console import Console

    words = [f"word{number}" for number in range(count)]
    console = Console(file=io.StringIO(), width=500)
    demo.compare(console, "at the end", [], [" ".join(words) + "."], " ".join(words))
    shown = console.file.getvalue().partition("words: ")[2].removeprefix("… ").split()  # type: ignore[attr-defined]
    assert shown == words[-8:]


def test_it_says_what_of_the_heard_words_the_window_has_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "agents"))
    import demo  # type: ignore[import-not-found]
    from rich.console import Console

    console = Console(file=io.StringIO(), width=500)
    demo.compare(console, "now", [], ["One two three.", "Four, five."], "Four, five.")
    demo.compare(console, "now", [], ["One two three."], "One two three.")
    some, every = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert "the same last 2 of 5 words: Four five; what was heard before has left the voice's window" in some
    assert every == "now, voice and LLM remember the same 3 words: One two three"


@pytest.mark.parametrize(
    ("heard", "cut_in"),
    [
        ("One two.  Three four. Five", "Five"),
        ("One two. Three", "Three"),
        ("One two. Three four.", ""),
        ("", ""),
    ],
)
def test_the_table_shows_what_was_heard_of_the_chunk_that_was_cut(report: object, heard: str, cut_in: str) -> None:
    from demo_report import Said, print_table  # type: ignore[import-not-found]
    from rich.console import Console

    from higgs_voice import ChunkReport
    from higgs_voice.conversation.synthesizer import FinishReason

    reports = [
        ChunkReport(number, text, text, FinishReason.EOS, None, 1.0, 0.1, 0.5, number)
        for number, text in enumerate(("One two. ", "Three four. "))
    ]
    said = Said(2, 100.0, reports=reports, cut=True, heard=heard)
    assert said.cut_in == cut_in
    console = Console(file=io.StringIO(), width=200)
    print_table(console, [said])
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert (f"cut by the caller after: {cut_in} …" if cut_in else "cut by the caller │") in shown


async def test_the_terminals_ctrl_c_is_not_the_listeners(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "agents"))
    import demo  # type: ignore[import-not-found]

    async with demo.listening() as listener:
        process = listener._process
        assert os.getpgid(process.pid) != os.getpgid(0)
    assert process.returncode is not None


def test_the_listener_ends_without_a_word_when_the_demo_is_killed() -> None:
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "agents" / "demo_listener.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    with process:
        assert b"offer" in process.stdout.readline()
        process.stdout.close()
        process.stdin.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_a_demo_that_cannot_work_says_why(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, str(ROOT / "agents" / "demo.py"), "--model", "ws://127.0.0.1:9", "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert run.returncode == 1
    assert "The demo failed:" in run.stdout
