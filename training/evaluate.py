"""Stage 9, what the voice is worth: figures, plots, and one JSON line last.

    python -m training.evaluate                    # everything: an hour on one busy core, minutes on a free one
    python -m training.evaluate --sentences 30 --turns 20 --clips 5

All speech comes through the engine as it ships (`create_backend("nano")`). What is measured:

- `wer_ratio`: word error (pocketsphinx) of sentences never trained on, over that of flite's slt and rms saying the same;
- `codec_wer_ratio`: word error of flite's speech after encode and decode, over that before;
- `similarity_slope`: change a turn of the speaker embedding's cosine (resemblyzer) to the first turns of a conversation;
- `obedience` (in the report): how often a description alone, and `[SPEAKERn]` in a dialogue of two, gives the voice asked for;
- `clone_accuracy`: how often, of the four training voices, the one in the reference clip is nearest to what is spoken;
- `rtf_one_core`: processor seconds for a second of speech;
- `runaways`: what did not end by itself, but at the limit of its length, in silence or without sound, of how many: of the single
  sentences, and of the turns of the conversation with and without the rolling context.
"""

import argparse
import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soxr
import torch
from numpy.typing import NDArray

from higgs_voice import Reference, Sampling, SessionSettings, Synthesizer, Voice, VoiceSession, Window, create_backend
from training.settings import EVALUATION_SEED, SAMPLE_RATE, VOICES
from training.speech import speak

HERE = Path(__file__).resolve().parent
PLOTS = HERE.parent / "docs" / "img"
DESCRIBED = {"slt": "feminine", "rms": "masculine"}
DESCRIPTIONS = {
    "slt": "feminine; american",
    "rms": "masculine; american",
    "awb": "masculine; scottish",
    "kal16": "masculine; robotic",
}
Samples = NDArray[np.float32]


def words(text: str) -> str:
    """Letters, apostrophes and single spaces only."""
    kept = "".join(c if c.isalpha() or c == "'" else " " for c in text.lower())
    return " ".join(kept.split()) or "nothing"


def recognized(audio: Samples) -> str:
    """What pocketsphinx reads in speech at 24 kHz."""
    from pocketsphinx import Decoder

    quiet = np.zeros(8000, np.float32)
    heard = np.concatenate([quiet, soxr.resample(audio, SAMPLE_RATE, 16_000), quiet])
    decoder = Decoder(samprate=16_000, loglevel="FATAL")
    decoder.start_utt()
    decoder.process_raw((heard * 32767).clip(-32768, 32767).astype(np.int16).tobytes(), full_utt=True)
    decoder.end_utt()
    return words(decoder.hyp().hypstr if decoder.hyp() else "")


def flite(text: str, voice: str) -> Samples:
    spoken = speak(text, voice)
    assert spoken is not None, text
    return spoken[0].astype(np.float32) / 32768


@dataclass(frozen=True, slots=True)
class Said:
    """One turn: its samples, and why each of its chunks ended."""

    audio: Samples
    reasons: tuple[str, ...]

    @property
    def ended(self) -> bool:
        """Whether every chunk of it ended by itself."""
        return all(reason == "eos" for reason in self.reasons)


def runaways(said: Sequence[Said]) -> dict[str, int]:
    """How many did not end by themselves, of how many."""
    return {"count": sum(not one.ended for one in said), "of": len(said)}


