"""What boson_multimodal itself says, asked in the environment that has it.

    .venv-boson/bin/python tests/parity/references.py FOLDER

FOLDER holds ``job.json`` and ``job.npz``; ``answer.npz`` is written there. Prompts come from the package's
`prepare_chatml_sample` and collator, logits and tokens from its model class, probabilities from its `_sample_audio_tokens`.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "plugin"))

# ruff: noqa: E402 - the package and the tests are found where they lie
from boson_multimodal.data_types import ChatMLSample, Message, TextContent
from boson_multimodal.model.higgs_audio import HiggsAudioConfig, HiggsAudioModel
from transformers.modeling_utils import no_init_weights
from weights import draw

from higgs_voice.backends import boson_serving as serving


def engine_of(checkpoint: dict[str, Any]) -> Any:
    """The package's own engine without its codec, on a checkpoint or on weights drawn by name."""
    folder = checkpoint["folder"]

    def drawn(path: str, **_: Any) -> Any:
        with no_init_weights():
            model = HiggsAudioModel(HiggsAudioConfig.from_pretrained(path)).float().eval()
        draw(model.named_parameters())
        return model

    with serving.without_codec():
        make = serving.package.HiggsAudioServeEngine
        if not checkpoint["random"]:
            return make(folder, "", device="cpu", torch_dtype=torch.float32)
        with mock.patch.object(HiggsAudioModel, "from_pretrained", drawn):
            return make(folder, "", device="cpu", torch_dtype=torch.float32)


def sample_of(messages: list[dict[str, Any]], arrays: Any) -> ChatMLSample:
    out: list[Message] = []
    for message in messages:
        parts: list[Any] = []
        for part in message["content"]:
            if "audio" in part:
                parts.append(
                    serving.Codes(audio_url="", codes=torch.from_numpy(arrays[part["audio"]].astype(np.int64)))
                )
            else:
                parts.append(TextContent(part["text"]))
        out.append(Message(role=message["role"], content=parts))
    return ChatMLSample(messages=out)


def rows_of(inputs: dict[str, Any], audio_out: int, audio_in: int) -> dict[str, np.ndarray]:
    """The package's batch as one row a position: token, codes, and whether it is audio."""
    tokens, codes, audio = [], [], []
    ids, starts = inputs["audio_out_ids"], inputs["audio_out_ids_start"]
    inside, inside_starts = inputs["audio_in_ids"], inputs["audio_in_ids_start"]
    books = 8
    place = {audio_out: 0, audio_in: 0}

    def piece(all_ids: torch.Tensor, begins: torch.Tensor, which: int) -> np.ndarray:
        end = int(begins[which + 1]) if which + 1 < len(begins) else all_ids.shape[1]
        return all_ids[:, int(begins[which]) : end].numpy().T

    for token in inputs["input_ids"][0].tolist():
        if token in place:
            source = (ids, starts) if token == audio_out else (inside, inside_starts)
            delayed = piece(*source, place[token])
            place[token] += 1
            tokens += [token] * len(delayed)
            codes += [*delayed]
            audio += [True] * len(delayed)
        else:
            tokens.append(token)
            codes.append(np.zeros(books, dtype=np.int64))
            audio.append(False)
    return {"tokens": np.array(tokens), "codes": np.array(codes, dtype=np.int16), "audio": np.array(audio)}


def prompts(engine: Any, cases: list[dict[str, Any]], arrays: Any) -> dict[str, np.ndarray]:
    config = engine.model.config
    out: dict[str, np.ndarray] = {}
    for case in cases:
        inputs = serving.prepare_inputs(engine, sample_of(case["messages"], arrays), force_audio_gen=True)
        rows = rows_of(inputs, config.audio_out_token_idx, config.audio_in_token_idx)
        out |= {f"{case['name']}/{key}": value for key, value in rows.items()}
    return out


