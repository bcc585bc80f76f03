"""Voices: what people write becomes a prompt, and a saved voice is the same voice."""

from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from higgs_voice import Reference, Voice
from higgs_voice.backends.fake import FakeSynthesizer
from higgs_voice.errors import VoiceFileError


def clip(text: str = "What the clip says.", seed: int = 0) -> Reference:
    samples = np.random.default_rng(seed).normal(0, 0.1, 24000).astype(np.float32)
    return Reference.from_array(np.clip(samples, -1, 1), 24000, text)


def test_descriptions_are_numbered_unless_they_are() -> None:
    voice = Voice.create(speakers=["warm", "SPEAKER3: deep", " ", "calm"])
    assert voice.speaker_lines == ("SPEAKER0: warm", "SPEAKER3: deep", "SPEAKER2: calm")
    assert Voice.create(speakers="warm").speaker_lines == ("SPEAKER0: warm",)


async def test_several_clips_are_told_apart_in_the_prompt() -> None:
    engine = FakeSynthesizer()
    one = await Voice.create(references=clip()).prompt(engine)
    assert [item.text for item in one.references] == ["What the clip says."]
    two = await Voice.create(references=[clip("One.", 1), clip("Two.", 2)]).prompt(engine)
    assert [item.text for item in two.references] == ["[SPEAKER0] One.", "[SPEAKER1] Two."]
    assert two.references[0].codes.shape == (8, 25)


async def test_a_saved_voice_is_the_same_voice(tmp_path: Path) -> None:
    engine = FakeSynthesizer()
    voice = Voice.create(
        name="anna", scene="A quiet room.", speakers="warm; ä", references=[clip("One.", 1), clip("Two.", 2)]
    )
    voice = await voice.resolve(engine)
    voice.save(tmp_path / "anna.voice")
    again = Voice.load(tmp_path / "anna.voice")
    assert (again.name, again.scene, again.speakers, again.system) == (
        voice.name,
        voice.scene,
        voice.speakers,
        voice.system,
    )
    for ours, theirs in zip(again.references, voice.references, strict=True):
        assert ours.text == theirs.text
        assert ours.codec == theirs.codec
        assert ours.codes is not None
        assert theirs.codes is not None
        assert np.array_equal(ours.codes, theirs.codes)
        assert np.abs(ours.pcm - theirs.pcm).max() < 1e-4


async def test_a_clip_is_encoded_once_for_each_codec() -> None:
    class Counting(FakeSynthesizer):
        encoded = 0

        async def encode(self, pcm: np.ndarray) -> np.ndarray:
            self.encoded += 1
            return await super().encode(pcm)

    engine = Counting()
    voice = await Voice.create(references=clip()).resolve(engine)
    await voice.resolve(engine)
    assert engine.encoded == 1


def test_a_file_that_is_no_voice_says_so(tmp_path: Path) -> None:
    with pytest.raises(VoiceFileError, match="does not exist"):
        Voice.load(tmp_path / "nobody.voice")
    (tmp_path / "text.voice").write_text("hello")
    with pytest.raises(VoiceFileError, match="cannot be read"):
        Voice.load(tmp_path / "text.voice")
    with zipfile.ZipFile(tmp_path / "other.voice", "w") as archive:
        archive.writestr("voice.json", '{"format": "something/9"}')
    with pytest.raises(VoiceFileError, match="something/9"):
        Voice.load(tmp_path / "other.voice")
    voice = Voice.create(references=clip())
    voice.save(tmp_path / "cut.voice")
    data = (tmp_path / "cut.voice").read_bytes()
    (tmp_path / "cut.voice").write_bytes(data[: len(data) // 2])
    with pytest.raises(VoiceFileError, match="cannot be read"):
        Voice.load(tmp_path / "cut.voice")


async def test_clips_may_stand_in_the_scene(tmp_path: Path) -> None:
    clip = Reference("Mine.", np.zeros(0, dtype=np.float32), np.ones((8, 5), dtype=np.int16), "tones")
    voice = Voice.create(speakers="warm", references=[clip, clip], references_in_scene=True)
    assert voice.speaker_lines == ("SPEAKER2: warm",)
    voice.save(tmp_path / "saved")
    prompt = Voice.load(tmp_path / "saved")._prompt()
    assert prompt.references_in_scene
    assert [item.text for item in prompt.references] == ["Mine.", "Mine."]
    silent = replace(voice, system=None)._prompt()
    assert not silent.references_in_scene
