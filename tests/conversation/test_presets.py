"""Voices by name: the folder, what ships, the server's, and that a name is never a path."""

from __future__ import annotations

import contextlib
import io
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from higgs_voice import Reference, Voice
from higgs_voice.audio import write_wav
from higgs_voice.backends.fake import FakeSynthesizer
from higgs_voice.config import voices_folder
from higgs_voice.conversation import voice as voice_module
from higgs_voice.conversation.presets import NAME, Presets, check_name, find_voice
from higgs_voice.errors import RefusedError, VoiceError, VoiceFileError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HIGGS_VOICE_VOICES", str(tmp_path / "voices"))
    assert voices_folder() == tmp_path / "voices"
    return tmp_path / "voices"


def clip(text: str = "What the clip says.") -> Reference:
    samples = np.random.default_rng(0).normal(0, 0.1, 24000).astype(np.float32)
    return Reference.from_array(np.clip(samples, -1, 1), 24000, text)


class Knowing(FakeSynthesizer):
    """An engine with a voice of its own, as a server has."""

    def __init__(self, **voices: Voice) -> None:
        super().__init__()
        self.voices = voices
        self.asked: list[str] = []

    async def voice(self, name: str) -> Voice:
        self.asked.append(name)
        if name not in self.voices:
            raise RefusedError(f"this server has no voice {name!r}; it has: {', '.join(self.voices)}")
        return self.voices[name]


def test_what_ships_can_be_used_and_is_small() -> None:
    shipped = Presets(None).all()
    assert list(shipped) == ["ada", "ewan", "helpdesk", "ross"]
    for name, preset in shipped.items():
        voice = preset.load()
        assert voice.name == name
        assert voice.speakers
        assert preset.file.stat().st_size < 100_000
    assert Voice.named("default").speakers == ()


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "a\\b", "/etc/passwd", "a b", "a.voice", "-a", "ä", "a" * 65, "a\n"]
)
def test_a_name_is_never_a_path(name: str, folder: Path) -> None:
    with pytest.raises(VoiceError, match="cannot be the name"):
        check_name(name)
    with pytest.raises(VoiceError, match="cannot be the name"):
        Presets(folder).add(name, Voice(scene="x"))
    assert not folder.exists()
    for ask in (Presets(folder).get, Presets(folder).remove):
        with pytest.raises(VoiceError, match=r"there is no voice .*; there are: ada, default"):
            ask(name)


@given(st.text(max_size=70))
def test_every_name_that_passes_is_one_file(name: str) -> None:
    if NAME.fullmatch(name):
        assert Path(name).name == name
        assert Path(name).stem == name
        assert (Path("/base") / name).resolve().parent == Path("/base")


async def test_what_people_mean(folder: Path, tmp_path: Path) -> None:
    Presets(folder).add("anna", Voice(scene="The folder's."))
    Voice(scene="A file's.").save(tmp_path / "x.voice")
    assert (await find_voice("anna")).scene == "The folder's."
    assert (await find_voice(str(tmp_path / "x.voice"))).scene == "A file's."
    assert (await find_voice(tmp_path / "x.voice")).scene == "A file's."
    assert (await find_voice("ross")).speakers == ("masculine; american",)
    assert (await find_voice("feminine; warm")).speakers == ("feminine; warm",)
    assert (await find_voice("a warm voice")).speakers == ("a warm voice",)
    assert await find_voice("default") is not None
    for path in ("no/where", "nobody.voice", "./anna"):
        with pytest.raises(VoiceFileError, match="does not exist"):
            await find_voice(path)
    with pytest.raises(VoiceError, match=r"there is no voice 'anne'; there are: ada, anna, .*speakers"):
        await find_voice("anne")


async def test_the_folder_goes_before_the_server_and_the_server_before_what_ships(folder: Path) -> None:
    engine = Knowing(anna=Voice(scene="Server's."), ada=Voice(scene="Server's."), carl=Voice(scene="Server's."))
    Presets(folder).add("anna", Voice(scene="Folder's."))
    assert (await find_voice("anna", engine)).scene == "Folder's."
    assert engine.asked == []
    assert (await find_voice("ada", engine)).scene == "Server's."
    assert (await find_voice("carl", engine)).scene == "Server's."
    assert (await find_voice("ross", engine)).speakers == ("masculine; american",)
    with pytest.raises(
        VoiceError, match=r"there are: ada, anna, .*; this server has no voice 'anne'; it has: anna, ada, carl"
    ):
        await find_voice("anne", engine)


