"""Two speakers in one conversation: a description for each, and whose turn it is in front of each chunk.

python examples/dialogue.py [--model nano] [--out out/dialogue.wav] ["[SPEAKER0] TEXT" "[SPEAKER1] TEXT" ...]
"""

import argparse
import asyncio
from pathlib import Path

import soundfile as sf
import torch

from higgs_voice.serve_engine import HiggsAudioServeEngine, revert_delay_pattern

TURNS = [
    "[SPEAKER0] Hello! How are you?",
    "[SPEAKER1] I am fine, thank you.",
    "[SPEAKER0] What did you do today?",
    "[SPEAKER1] I went for a walk.",
]


async def main(model: str, out: Path, turns: list[str]) -> None:
    with HiggsAudioServeEngine(model_name_or_path=model, audio_tokenizer_name_or_path=None) as engine:
        rows: list[torch.Tensor] = []
        async for delta in engine.generate_streaming_with_context(
            text_chunks=turns,
            scene_prompt="Two people having a conversation in a quiet room.",
            speaker_descriptions=["SPEAKER0: feminine; warm", "SPEAKER1: masculine; deep"],
            temperature=0.3,
            seed=7,
        ):
            if delta.audio_tokens is not None:
                rows.append(delta.audio_tokens)
        codes = revert_delay_pattern(torch.stack(rows, dim=1)).clip(0, engine.audio_codebook_size - 1)[:, 1:-1]
        waveform = engine.audio_tokenizer.decode(codes.unsqueeze(0))[0, 0]
        out.parent.mkdir(parents=True, exist_ok=True)
        sf.write(out, waveform, engine.audio_tokenizer.sampling_rate)
    print(f"{len(turns)} turns, {len(waveform) / engine.audio_tokenizer.sampling_rate:.1f} s of sound in {out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano", help="nano, a hub id or a folder")
    parser.add_argument("--out", type=Path, default=Path("out/dialogue.wav"))
    parser.add_argument("turns", nargs="*", default=TURNS, metavar="TURN")
    options = parser.parse_args()
    asyncio.run(main(options.model, options.out, options.turns))
