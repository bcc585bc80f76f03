"""The package's own engine with the documented streaming, tried in the environment that has it.

    .venv-boson/bin/python tests/parity/package.py FOLDER

FOLDER holds ``examples.json``, the checkpoint ``model`` in the original layout and the clip ``reference_voice.wav``; it becomes the
working folder. What was seen goes to standard output as one JSON line.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from contextlib import aclosing
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from boson_multimodal.audio_processing import higgs_audio_tokenizer
from boson_multimodal.data_types import ChatMLSample, Message
from boson_multimodal.serve.serve_engine import HiggsAudioServeEngine
from transformers import HubertConfig, HubertModel

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "plugin"))

import higgs_voice.backends.boson  # noqa: F401  # the one import of ours beside the package's


def random_codec(folder: Path) -> None:
    """The package's codec class as it is, widths and all, with random weights; its HuBERT is not fetched but made."""
    settings: dict[str, Any] = {
        "D": 256,
        "target_bandwidths": [0.5, 1, 1.5, 2],
        "ratios": [8, 5, 4, 2, 3],
        "sample_rate": 24000,
        "bins": 256,
        "n_q": 8,
        "codebook_dim": 64,
    }
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(settings))
    torch.manual_seed(0)
    codec = higgs_audio_tokenizer.HiggsAudioTokenizer(**settings, device="cpu")
    torch.save(codec.state_dict(), folder / "model.pth")


def hubert(*_: Any, **__: Any) -> HubertModel:
    return HubertModel(HubertConfig(num_hidden_layers=1))


def sample(text: str) -> ChatMLSample:
    system = Message(role="system", content="Generate audio following instruction.")
    return ChatMLSample(messages=[system, Message(role="user", content=text)])


async def rows(engine: Any, text: str, most: int = 60) -> list[list[int]]:
    stream = engine.generate_delta_stream(
        sample(text), max_new_tokens=most, temperature=0.0, ras_win_len=None, force_audio_gen=True
    )
    return [delta.audio_tokens.tolist() async for delta in stream if delta.audio_tokens is not None]


async def failure(engine: Any) -> str:
    """What a reader sees when the generation breaks in its third step."""
    before, count = engine.model._sample_audio_tokens, 0

    def broken(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        if count == 3:
            raise FloatingPointError("nothing but NaN")
        return before(*args, **kwargs)

    with mock.patch.object(engine.model, "_sample_audio_tokens", broken):
        try:
            await asyncio.wait_for(rows(engine, "Hello there."), 60)
        except FloatingPointError as error:
            return str(error)
    return "nothing"


async def steps_after_close(engine: Any) -> list[int]:
    """Steps of the model when a stream was left after five rows: at that moment, and a while after it was closed."""
    before, count = engine.model._sample_audio_tokens, 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        return before(*args, **kwargs)

    with mock.patch.object(engine.model, "_sample_audio_tokens", counted):
        stream = engine.generate_delta_stream(sample("Hello there."), max_new_tokens=400, force_audio_gen=True)
        seen = 0
        async with aclosing(stream) as deltas:
            async for delta in deltas:
                seen += delta.audio_tokens is not None
                if seen == 5:
                    left = count
                    break
        closed = count
        await asyncio.sleep(0.2)
        return [left, closed, count]


async def together(engine: Any) -> bool:
    """Whether two requests at once give what each gives alone."""
    texts = ["Hello there.", "Why not?"]
    alone = [await rows(engine, text) for text in texts]
    return [*await asyncio.gather(*(rows(engine, text) for text in texts))] == alone


def main(folder: Path) -> None:
    os.chdir(folder)
    examples: dict[str, str] = json.loads(Path("examples.json").read_text())
    with mock.patch.object(higgs_audio_tokenizer.AutoModel, "from_pretrained", hubert):
        random_codec(folder / "codec")
        names = run(examples["one"])
        engine = HiggsAudioServeEngine("model", "codec", device="cpu", torch_dtype=torch.float32)
    seen: dict[str, Any] = {"rows": {}, "written": []}
    for name in ("one", "two", "three"):
        if name != "one":
            names = run(examples[name], serve_engine=engine)
        tokens = names["audio_tokens"]
        seen["rows"][name] = [len(tokens), *tokens[0].shape]
        Path("output.wav").unlink(missing_ok=True)
        run(examples["four"], audio_tokens=tokens, serve_engine=engine)
        seen["written"].append(Path("output.wav").stat().st_size)
    seen["failure"] = asyncio.run(failure(engine))
    seen["steps"] = asyncio.run(steps_after_close(engine))
    seen["together"] = asyncio.run(together(engine))
    print(json.dumps(seen))


def run(code: str, **names: Any) -> dict[str, Any]:
    exec(compile(code, "<example>", "exec"), names)
    return names


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
