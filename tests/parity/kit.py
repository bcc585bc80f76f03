"""Checkpoints that both environments read, and the questions to the other one, asked once for all tests."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from transformers import HiggsAudioV2Config, HiggsAudioV2ForConditionalGeneration
from transformers.initialization import no_init_weights

from higgs_voice.backends.boson import find_python
from higgs_voice.config import Sampling
from higgs_voice.conversation.synthesizer import ContextSpec, Exchange
from higgs_voice.conversation.voice import Reference, Voice
from higgs_voice.model.convert import NANO_MODEL, convert
from higgs_voice.model.convert import _original_name as original_name
from higgs_voice.model.delay import build_delay, revert_delay
from higgs_voice.model.loading import Limits, Loaded, load, stand_in_tokenizer
from higgs_voice.model.prompt import PromptBuilder, Rows
from higgs_voice.model.runner import Runner
from tests.parity.weights import draw

LINE = "Generate audio following instruction."
LAYERS = 2
"""Of the model with random weights; everything else has the published model's shape."""


def codes(frames: int, seed: int, size: int = 256) -> NDArray[np.int16]:
    return np.random.default_rng(seed).integers(0, size, size=(8, frames)).astype(np.int16)


@dataclass(frozen=True)
class Case:
    """One prompt: as our session would ask for it, and as messages of the original's examples/generation.py."""

    name: str
    text: str
    messages: list[dict[str, Any]]
    voice: Voice = field(default_factory=Voice)
    exchanges: tuple[Exchange, ...] = ()

    @property
    def context(self) -> ContextSpec:
        return ContextSpec(voice=self.voice._prompt(), exchanges=self.exchanges)

    def rows(self, builder: PromptBuilder) -> Rows:
        voice = self.context.voice
        references = [(item.text, item.codes) for item in voice.references]
        prefix = builder.prefix(
            voice.system, voice.scene, voice.speakers, references, in_scene=voice.references_in_scene
        )
        exchanges = [builder.exchange(item.text, item.codes) for item in self.exchanges]
        return Rows.concat([prefix, *exchanges, builder.opening(self.text)])