def test_a_folder_that_changes_is_seen(folder: Path) -> None:
    presets = Presets(folder)
    assert presets.names() == Presets(None).names()
    file = presets.add("anna", Voice(name="something else", scene="One."))
    assert (presets.get("anna").name, presets.get("anna").scene) == ("anna", "One.")
    with pytest.raises(VoiceError, match="already"):
        presets.add("anna", Voice(scene="Two."))
    presets.add("anna", Voice(scene="Two."), replace_old=True)
    assert presets.get("anna").scene == "Two."
    assert list(folder.iterdir()) == [file]  # no half files left
    write_wav(folder / "bob.wav", bytes(range(256)) * 200)
    assert "bob" not in presets.names()
    (folder / "bob.txt").write_text(" What Bob says. ")
    assert presets.get("bob").references[0].text == "What Bob says."
    (folder / "bob.txt").write_text(" ")
    with pytest.raises(VoiceFileError, match="empty"):
        presets.get("bob")
    assert {file.name for file in presets.remove("bob")} == {"bob.wav", "bob.txt"}
    presets.remove("anna")
    assert presets.names() == Presets(None).names()
    with pytest.raises(VoiceError, match="comes with the package"):
        presets.remove("ada")


async def test_a_voice_without_its_sound_speaks_through_its_codec_and_no_other() -> None:
    class Other(FakeSynthesizer):
        @property
        def info(self):  # type: ignore[no-untyped-def]
            return replace(super().info, codec_fingerprint="other")

    voice = await Voice.create(name="anna", references=clip()).resolve(FakeSynthesizer())
    again = Voice.from_bytes(voice.without_sound().to_bytes())
    assert not len(again.references[0].pcm)
    assert again.references[0].seconds == 1.0
    ours, theirs = await again.prompt(FakeSynthesizer()), await voice.prompt(FakeSynthesizer())
    assert np.array_equal(ours.references[0].codes, theirs.references[0].codes)
    assert (await voice.resolve(Other())).references[0].codec == "other"
    with pytest.raises(VoiceError, match="'anna' is kept as codes of another codec"):
        await again.resolve(Other())


def test_the_same_voice_is_the_same_file() -> None:
    assert (
        Voice.create(scene="x", references=clip()).to_bytes() == Voice.create(scene="x", references=clip()).to_bytes()
    )


async def _saved() -> bytes:
    return (await Voice.create(name="anna", scene="A hall.", references=clip()).resolve(FakeSynthesizer())).to_bytes()


async def test_what_is_no_voice_is_one_error_whatever_it_is() -> None:
    data = await _saved()

    @settings(max_examples=150, deadline=None)
    @given(st.data())
    def damaged(draw: st.DataObject) -> None:
        at = draw.draw(st.integers(0, len(data) - 1))
        value = draw.draw(st.integers(0, 255))
        cut = draw.draw(st.sampled_from([None, at]))
        bad = (data[:at] + bytes([value]) + data[at + 1 :])[:cut]
        with contextlib.suppress(VoiceFileError):  # and no other error
            Voice.from_bytes(bad, source="it")

    damaged()


def packed(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name.replace("_", "."), data)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("meta", "says"),
    [
        (b"[]", "has format None"),
        (b"{", "cannot be read"),
        (b"[" * 100_000, "cannot be read"),
        (b'{"format": "higgs-voice/voice/2"}', "higgs-voice/voice/2"),
        (b'{"format": "higgs-voice/voice/1"}', "name"),
        (b'{"format": "higgs-voice/voice/1", "name": "x", "speakers": "warm"}', "speakers"),
        (b'{"format": "higgs-voice/voice/1", "name": "x", "more": 1}', "more"),
        (b'{"format": "higgs-voice/voice/1", "name": "x", "references": [{"text": "Hi."}]}', "pcm0"),
    ],
)
def test_what_a_voice_file_must_hold(meta: bytes, says: str) -> None:
    with pytest.raises(VoiceFileError, match=says):
        Voice.from_bytes(packed(voice_json=meta))


def test_a_file_that_grows_when_it_is_unpacked_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(voice_module, "MAX_FILE", 100_000)
    with pytest.raises(VoiceFileError, match="when unpacked"):
        Voice.from_bytes(packed(voice_json=b"{}", pcm0_npy=bytes(200_000)))
    with pytest.raises(VoiceFileError, match="at most"):
        Voice.from_bytes(bytes(200_000))
