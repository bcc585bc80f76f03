"""From delayed audio tokens to sound, step by step, and chunk by chunk with what stays in the context.

python examples/tokens_to_waveform.py [--model nano] [--out out/tokens.wav] [TEXT ...]
"""

import argparse
import asyncio
from pathlib import Path

import numpy as np
import soundfile as sf
import torch
from numpy.typing import NDArray

from higgs_voice.serve_engine import HiggsAudioServeEngine, StreamingVoiceGenerator, revert_delay_pattern

TEXTS = ["One chunk of text.", "And one more."]


async def main(model: str, out: Path, texts: list[str]) -> None:
    with HiggsAudioServeEngine(model_name_or_path=model, audio_tokenizer_name_or_path=None) as engine:
        codec = engine.audio_tokenizer
        generator = StreamingVoiceGenerator(engine, generation_chunk_buffer_size=5)
        sound: list[NDArray[np.float32]] = []
        for text in texts:
            deltas = generator.generate_streaming([text], temperature=0.3, seed=7)
            rows = [delta.audio_tokens async for delta in deltas if delta.audio_tokens is not None]
            delayed = torch.stack(rows, dim=1)  # [8, T + 9]: codebook k is k rows late, BOS before and EOS after it
            frames = revert_delay_pattern(delayed)  # [8, T + 2]: one BOS frame, the chunk, one EOS frame
            codes = frames.clip(0, engine.audio_codebook_size - 1)[:, 1:-1]  # [8, T], 25 frames a second
            assert torch.equal(codes, generator.generated_audio_ids[-1])  # which is what the context now holds
            sound.append(codec.decode(codes.unsqueeze(0))[0, 0])  # [1, 8, T] to [1, 1, T * 960]
            print(f"{text!r}: {len(rows)} rows, {codes.shape[1]} frames, {len(sound[-1])} samples")
        out.parent.mkdir(parents=True, exist_ok=True)
        sf.write(out, np.concatenate(sound), codec.sampling_rate)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano", help="nano, a hub id or a folder")
    parser.add_argument("--out", type=Path, default=Path("out/tokens.wav"))
    parser.add_argument("texts", nargs="*", default=TEXTS, metavar="TEXT")
    options = parser.parse_args()
    asyncio.run(main(options.model, options.out, options.texts))