@torch.inference_mode()
def logits(engine: Any, cases: list[dict[str, Any]], arrays: Any) -> dict[str, np.ndarray]:
    """Audio logits [L, K, V] after every row of a forced continuation."""
    out: dict[str, np.ndarray] = {}
    for case in cases:
        inputs = serving.prepare_inputs(engine, sample_of(case["messages"], arrays), force_audio_gen=True)
        forced = torch.from_numpy(arrays[case["forced"]].astype(np.int64)).T  # [K, L]
        before = inputs["audio_out_ids"]
        token = torch.tensor([[engine.model.config.audio_out_token_idx]])
        inputs["input_ids"] = torch.cat([inputs["input_ids"], token], dim=1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        some = before is not None and before.shape[-1] > 0
        starts = inputs["audio_out_ids_start"] if some else torch.zeros(0, dtype=torch.long)
        inputs["audio_out_ids_start"] = torch.cat([starts, torch.tensor([before.shape[1] if some else 0])])
        inputs["audio_out_ids"] = torch.cat([before, forced], dim=1) if some else forced
        for key in ("label_ids", "label_audio_ids", "reward", "audio_out_ids_start_group_loc"):
            inputs.pop(key)
        given = engine.model(**inputs, use_cache=False, return_dict=True).audio_logits
        out[f"{case['name']}/logits"] = given[-forced.shape[1] :].float().numpy()
    return out


def greedy(engine: Any, cases: list[dict[str, Any]], arrays: Any) -> dict[str, np.ndarray]:
    """Delayed rows of single chunks, and the codes of conversations by the documented generator."""
    out: dict[str, np.ndarray] = {}

    async def chunk(case: dict[str, Any]) -> np.ndarray:
        stream = serving.generate_delta_stream(
            engine,
            sample_of(case["messages"], arrays),
            max_new_tokens=case["max_new_tokens"],
            temperature=0.0,
            ras_win_len=None,
            force_audio_gen=True,
        )
        return np.array([item.audio_tokens.numpy() async for item in stream if item.audio_tokens is not None])

    async def conversation(case: dict[str, Any]) -> None:
        voice = serving.StreamingVoiceGenerator(
            engine, case["scene"], case["speakers"], generation_chunk_buffer_size=case["window"]
        )
        for place, text in enumerate(case["texts"]):
            stream = voice.generate_streaming(
                [text], temperature=0.0, ras_win_len=None, max_new_tokens=case["max_new_tokens"]
            )
            async for _ in stream:
                pass
            out[f"{case['name']}/{place}"] = voice.generated_audio_ids[-1].numpy()
            assert len(voice.generated_audio_ids) <= case["window"]

    for case in cases:
        if "texts" in case:
            asyncio.run(conversation(case))
        else:
            out[f"{case['name']}/rows"] = asyncio.run(chunk(case))
    return out


def sampling(engine: Any, cases: list[dict[str, Any]], arrays: Any) -> dict[str, np.ndarray]:
    """The exact distribution of the next row's codes, [K, V].

    The package's method is run once for every code with that code forced to be drawn; what it hands to `multinomial` says
    with which probability that happens, and whether and from which probabilities it draws again.
    """
    out: dict[str, np.ndarray] = {}
    model = engine.model
    for case in cases:
        scores = torch.from_numpy(arrays[case["scores"]])  # [K, V]
        history = torch.from_numpy(arrays[case["history"]].astype(np.int64))  # [K, n]
        settings = model.generation_config.__class__(
            do_sample=True, temperature=case["temperature"], top_k=case["top_k"] or 0, top_p=case["top_p"]
        )
        settings.generation_kwargs = {
            "ras_win_len": case["ras_win_len"],
            "ras_win_max_num_repeat": case["ras_win_max_num_repeat"],
        }
        processor = warpers(model, settings)
        books, size = scores.shape
        first = np.zeros((books, size))
        again = np.zeros((books, size), dtype=bool)
        raw = np.zeros((books, size))
        for code in range(size - 2):
            seen: list[torch.Tensor] = []

            def forced(
                probs: torch.Tensor, *_: Any, code: int = code, seen: list[Any] = seen, **__: Any
            ) -> torch.Tensor:
                seen.append(probs)
                return torch.full((len(probs), 1), code if len(seen) == 1 else 0)

            with (
                mock.patch.object(torch, "multinomial", forced),
                mock.patch.object(torch.Tensor, "multinomial", forced),
            ):
                model._sample_audio_tokens(
                    hidden_states=None,
                    audio_logits=scores[None],
                    audio_out_ids=history,
                    do_sample=True,
                    logits_processor=processor,
                    device=torch.device("cpu"),
                    torch_generator=None,
                    generation_config=settings,
                    num_delay=books,
                    num_remaining_delays=None,
                )
            first = seen[0].numpy().astype(np.float64)
            window = history[:, -case["ras_win_len"] :] if case["ras_win_len"] else history[:, :0]
            if len(seen) > 1 and len(seen[1]):
                which = ((window == code).sum(dim=1) >= case["ras_win_max_num_repeat"]).numpy()
                assert which.sum() == len(seen[1])
                again[which, code] = True
                raw[which] = seen[1].numpy()
        drawn_again = (first * again).sum(axis=1, keepdims=True)
        out[f"{case['name']}/p"] = first * ~again + drawn_again * raw
    return out


def warpers(model: Any, settings: Any) -> Any:
    """The filters that the package's `generate` hands to its `_sample`."""
    caught: list[Any] = []

    def stop(*_: Any, logits_processor: Any, **__: Any) -> Any:
        caught.append(logits_processor)
        raise StopIteration

    with mock.patch.object(type(model), "_sample", stop):
        try:
            model.generate(
                input_ids=torch.zeros((1, 1), dtype=torch.long),
                do_sample=True,
                temperature=settings.temperature,
                top_k=settings.top_k,
                top_p=settings.top_p,
                max_new_tokens=2,
            )
        except StopIteration:
            pass
    return caught[0]


KINDS = {"prompts": prompts, "logits": logits, "greedy": greedy, "sampling": sampling}


def main(folder: Path) -> None:
    job = json.loads((folder / "job.json").read_text())
    arrays = np.load(folder / "job.npz")
    out: dict[str, np.ndarray] = {}
    for name, checkpoint in job["checkpoints"].items():
        engine = engine_of(checkpoint)
        for kind, cases in checkpoint["cases"].items():
            found = KINDS[kind](engine, cases, arrays)
            out |= {f"{name}/{kind}/{key}": value for key, value in found.items()}
        del engine
    np.savez(folder / "answer.npz", **out)


if __name__ == "__main__":
    torch.set_num_threads(1)
    serving.install()
    main(Path(sys.argv[1]))
