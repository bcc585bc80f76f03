"""Every example runs on the embedded voice and writes sound."""

from __future__ import annotations

import ast
import runpy
import sys
import wave
from pathlib import Path

import pytest

pytest.importorskip("torch")

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
TEXTS: dict[str, list[str]] = {
    "scene_and_speaker": ["Hello, you.", "Yes."],
    "clone_from_a_clip": ["Hello, you."],
    "dialogue": ["[SPEAKER0] Hello!", "[SPEAKER1] Yes?"],
    "tokens_to_waveform": ["Hello, you.", "Yes."],
    "streaming_pcm": ["Hello. Yes, I see."],
    "streamed_llm_text": ["Hello there. And more."],
}
"""Short ones, for time's sake."""
SAYS = {
    "scene_and_speaker": "s of sound in",
    "clone_from_a_clip": "spoken in the voice of",
    "dialogue": "2 turns",
    "tokens_to_waveform": "frames",
    "streaming_pcm": "first sound after",
    "streamed_llm_text": "the voice remembers",
}


def test_every_example_is_run() -> None:
    assert {file.stem for file in EXAMPLES.glob("*.py")} == set(TEXTS)


@pytest.mark.parametrize("name", TEXTS)
def test_it_runs_on_the_embedded_voice(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a program, but in this process: torch need not be imported again for each."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *TEXTS[name]])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert SAYS[name] in capsys.readouterr().out
    sounds = list((tmp_path / "out").glob("*.wav"))
    assert sounds
    for sound in sounds:
        with wave.open(str(sound)) as file:
            assert file.getframerate() == 24000
            assert file.getnframes() > 2400
            assert len(set(file.readframes(-1))) > 100


@pytest.mark.parametrize("name", TEXTS)
def test_it_is_short_and_says_what_it_is(name: str) -> None:
    source = (EXAMPLES / f"{name}.py").read_text()
    assert ast.get_docstring(ast.parse(source))
    assert len(source.splitlines()) <= 80
    assert '"--model"' in source
