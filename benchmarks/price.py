"""What a cheaper number type costs in parity: teacher-forced logits over a conversation, beside those of the model as it is.

The model speaks ten exchanges, each in the context of all before it. Then both kinds read the same rows, and the logits of every audio
row are compared: the largest and the root-mean-square difference in standard deviations of the logits, the share of largest
codes that stay the same, and the divergence of the distributions (temperature 1).

    python benchmarks/price.py [--model nano] [--device auto] [--dtype auto] [--weight-dtype int8] [--kv-dtype auto]
                               [--exchanges 10] [--out FILE]
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path
from typing import Any

import torch
from common import Place, emit

from higgs_voice import Sampling, SessionSettings, VoiceSession, create_backend
from higgs_voice.bench.common import sentence
from higgs_voice.conversation.voice import SYSTEM
from higgs_voice.model.loading import load
from higgs_voice.model.prompt import Rows
from higgs_voice.model.runner import Runner


async def conversation(options: argparse.Namespace) -> list[tuple[str, Any]]:
    """Text and codes [K, n] of what the model says as it is."""
    engine = create_backend(options.model, device=options.device, dtype=options.dtype)
    settings = SessionSettings(sampling=Sampling(temperature=0.3, seed=1))
    try:
        async with VoiceSession(engine, settings=settings) as session:
            for number in range(options.exchanges):
                await session.speak(sentence(number)).collect()
            return [(item.text, item.codes) for item in session.exchanges]
    finally:
        await engine.aclose()


@torch.inference_mode()
def logits_of(runner: Runner, rows: Rows) -> torch.Tensor:
    """[L, K, V] behind every audio row, on the CPU."""
    slot = runner.pool.acquire()
    slot.reserve(len(rows))
    parts: list[torch.Tensor] = []
    for start in range(0, len(rows), 64):
        piece = rows[start : start + 64]
        hidden = runner._prefill(slot, piece)  # pyright: ignore[reportPrivateUsage]
        parts.append(runner.forward.logits(hidden[torch.from_numpy(piece.audio).to(hidden.device)]).cpu())
    slot.release()
    return torch.cat(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--weight-dtype", default="auto")
    parser.add_argument("--kv-dtype", default="auto")
    parser.add_argument("--exchanges", type=int, default=10)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    place = Place.here()
    print("\n".join(place.lines()))
    said = asyncio.run(conversation(options))
    where = {"device": options.device, "dtype": options.dtype}
    logits: list[torch.Tensor] = []
    rows = Rows.empty(0)
    for weights, kept in (("auto", "auto"), (options.weight_dtype, options.kv_dtype)):
        runner = Runner(load(options.model, **where, weight_dtype=weights), max_rows=8192, max_slots=2, kv_dtype=kept)
        prompts = runner.prompts
        rows = Rows.concat([prompts.prefix(SYSTEM), *(prompts.exchange(text, codes) for text, codes in said)])
        logits.append(logits_of(runner, rows))
    exact, near = logits
    error = (near - exact) / exact.std()
    alike = (near.argmax(-1) == exact.argmax(-1)).float().mean(0)
    divergence = (exact.log_softmax(-1).exp() * (exact.log_softmax(-1) - near.log_softmax(-1))).sum(-1)
    result = {
        "model": options.model,
        "weight_dtype": options.weight_dtype,
        "kv_dtype": options.kv_dtype,
        "rows": len(rows),
        "audio_rows": len(exact),
        "worst": error.abs().max().item(),
        "rms": error.square().mean().sqrt().item(),
        "alike": alike.mean().item(),
        "alike_by_codebook": alike.tolist(),
        "divergence_nats": divergence.mean().item(),
    }
    print(
        f"{len(rows)} rows; logits differ by {result['worst']:.3f} standard deviations at most, {result['rms']:.4f} rms; "
        f"{100 * alike.mean():.1f} % of largest codes alike, first codebook {100 * alike[0]:.1f} %; "
        f"divergence {result['divergence_nats']:.1e} nats"
    )
    line = emit("price", place, result)
    if options.out:
        options.out.write_text(line + "\n")
    print(line)


if __name__ == "__main__":
    main()