class Speaker:
    """The engine as a user has it."""

    def __init__(self, engine: Synthesizer, temperature: float | None) -> None:
        self.engine = engine
        self.sampling = Sampling(temperature=temperature, seed=EVALUATION_SEED, ras_win_len=None)

    async def conversation(self, texts: list[str], voice: Voice | None, window: Window | None = None) -> list[Said]:
        """Each text a turn of one session."""
        settings = SessionSettings(sampling=self.sampling, run_ahead_s=600.0, **({"window": window} if window else {}))
        said = []
        async with VoiceSession(self.engine, voice=voice, settings=settings) as session:
            for text in texts:
                speech = session.speak(text)
                pcm, reasons = [], []
                async for event in speech:
                    if hasattr(event, "pcm"):
                        pcm.append(event.pcm)
                    elif hasattr(event, "reason"):
                        reasons.append(str(event.reason))
                audio = np.frombuffer(b"".join(pcm), np.int16).astype(np.float32) / 32768
                session.settle(speech.id, len(audio) / SAMPLE_RATE)
                said.append(Said(audio, tuple(reasons)))
        return said


async def word_error(speaker: Speaker, sentences: list[str]) -> dict[str, object]:
    """Word error of the voice and of flite on the same sentences, half of them feminine and half masculine."""
    import jiwer

    told: dict[str, list[str]] = {name: [] for name in ("truth", "nano", "flite", "codec")}
    spoken: list[Said] = []
    seconds = audio_s = 0.0
    for number, text in enumerate(sentences):
        name = ("slt", "rms")[number % 2]
        begun = time.process_time()
        said = (await speaker.conversation([text], Voice.create(speakers=[DESCRIBED[name]])))[0]
        seconds += time.process_time() - begun
        audio_s += len(said.audio) / SAMPLE_RATE
        spoken.append(said)
        original = flite(text, name)
        again = await speaker.engine.decode(await speaker.engine.encode(original))
        told["truth"].append(words(text))
        for kind, audio in (("nano", said.audio), ("flite", original), ("codec", again)):
            told[kind].append(recognized(np.asarray(audio, np.float32)) if len(audio) > 2400 else "nothing")
        print(f"{name} | {text} | {told['nano'][-1]} | codec: {told['codec'][-1]} | {said.reasons}", flush=True)
    error = {kind: float(jiwer.wer(told["truth"], told[kind])) for kind in ("nano", "flite", "codec")}
    letters = {kind: float(jiwer.cer(told["truth"], told[kind])) for kind in ("nano", "flite", "codec")}
    return {
        "wer": error,
        "cer": letters,
        "wer_ratio": error["nano"] / error["flite"],
        "codec_wer_ratio": error["codec"] / error["flite"],
        "ended_otherwise": runaways(spoken)["count"],
        "runaways": runaways(spoken),
        "rtf_one_core": seconds / audio_s,
    }


def embeddings(clips: list[Samples]) -> np.ndarray:
    """Speaker embeddings [N, 256] of unit length."""
    from resemblyzer import VoiceEncoder

    encoder = VoiceEncoder("cpu", verbose=False)
    return np.stack([encoder.embed_utterance(soxr.resample(clip, SAMPLE_RATE, 16_000)) for clip in clips])


def pitch(audio: Samples) -> float:
    """Median fundamental frequency in Hz, by autocorrelation of 40 ms frames; 0 where nothing is voiced."""
    found = []
    for at in range(0, len(audio) - 1920, 480):
        frame = audio[at : at + 1920] - audio[at : at + 1920].mean()
        energy = float(frame @ frame)
        if energy < 0.5:
            continue
        spectrum = np.abs(np.fft.rfft(frame, 4096)) ** 2
        lags = np.fft.irfft(spectrum)[60:400] / energy
        if lags.max() > 0.5:
            found.append(SAMPLE_RATE / (60 + int(lags.argmax())))
    return float(np.median(found)) if found else 0.0