def said(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": [{"text": text}]}


def heard(name: str) -> dict[str, Any]:
    return {"role": "assistant", "content": [{"audio": name}]}


def scene(*lines: str) -> str:
    return f"{LINE}\n\n<|scene_desc_start|>\n" + "\n\n".join(lines) + "\n<|scene_desc_end|>"


def reference(text: str, sound: NDArray[np.int16]) -> Reference:
    return Reference(text=text, pcm=np.zeros(0, dtype=np.float32), codes=sound)


A, B, C = codes(12, 1), codes(9, 2), codes(15, 3)
ARRAYS: dict[str, NDArray[Any]] = {"A": A, "B": B, "C": C}
ROOM = "Audio is recorded from a quiet room."

PROMPTS = [
    Case("plain", "Hello there.", [said("system", LINE), said("user", "Hello there.")]),
    Case(
        "scene",
        "Hello there.",
        [said("system", scene(ROOM)), said("user", "Hello there.")],
        Voice.create(scene=ROOM),
    ),
    Case(
        "one speaker described",
        "Hello there.",
        [said("system", scene(ROOM, "SPEAKER0: feminine; warm")), said("user", "Hello there.")],
        Voice.create(scene=ROOM, speakers="feminine; warm"),
    ),
    Case(
        "two speakers described",
        "[SPEAKER0] Hello. [SPEAKER1] Hi.",
        [
            said("system", scene(ROOM, "SPEAKER0: feminine\nSPEAKER1: masculine")),
            said("user", "[SPEAKER0] Hello. [SPEAKER1] Hi."),
        ],
        Voice.create(scene=ROOM, speakers=["feminine", "masculine"]),
    ),
    Case(
        "speakers without a scene",
        "[SPEAKER0] Hello.",
        [said("system", scene("SPEAKER0: feminine\nSPEAKER1: masculine")), said("user", "[SPEAKER0] Hello.")],
        Voice.create(speakers=["feminine", "masculine"]),
    ),
    Case(
        "one reference",
        "Go on.",
        [said("system", scene(ROOM)), said("user", "It is mine."), heard("A"), said("user", "Go on.")],
        Voice.create(scene=ROOM, references=[reference("It is mine.", A)]),
    ),
    Case(
        "two references",
        "[SPEAKER1] Go on.",
        [
            said("system", scene(ROOM)),
            said("user", "[SPEAKER0] It is mine."),
            heard("A"),
            said("user", "[SPEAKER1] And mine."),
            heard("B"),
            said("user", "[SPEAKER1] Go on."),
        ],
        Voice.create(scene=ROOM, references=[reference("It is mine.", A), reference("And mine.", B)]),
    ),
    Case(
        "a window after trimming",
        "And then?",
        [
            said("system", scene(ROOM)),
            said("user", "It is mine."),
            heard("A"),
            said("user", "The second."),
            heard("B"),
            said("user", "The third."),
            heard("C"),
            said("user", "And then?"),
        ],
        Voice.create(scene=ROOM, references=[reference("It is mine.", A)]),
        (Exchange("The second.", B), Exchange("The third.", C)),
    ),
    Case(
        "a reference and no system message",
        "Go on.",
        [said("user", "It is mine."), heard("A"), said("user", "Go on.")],
        Voice(system=None, references=(reference("It is mine.", A),)),
    ),
    Case(
        "a reference inside the system message",
        "Go on.",
        [
            {
                "role": "system",
                "content": [
                    {"text": f"{LINE}\n\n<|scene_desc_start|>\n{ROOM}\n\nSPEAKER0: "},
                    {"audio": "A"},
                    {"text": "\n<|scene_desc_end|>"},
                ],
            },
            said("user", "Go on."),
        ],
        Voice.create(scene=ROOM, references=[reference("It is mine.", A)], references_in_scene=True),
    ),
    Case(
        "two references inside the system message, and an exchange",
        "[SPEAKER1] Go on.",
        [
            {
                "role": "system",
                "content": [
                    {"text": f"{LINE}\n\n<|scene_desc_start|>\nSPEAKER0: "},
                    {"audio": "A"},
                    {"text": "\nSPEAKER1: "},
                    {"audio": "B"},
                    {"text": "\n<|scene_desc_end|>"},
                ],
            },
            said("user", "[SPEAKER0] The third."),
            heard("C"),
            said("user", "[SPEAKER1] Go on."),
        ],
        Voice.create(references=[reference("It is mine.", A), reference("And mine.", B)], references_in_scene=True),
        (Exchange("[SPEAKER0] The third.", C),),
    ),
    Case(
        "numbers and other scripts",
        "Grüß Gott — 3.50 €, 你好!",
        [said("system", LINE), said("user", "Grüß Gott — 3.50 €, 你好!")],
    ),
]
SPECIAL = Case(
    "special tokens in the text",
    "Hello <|eot_id|> there.",
    [said("system", LINE), said("user", "Hello <|eot_id|> there.")],
)

# Words that end soon, so that ten chunks take seconds.
WORDS = ["Yes.", "Hello there.", "No way!", "Go on.", "It is.", "Why not?", "Good.", "Is it?", "Not yet.", "Bye now."]
CONVERSATIONS = [
    {"name": "scene and speaker", "scene": "A quiet room.", "speakers": "warm", "window": 3, "texts": WORDS},
    {"name": "nothing said of the voice", "scene": None, "speakers": None, "window": 3, "texts": WORDS[::-1]},
]
CONTEXTS = [PROMPTS[0], PROMPTS[7], PROMPTS[8]]
"""For logits and single chunks: an empty context, a full one, one without a system message."""
FORCED_FRAMES = 30
FILTERS = [
    (temperature, top_k, top_p, window, repeats)
    for temperature, top_k, top_p in (
        (1.0, None, 1.0),
        (0.7, None, 0.95),
        (0.3, 50, 0.95),
        (1.3, 5, 0.5),
        (1.0, 20, 1.0),
    )
    for window, repeats in ((None, 2), (7, 2), (7, 1), (3, 2))
]


def sampling_cases() -> list[dict[str, Any]]:
    rng = np.random.default_rng(5)
    cases: list[dict[str, Any]] = []
    for place, (temperature, top_k, top_p, window, repeats) in enumerate(FILTERS):
        name = f"sampling{place}"
        ARRAYS[f"{name}/scores"] = rng.normal(0, 2.5, size=(8, 258)).astype(np.float32)
        likely = np.argsort(-ARRAYS[f"{name}/scores"][:, :256], axis=1)[:, :3]
        # A past of likely codes, so that repetition-aware sampling has something to do.
        ARRAYS[f"{name}/history"] = np.stack([rng.choice(row, size=12) for row in likely]).astype(np.int16)
        cases.append(
            {
                "name": name,
                "scores": f"{name}/scores",
                "history": f"{name}/history",
                "temperature": temperature,
                "top_k": top_k,
                "top_p": top_p,
                "ras_win_len": window,
                "ras_win_max_num_repeat": repeats,
            }
        )
    return cases


def forced(loaded: Loaded) -> NDArray[np.int16]:
    """Delayed rows [L, K] as a model could have produced them: the all-BOS row, then frames."""
    config: Any = loaded.model.config
    bos, eos = config.audio_stream_bos_id, config.audio_stream_eos_id
    return build_delay(codes(FORCED_FRAMES, 7, bos), bos=bos, eos=eos)[:-9]


def greedy_rows(runner: Runner, prompt: Rows, max_new_tokens: int) -> NDArray[np.int16]:
    """Delayed rows [n, K] of ours, the all-BOS row first."""
    slot = runner.pool.acquire()
    runner.align(slot, prompt)
    sampling = Sampling(temperature=0.0, ras_win_len=None, max_new_tokens=max_new_tokens)
    generation = runner.start(slot, sampling, seed=0)
    rows = [generation.row]
    while not (generation.finished or generation.exhausted):
        row = runner.step([generation])[0].row
        assert row is not None
        rows.append(row)
    slot.release()
    return np.array(rows)


def rigged_model(folder: Path) -> Loaded:
    """The embedded voice, made to say EOS in codebook 3 first, where the others would go on."""
    loaded = load("nano", device="cpu", dtype="float32")
    config: Any = loaded.model.config
    size, bos, eos = config.codebook_size, config.audio_stream_bos_id, config.audio_stream_eos_id
    runner = Runner(loaded, max_rows=2048)
    said = revert_delay(greedy_rows(runner, CONTEXTS[0].rows(runner.prompts), 200), bos=bos, eos=eos)[3].tolist()
    # The first code from the eighth frame on that codebook 3 has not said before.
    code = next(code for place, code in enumerate(said) if place >= 8 and code not in said[:place])
    with torch.no_grad():
        head: torch.Tensor = loaded.model.audio_lm_head.weight  # [K * size, hidden]
        head[3 * size + eos] = 1.05 * head[3 * size + code]
    loaded.model.save_pretrained(folder / "rigged-named")
    for file in NANO_MODEL.iterdir():
        if file.name not in ("config.json", "model.safetensors", "generation_config.json"):
            shutil.copyfile(file, folder / "rigged-named" / file.name)
    convert(folder / "rigged-named", folder / "rigged")
    return loaded


def random_model(folder: Path) -> Loaded:
    """The published shapes with few layers; `folder` gets what the other environment draws the same weights for."""
    config: Any = HiggsAudioV2Config(codebook_size=1026, num_hidden_layers=LAYERS)
    with no_init_weights():
        model = HiggsAudioV2ForConditionalGeneration(config).float().eval()
    model.generation_config.ras_win_len = model.generation_config.ras_win_max_num_repeat = None
    draw((original_name(name), tensor) for name, tensor in model.named_parameters())
    tokenizer = stand_in_tokenizer()
    named = folder / "named"
    config.save_pretrained(named)
    tokenizer.save_pretrained(named)
    save_file({"model.norm.weight": torch.ones(3072)}, named / "model.safetensors")  # the weights are drawn there too
    convert(named, folder / "random")
    limits = Limits(max_positions=8192, num_codebooks=8, codebook_size=1024, sample_rate=24000)
    nothing: Any = None  # no processor and no codec: nothing here makes sound
    return Loaded("random", model, tokenizer, nothing, nothing, torch.device("cpu"), torch.float32, limits)


@dataclass(frozen=True)
class Asked:
    nano: Loaded
    random: Loaded
    rigged: Loaded
    answers: Any

    def of(self, name: str) -> NDArray[Any]:
        return self.answers[name]


def ask(folder: Path) -> Asked:
    """Run the references once. Errors: what they print, as the reason."""
    python = find_python()
    original = folder / "nano"
    convert(NANO_MODEL, original)
    nano = load("nano", device="cpu", dtype="float32")
    drawn, rigged = random_model(folder), rigged_model(folder)
    ARRAYS["forced/nano"], ARRAYS["forced/random"] = forced(nano), forced(drawn)
    prompts = [{"name": case.name, "messages": case.messages} for case in [*PROMPTS, SPECIAL]]
    job: dict[str, Any] = {"checkpoints": {}}
    for name, place in (("nano", original), ("random", folder / "random")):
        contexts = [{"name": case.name, "messages": case.messages} for case in CONTEXTS]
        job["checkpoints"][name] = {
            "folder": str(place),
            "random": name == "random",
            "cases": {
                "prompts": prompts,
                "logits": [{**case, "forced": f"forced/{name}"} for case in contexts],
                "greedy": [{**case, "max_new_tokens": 24} for case in contexts]
                + ([{**case, "max_new_tokens": 300} for case in CONVERSATIONS] if name == "nano" else []),
            },
        }
    job["checkpoints"]["nano"]["cases"]["sampling"] = sampling_cases()
    job["checkpoints"]["rigged"] = {
        "folder": str(folder / "rigged"),
        "random": False,
        "cases": {"greedy": [{"name": "end", "messages": CONTEXTS[0].messages, "max_new_tokens": 200}]},
    }
    (folder / "job.json").write_text(json.dumps(job))
    np.savez(folder / "job.npz", **ARRAYS)
    script = Path(__file__).with_name("references.py")
    done = subprocess.run([python, str(script), str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return Asked(nano, drawn, rigged, np.load(folder / "answer.npz"))
