"""Stage 2b, spelling: what many more texts sound like, phonemes only.

The speech of stage 2 is dear (half a second of processor time for ten seconds of speech); flite's small voice kal16 names
the phonemes of a text in milliseconds. They teach the model's text side to read.

    python -m training.sounds 40000

writes `sounds.jsonl`, lines of `{"text", "phones": [[name, end], ...]}`.
"""

import json
import sys

from training.flite import synthesize
from training.settings import HELD_OUT, TEXT_SEED, WORK
from training.texts import build


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 40_000
    held_out = set(json.loads((WORK / "texts.json").read_text())[:HELD_OUT])
    with open(WORK / "sounds.jsonl", "w") as file:
        for index, text in enumerate(build(count + HELD_OUT, TEXT_SEED + 1)):
            if text in held_out or len(text) > 100:
                continue
            phones = synthesize(text, "kal16")[2]
            if phones:
                file.write(json.dumps({"text": text, "phones": [[name, round(end, 3)] for name, end in phones]}) + "\n")
            if index % 10_000 == 0:
                print(index, flush=True)


if __name__ == "__main__":
    main()