async def consistency(speaker: Speaker, sentences: list[str]) -> dict[str, object]:
    """A conversation with the rolling context and one without, neither told whose voice it is."""
    result: dict[str, object] = {}
    curves = {}
    for kind, window in (("context", None), ("none", Window.last_n(0))):
        said = await speaker.conversation(sentences, None, window)
        long = [(turn, one.audio) for turn, one in enumerate(said) if len(one.audio) > SAMPLE_RATE]
        vectors = embeddings([audio for _, audio in long])
        anchor = vectors[:3].mean(0)
        similar = vectors @ (anchor / np.linalg.norm(anchor))
        turns = np.array([turn for turn, _ in long])
        tones = np.array([12 * np.log2(max(pitch(audio), 40.0) / 100) for _, audio in long])
        curves[kind] = (turns, similar, tones)
        result[kind] = {
            "mean": float(similar.mean()),
            "neighbours": float((vectors[1:] * vectors[:-1]).sum(1).mean()),
            "slope": float(np.polyfit(turns, similar, 1)[0]),
            "f0_drift_semitones": float(np.polyfit(turns, tones, 1)[0] * (turns[-1] - turns[0])),
            "f0_sd_semitones": float(tones.std()),
            "runaways": runaways(said),
        }
    true = embeddings([flite(text, "slt") for text in sentences[:10]])
    result["one_true_voice"] = float((true[1:] * true[:-1]).sum(1).mean())
    plot(curves)
    return result


def plot(curves: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]) -> None:
    import matplotlib.pyplot as plt

    figure, (above, below) = plt.subplots(2, 1, figsize=(8, 5), sharex=True)
    for kind, (turns, similar, tones) in curves.items():
        name = "rolling context" if kind == "context" else "no context"
        above.plot(turns, similar, marker=".", label=name)
        below.plot(turns, tones, marker=".", label=name)
    above.set_ylabel("similarity")
    below.set_ylabel("pitch, semitones")
    below.set_xlabel("turn")
    above.legend()
    PLOTS.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(PLOTS / "nano-consistency.png", dpi=90)


async def cloning(speaker: Speaker, sentences: list[str], clips: int) -> dict[str, object]:
    """Reference clips of each voice: is the voice spoken with the one of the clip?"""
    centres = np.stack([embeddings([flite(text, voice) for text in sentences[20:28]]).mean(0) for voice in VOICES])
    right: dict[str, int] = {}
    for voice in VOICES:
        spoken = []
        for n in range(clips):
            text = sentences[30 + n] + " " + sentences[50 + n]
            reference = Reference.from_array(flite(text, voice), SAMPLE_RATE, text)
            target = sentences[70 + n] + " " + sentences[80 + n]
            spoken.append((await speaker.conversation([target], Voice(references=(reference,))))[0].audio)
        nearest = (embeddings(spoken) @ centres.T).argmax(1)
        right[voice] = int((nearest == VOICES.index(voice)).sum())
    return {"right": right, "of": clips, "clone_accuracy": sum(right.values()) / (clips * len(VOICES))}


async def obedience(speaker: Speaker, sentences: list[str], clips: int) -> dict[str, object]:
    """Whether the voice nearest to what is spoken is the one asked for: by a description alone, and of two speakers by `[SPEAKERn]`.

    Dialogues of `2 * clips` turns between slt and each of the others, by descriptions and by a clip of each.
    """
    centres = np.stack([embeddings([flite(text, voice) for text in sentences[20:28]]).mean(0) for voice in VOICES])
    described: dict[str, int] = {}
    dialogues: dict[str, dict[str, int]] = {"described": {}, "cloned": {}}
    for voice in VOICES:
        spoken = [
            (await speaker.conversation([f"{a} {b}"], Voice.create(speakers=[DESCRIPTIONS[voice]])))[0].audio
            for a, b in zip(sentences[:clips], sentences[clips : 2 * clips], strict=True)
        ]
        described[voice] = int(((embeddings(spoken) @ centres.T).argmax(1) == VOICES.index(voice)).sum())
    for other in VOICES[1:]:
        pair = ("slt", other)
        lines = [
            f"[SPEAKER{n % 2}] {a} {b}"
            for n, (a, b) in enumerate(zip(sentences[60 : 60 + 2 * clips], sentences[80 : 80 + 2 * clips], strict=True))
        ]
        texts = [sentences[30] + " " + sentences[50], sentences[31] + " " + sentences[51]]
        clones = tuple(
            Reference.from_array(flite(text, name), SAMPLE_RATE, text) for text, name in zip(texts, pair, strict=True)
        )
        for kind, cast in (
            ("described", Voice.create(speakers=[DESCRIPTIONS[name] for name in pair])),
            ("cloned", Voice(references=clones)),
        ):
            said = embeddings([one.audio for one in await speaker.conversation(lines, cast)])
            two = centres[[VOICES.index(name) for name in pair]]
            dialogues[kind][other] = int(((said @ two.T).argmax(1) == np.arange(len(lines)) % 2).sum())
    return {"described": described, "of": clips, "dialogues": dialogues, "turns": 2 * clips}


