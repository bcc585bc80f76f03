"""Stage 2, speech: Debian's flite says every text, with the times of its phonemes.

    python -m training.speech 2          # two processes; run again to go on where it stopped
    python -m training.speech 2 70000    # begins at this text, where nothing has been said yet

writes `speech.raw` (16-bit mono, 24 kHz, utterance after utterance) and `speech.jsonl`, one line an utterance:
`{"text_index", "voice", "text", "samples", "phones": [[name, end in seconds], ...]}`. The voice of a text follows from its
index, so a rerun gives the same speech.
"""

import json
import os
import sys
from collections.abc import Iterator
from multiprocessing import Pool
from typing import Any

import numpy as np
import soxr

from training.flite import synthesize
from training.settings import SAMPLE_RATE, VOICE_OF_TEXT, WORK

LONGEST_S = 16.0
QUIET = 0.01  # amplitude under which the edges count as silence
LEAD, TAIL = 960, 2400  # samples of silence kept before and after


def speak(text: str, voice: str) -> tuple[np.ndarray, list[tuple[str, float]]] | None:
    """flite's speech [n] int16 at 24 kHz with the end time of each phoneme, or None if it is empty or too long."""
    pcm, rate, phones = synthesize(text, voice)
    audio = soxr.resample(pcm.astype(np.float32) / 32768, rate, SAMPLE_RATE)
    loud = np.flatnonzero(np.abs(audio) > QUIET)
    if not len(loud) or not phones or len(audio) > LONGEST_S * SAMPLE_RATE:
        return None
    first = max(0, int(loud[0]) - LEAD)
    audio = audio[first : int(loud[-1]) + TAIL]
    audio = np.int16(audio / np.abs(audio).max() * 0.7 * 32767)
    return audio, [(name, round(end - first / SAMPLE_RATE, 3)) for name, end in phones]


def _job(item: tuple[int, str]) -> tuple[int, str, str, Any]:
    index, text = item
    voice = VOICE_OF_TEXT[index % len(VOICE_OF_TEXT)]
    return index, voice, text, speak(text, voice)


def _todo(texts: list[str], start: int) -> Iterator[tuple[int, str]]:
    yield from ((index, texts[index]) for index in range(start, len(texts)))


def main() -> None:
    processes = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    texts: list[str] = json.loads((WORK / "texts.json").read_text())
    listing, raw = WORK / "speech.jsonl", WORK / "speech.raw"
    start, samples = (int(sys.argv[2]) if len(sys.argv) > 2 else 0), 0
    if listing.exists():
        done = [json.loads(line) for line in listing.read_text().splitlines()]
        start = done[-1]["text_index"] + 1 if done else start
        samples = sum(item["samples"] for item in done)
        os.truncate(raw, samples * 2)
    with Pool(processes) as pool, open(listing, "a") as lines, open(raw, "ab") as audio:
        for index, voice, text, spoken in pool.imap(_job, _todo(texts, start), chunksize=20):
            if spoken is None:
                continue
            pcm, phones = spoken
            audio.write(pcm.tobytes())
            audio.flush()
            line = {"text_index": index, "voice": voice, "text": text, "samples": len(pcm), "phones": phones}
            lines.write(json.dumps(line) + "\n")
            lines.flush()
            samples += len(pcm)
            if index % 1000 == 0:
                print(f"{index} of {len(texts)} texts, {samples / SAMPLE_RATE / 3600:.2f} hours", flush=True)


if __name__ == "__main__":
    main()
