"""PCM while it is generated: each piece as soon as it can be played, words with their times, and a report for each chunk.

python examples/streaming_pcm.py [--model nano] [--out out/streaming.wav] [TEXT]
"""

import argparse
import asyncio
from pathlib import Path

from higgs_voice import ChunkReport, PcmChunk, Voice, VoiceSession, Word, create_backend
from higgs_voice.audio import write_wav

TEXT = "Good morning. It is a fine day."


async def main(model: str, out: Path, text: str) -> None:
    engine = create_backend(model)
    pcm = bytearray()
    try:
        async with VoiceSession(engine, voice=Voice.create(scene="Audio is recorded from a quiet room.")) as session:
            async for event in session.speak(text):
                match event:
                    case PcmChunk():  # int16 mono, 24 kHz: hand it to your transport here
                        pcm += event.pcm
                        print(f"{event.start_s:6.2f} s  {event.duration_s:.2f} s of sound")
                    case Word():
                        print(f"{event.start_s:6.2f} s  {event.text}")
                    case ChunkReport():
                        print(f"          first sound after {event.ttfa_s * 1000:.0f} ms, rtf {event.rtf:.2f}")
    finally:
        await engine.aclose()
    out.parent.mkdir(parents=True, exist_ok=True)
    write_wav(out, bytes(pcm))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano", help="nano, a hub id, a folder or ws://host:port")
    parser.add_argument("--out", type=Path, default=Path("out/streaming.wav"))
    parser.add_argument("text", nargs="?", default=TEXT)
    options = parser.parse_args()
    asyncio.run(main(options.model, options.out, options.text))
