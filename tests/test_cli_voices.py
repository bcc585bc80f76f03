"""`higgs-voice voices …`, and names wherever a command asks for a voice."""

from __future__ import annotations

import json
import wave
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from higgs_voice import Voice, cli
from higgs_voice.audio import write_wav
from higgs_voice.backends import fake
from higgs_voice.conversation.presets import Presets

RUN = CliRunner()
SHIPPED = sorted(Presets(None).all())
TONE = bytes(range(256)) * 200


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr(cli._Player, "find", classmethod(lambda cls, rate: None))
    write_wav(tmp_path / "anna.wav", TONE)


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> list[fake.FakeSynthesizer]:
    """Every fake engine that a command makes."""
    made: list[fake.FakeSynthesizer] = []

    class Kept(fake.FakeSynthesizer):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            made.append(self)

    monkeypatch.setattr(fake, "FakeSynthesizer", Kept)
    return made


def call(*words: str, code: int = 0) -> Result:
    result = RUN.invoke(cli.app, list(words))
    assert result.exit_code == code, result.output + repr(result.exception)
    return result


def listed(*words: str) -> dict[str, Any]:
    return {item["name"]: item for item in json.loads(call("voices", "list", *words, "--json").stdout)}


WHO = ("--ref", "anna.wav", "--ref-text", "What Anna says.", "--scene", "A hall.", "--speaker", "warm")


def test_a_voice_is_added_shown_said_and_removed(engines: list[fake.FakeSynthesizer]) -> None:
    result = call("voices", "add", "anna", *WHO)
    assert "voices preview anna" in result.stderr
    assert listed()["anna"] == {
        "name": "anna",
        "scene": "A hall.",
        "speakers": ["warm"],
        "clips_s": [pytest.approx(1.07, abs=0.01)],
        "from": "folder",
        "error": None,
    }
    shown = json.loads(call("voices", "show", "anna", "--json").stdout)
    assert (shown["scene"], shown["speakers"]) == ("A hall.", ["SPEAKER0: warm"])
    assert shown["clips"][0]["text"] == "What Anna says."
    assert "What Anna says." in call("voices", "show", "anna").stdout
    call("say", "Hello.", "--model", "fake", "--voice", "anna")
    assert engines[-1].requests[0].context.voice.scene == "A hall."
    call("voices", "preview", "anna", "--model", "fake", "--out", "p.wav", "--text", "One, two.")
    assert engines[-1].requests[0].context.voice.references[0].text == "What Anna says."
    assert engines[-1].requests[0].sampling.temperature is None  # as in a call: what the model recommends
    with wave.open("p.wav") as file:
        assert file.getnframes() > 0
    assert "anna.voice" in call("voices", "remove", "anna").stderr
    assert list(listed()) == sorted({"default", *SHIPPED})


def test_the_folder_is_an_option_the_environment_or_the_users_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call("voices", "add", "one", "--scene", "One.")
    mine = str(tmp_path / "mine")
    added = call("voices", "add", "two", "--scene", "Two.", "--voices", mine)
    assert f"hear it with: higgs-voice voices preview two --voices {mine}" in added.stderr
    monkeypatch.setenv("HIGGS_VOICE_VOICES", str(tmp_path / "its"))
    call("voices", "add", "three", "--scene", "Three.")
    assert {file.name for file in tmp_path.rglob("*.voice")} == {"one.voice", "two.voice", "three.voice"}
    assert (tmp_path / "mine" / "two.voice").is_file()
    assert (tmp_path / "its" / "three.voice").is_file()
    assert "three" in listed()
    assert "one" not in listed()
    assert Voice.named("three").scene == "Three."


def test_codes_are_kept_where_they_are_asked_for() -> None:
    call("voices", "add", "anna", *WHO, "--encode", "--model", "fake")
    (clip,) = Voice.named("anna").references
    assert clip.codec == "fake"
    assert clip.codes is not None


def test_a_clip_beside_its_text_is_a_voice_and_what_is_none_says_why(tmp_path: Path) -> None:
    folder = tmp_path / "voices"
    folder.mkdir()
    for name in ("ann", "bare", "two words", "mute"):
        write_wav(folder / f"{name}.wav", TONE if name != "mute" else bytes(48000))
    (folder / "ann.txt").write_text("What Ann says.")
    (folder / "mute.txt").write_text("Nothing.")
    (folder / "bad.voice").write_text("no voice")
    found = listed("--voices", str(folder))
    assert found["ann"]["clips_s"] == [pytest.approx(1.07, abs=0.01)]
    assert "bare.txt" in found["bare"]["error"]
    assert "rename" in found["two words"]["error"]
    assert "silent" in found["mute"]["error"]
    assert "cannot be read" in found["bad"]["error"]
    assert "ann" in call("voices", "list", "--voices", str(folder)).stdout


