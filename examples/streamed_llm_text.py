"""An LLM's tokens spoken while it is still writing, a barge-in, and a next turn that remembers what was heard.

python examples/streamed_llm_text.py [--model nano] [--out out/llm.wav] [--heard 0.8] [TEXT]
"""

import argparse
import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

from higgs_voice import VoiceSession, create_backend
from higgs_voice.audio import write_wav

TEXT = "Your order has shipped. It will be there on Friday."


async def llm(text: str) -> AsyncIterator[str]:
    """A stand-in for your LLM: 40 tokens a second. An OpenAI stream's `delta.content` fits here as it is."""
    for token in text.split(" "):
        await asyncio.sleep(0.025)
        yield token + " "


async def main(model: str, out: Path, heard_s: float, text: str) -> None:
    engine = create_backend(model)
    try:
        async with VoiceSession(engine) as session:
            speech = session.speak(llm(text))
            played = 0.0
            async for piece in speech.audio():
                played += piece.duration_s
                if played >= heard_s:
                    break  # the caller talks: leaving the loop stops the model within one step
            session.settle(speech.id, min(heard_s, played))  # what was not heard leaves the voice's memory
            print("heard:", session.context_text or "nothing")

            answer = session.speak(llm("I see, no problem."))
            pcm = await answer.collect()
            session.settle(answer.id, float("inf"))  # all of it
            print("the voice remembers:", session.context_text.replace("\n", " / "))
    finally:
        await engine.aclose()
    out.parent.mkdir(parents=True, exist_ok=True)
    write_wav(out, pcm)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano", help="nano, a hub id, a folder or ws://host:port")
    parser.add_argument("--out", type=Path, default=Path("out/llm.wav"))
    parser.add_argument("--heard", type=float, default=0.8, help="seconds after which the caller talks")
    parser.add_argument("text", nargs="?", default=TEXT)
    options = parser.parse_args()
    asyncio.run(main(options.model, options.out, options.heard, options.text))
