"""A scene and a speaker's description; the voice that the model chooses for the first chunk is kept for all that follow.

python examples/scene_and_speaker.py [--model nano] [--out out/scene_and_speaker.wav] [TEXT ...]
"""

import argparse
import asyncio
from pathlib import Path

import soundfile as sf
import torch

from higgs_voice.serve_engine import HiggsAudioServeEngine, revert_delay_pattern

TEXTS = ["Hello, and welcome to our show.", "Today we talk about voices.", "Let us begin."]


async def main(model: str, out: Path, texts: list[str]) -> None:
    with HiggsAudioServeEngine(model_name_or_path=model, audio_tokenizer_name_or_path=None) as engine:
        rows: list[torch.Tensor] = []  # delayed rows, [8 codebooks] each
        async for delta in engine.generate_streaming_with_context(
            text_chunks=texts,
            scene_prompt="Audio is recorded from a quiet room.",
            speaker_descriptions="feminine; warm; moderate pitch",
            generation_chunk_buffer_size=5,
            temperature=0.3,
            seed=7,
        ):
            if delta.audio_tokens is not None:
                rows.append(delta.audio_tokens)
        codes = revert_delay_pattern(torch.stack(rows, dim=1)).clip(0, engine.audio_codebook_size - 1)[:, 1:-1]
        waveform = engine.audio_tokenizer.decode(codes.unsqueeze(0))[0, 0]
        out.parent.mkdir(parents=True, exist_ok=True)
        sf.write(out, waveform, engine.audio_tokenizer.sampling_rate)
    print(f"{len(waveform) / engine.audio_tokenizer.sampling_rate:.1f} s of sound in {out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano", help="nano, a hub id or a folder")
    parser.add_argument("--out", type=Path, default=Path("out/scene_and_speaker.wav"))
    parser.add_argument("texts", nargs="*", default=TEXTS, metavar="TEXT", help="what to say, chunk by chunk")
    options = parser.parse_args()
    asyncio.run(main(options.model, options.out, options.texts))
