"""What both engines of the documented API share, and that what they say twice they say alike."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from higgs_voice import documented

PACKAGE = Path(documented.__file__).parent


def parameters(file: Path, name: str) -> dict[str, str | None]:
    """A function's parameters with their defaults, as they are written; ``Class.method`` for one of a class."""
    body: list[ast.stmt] = ast.parse(file.read_text()).body
    *classes, last = name.split(".")
    for part in classes:
        body = next(node for node in body if isinstance(node, ast.ClassDef) and node.name == part).body
    found = next(
        node for node in body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == last
    )
    assert not found.args.kwonlyargs
    names = [argument.arg for argument in found.args.args]
    defaults = [ast.unparse(default) for default in found.args.defaults]
    return dict(zip(names, [None] * (len(names) - len(defaults)) + defaults, strict=True))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("StreamingVoiceGenerator.__init__", "StreamingVoiceGenerator.__init__"),
        ("StreamingVoiceGenerator.generate_streaming", "StreamingVoiceGenerator.generate_streaming"),
        ("HiggsAudioServeEngine.generate_delta_stream", "generate_delta_stream"),
    ],
)
def test_both_engines_have_the_same_parameters(ours: str, theirs: str) -> None:
    one = parameters(PACKAGE / "serve_engine.py", ours)
    other = parameters(PACKAGE / "backends" / "boson_serving.py", theirs)
    assert list(one) == list(other)
    # boson_multimodal's own generate_delta_stream asks for max_new_tokens; ours has a default for it.
    assert {name: one[name] for name in other if other[name] is not None} == {
        name: default for name, default in other.items() if default is not None
    }


def test_a_transcript_that_cannot_be_read_is_empty_and_warned_about(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert documented.transcript(tmp_path / "voice.wav") == ""
    assert "no transcript" in caplog.text
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "folder.txt").mkdir()
    for name in ("latin", "folder"):
        caplog.clear()
        assert documented.transcript(tmp_path / f"{name}.wav") == ""
        assert f"{name}.txt of a reference clip cannot be read" in caplog.text
    assert documented.clip_text(tmp_path / "latin.wav", 1, 2) == "[SPEAKER1]"


def test_the_text_of_a_clip_names_its_speaker_where_there_are_several(tmp_path: Path) -> None:
    (tmp_path / "voice.txt").write_text(" A tone.\n")
    assert documented.clip_text(tmp_path / "voice.wav", 0, 1) == "A tone."
    assert documented.clip_text(str(tmp_path / "voice.wav"), 1, 2) == "[SPEAKER1] A tone."