def spectra(sentence: str, said: Samples, again: Samples) -> None:
    """The same sentence by flite, through the codec, and by the voice."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(3, 1, figsize=(9, 7), sharex=True)
    for axis, (title, audio) in zip(
        axes, (("flite slt", flite(sentence, "slt")), ("encoded and decoded", again), ("nano", said)), strict=True
    ):
        axis.specgram(audio + 1e-6, NFFT=512, Fs=SAMPLE_RATE, noverlap=384, vmin=-140)
        axis.set_title(title, loc="left", fontsize=9)
        axis.set_ylim(0, 8000)
    figure.tight_layout()
    figure.savefig(PLOTS / "nano-spectra.png", dpi=80)


async def run(options: argparse.Namespace) -> dict[str, object]:
    sentences = (HERE / "held_out.txt").read_text().splitlines()
    engine = create_backend("nano")
    await engine.start()
    speaker = Speaker(engine, options.temperature)
    report: dict[str, object] = {}
    try:
        report["words"] = await word_error(speaker, sentences[: options.sentences])
        said = (await speaker.conversation([sentences[0]], Voice.create(speakers=["feminine"])))[0].audio
        PLOTS.mkdir(parents=True, exist_ok=True)
        spectra(sentences[0], said, np.asarray(await engine.decode(await engine.encode(flite(sentences[0], "slt")))))
        if options.turns:
            turns = [a + " " + b for a, b in zip(sentences[:100:2], sentences[1:100:2], strict=True)]
            report["voice"] = await consistency(speaker, turns[: options.turns])
        if options.clips:
            report["clone"] = await cloning(speaker, sentences, options.clips)
            report["obedience"] = await obedience(speaker, sentences, options.clips)
    finally:
        await engine.aclose()
    return report


def last_line(report: dict[str, Any]) -> dict[str, Any]:
    """What is published of a report; None for what was left out."""
    spoken, voice, clone = (report.get(name, {}) for name in ("words", "voice", "clone"))
    context, none = (voice.get(kind, {}) for kind in ("context", "none"))
    line = {
        "wer_ratio": spoken.get("wer_ratio"),
        "codec_wer_ratio": spoken.get("codec_wer_ratio"),
        "similarity_slope": context.get("slope"),
        "clone_accuracy": clone.get("clone_accuracy"),
        "rtf_one_core": spoken.get("rtf_one_core"),
    }
    return {name: None if value is None else round(value, 4) for name, value in line.items()} | {
        "runaways": {
            "sentences": spoken.get("runaways"),
            "turns": context.get("runaways"),
            "turns_without_context": none.get("runaways"),
        }
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sentences", type=int, default=100)
    parser.add_argument("--turns", type=int, default=50, help="of the conversation; 0 leaves it out")
    parser.add_argument("--clips", type=int, default=5, help="references of each voice; 0 leaves cloning out")
    parser.add_argument("--temperature", type=float, help="unless given, what the checkpoint recommends")
    options = parser.parse_args()
    torch.set_num_threads(1)
    report = asyncio.run(run(options))
    print(json.dumps(report, indent=1))
    print(json.dumps(last_line(report)))


if __name__ == "__main__":
    main()