@pytest.mark.parametrize("name", SHIPPED)
def test_what_ships_is_shown_and_cannot_be_removed(name: str) -> None:
    assert listed()[name]["from"] == "shipped"
    assert "cannot be removed" in call("voices", "remove", name, code=1).stderr
    call("voices", "add", name, "--scene", "Mine.")
    assert (listed()[name]["from"], listed()[name]["scene"]) == ("folder", "Mine.")
    call("voices", "remove", name)
    assert listed()[name]["from"] == "shipped"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["list", "--voices", "no-such-folder"], "no-such-folder"),
        (["show", "nobody"], "there is no voice 'nobody'; there are: "),
        (["show", "../anna"], "there is no voice '../anna'"),
        (["preview", "../anna", "--model", "fake"], "cannot be the name"),
        (["preview", "nobody", "--model", "fake"], "default"),
        (["remove", "nobody"], "there is no voice 'nobody'"),
        (["remove", "../anna"], "there is no voice"),
        (["add", "../anna", "--scene", "x"], "cannot be the name"),
        (["add", "a b", "--scene", "x"], "cannot be the name"),
        (["add", ".", "--scene", "x"], "cannot be the name"),
        (["add", "anna"], "a voice needs something"),
        (["add", "anna", "--ref", "anna.wav"], "--ref-text"),
        (["add", "anna", "--ref", "no.wav", "--ref-text", "x"], "no.wav"),
        (["add", "anna", "--ref", "anna.wav", "--ref-text", ""], "--ref-text is empty; write what is said in anna.wav"),
        (["add", "anna", "--ref", "anna.wav", "--ref-text", " \n"], "--ref-text is empty"),
        (["preview", "ada", "--model", "fake", "--out", "a.mp3"], "--out writes wav"),
        (["add", "anna", "--voice", "no.voice"], "no.voice"),
        (["add", "anna", "--voice", "no.voice", "--scene", "x"], "whole voice"),
        (
            ["add", "anna", "--scene", "x", "--voices", "anna.wav"],
            "cannot write to 'anna.wav': it is a file, and voices are kept in a folder",
        ),
    ],
)
def test_an_error_is_one_sentence(words: list[str], says: str) -> None:
    result = call("voices", *words, code=1)
    assert says in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not list(Path.cwd().rglob("*.voice"))


def test_a_name_is_taken_once_unless_it_is_forced() -> None:
    call("voices", "add", "anna", "--scene", "One.")
    assert "already" in call("voices", "add", "anna", "--scene", "Two.", code=1).stderr
    assert Voice.named("anna").scene == "One."
    call("voices", "add", "anna", "--scene", "Two.", "--force")
    assert Voice.named("anna").scene == "Two."


def test_a_saved_voice_becomes_a_preset(tmp_path: Path) -> None:
    Voice.create(name="other", scene="A church.").save("saved.voice")
    call("voices", "add", "bob", "--voice", "saved.voice")
    assert (Voice.named("bob").name, Voice.named("bob").scene) == ("bob", "A church.")


def test_serve_takes_the_users_folder_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = pytest.importorskip("higgs_voice.server.app")
    given: dict[str, Any] = {}
    monkeypatch.setattr(app, "serve", lambda model, **options: given.update(options))
    call("serve", "--model", "fake")
    assert given["voices"] is None
    call("voices", "add", "anna", "--scene", "x")
    call("serve", "--model", "fake")
    assert Path(given["voices"], "anna.voice").is_file()
    call("serve", "--model", "fake", "--voices", "elsewhere")
    assert given["voices"] == Path("elsewhere")


def test_bench_takes_a_name(engines: list[fake.FakeSynthesizer]) -> None:
    call("voices", "add", "anna", "--scene", "A hall.")
    options = {
        "latency": ["--turns", "1", "--pause", "0"],
        "bargein": ["--turns", "1"],
        "context": ["--turns", "1", "--pause", "0", "--window", "last_n"],
        "concurrency": ["--sessions", "1", "--seconds", "0.1", "--pause", "0"],
    }
    for name, some in options.items():
        found = call("bench", name, "--model", "fake", "--voice", "anna", "--json", *some)
        assert json.loads(found.stdout.splitlines()[-1])["voice"] == "anna"
        assert (engines[-1].requests[0].context.voice.scene or "").startswith("A hall.")
