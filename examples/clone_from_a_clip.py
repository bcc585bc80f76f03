"""Clone a voice from a clip, keep it as a file, and speak with it.

    python examples/clone_from_a_clip.py --clip anna.wav --transcript "What is said in it." [--out out/clone.wav] [TEXT]

Without a clip one is made by the model itself. Clone only voices whose owners agreed to it.
"""

import argparse
import asyncio
from pathlib import Path

from higgs_voice import Reference, Sampling, SessionSettings, Synthesizer, Voice, VoiceSession, create_backend
from higgs_voice.audio import write_wav

TEXT = "This is the voice of the clip."


async def make_clip(engine: Synthesizer, path: Path) -> str:
    """A clip to clone, and what is said in it."""
    said = "Good morning, how are you?"
    async with VoiceSession(engine, voice=Voice.create(speakers="feminine; american")) as session:
        write_wav(path, await session.speak(said).collect())
    return said


async def main(model: str, clip: Path | None, transcript: str, out: Path, text: str) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    engine = create_backend(model)
    await engine.start()
    try:
        if clip is None:
            clip = out.with_name("clip.wav")
            transcript = await make_clip(engine, clip)
        voice = Voice.create(name="clone", references=Reference.from_file(clip, transcript))
        voice = await voice.resolve(engine)  # encodes the clip, once
        voice.save(out.with_suffix(".voice"))  # Voice.load() gives it back

        settings = SessionSettings(sampling=Sampling(temperature=0.3))  # low: faithful to the clip
        async with VoiceSession(engine, voice=voice, settings=settings) as session:
            write_wav(out, await session.speak(text).collect())
    finally:
        await engine.aclose()
    print(f"spoken in the voice of {clip}: {out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano", help="nano, a hub id, a folder or ws://host:port")
    parser.add_argument("--clip", type=Path, help="five to fifteen seconds of clear speech")
    parser.add_argument("--transcript", default="", help="what is said in the clip")
    parser.add_argument("--out", type=Path, default=Path("out/clone.wav"))
    parser.add_argument("text", nargs="?", default=TEXT)
    options = parser.parse_args()
    if options.clip is not None and not options.transcript:
        parser.error("a clip needs its transcript: --transcript")
    asyncio.run(main(options.model, options.clip, options.transcript, options.out, options.text))
