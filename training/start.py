"""Start from an earlier checkpoint instead of from nothing.

    python -m training.start FOLDER

`FOLDER` holds `model/` and `codec/` in the hub's layout and `scripts/rvq.pt`, the codebooks' basis. Its codebooks are taken over, so
run it after stage 3 and before stage 4; the model's layers become step 0 of stage 7, the decoder and the acoustic half of
the encoder those of stages 5 and 6.
"""

import json
import sys
from pathlib import Path

import torch
from transformers import HiggsAudioV2ForConditionalGeneration

from training.codebooks import LATENT, Basis, save
from training.codec import build, start_from
from training.conversations import tokenizer
from training.model import Optimizer, Trainee
from training.settings import WORK


def main() -> None:
    folder = Path(sys.argv[1])
    earlier = torch.load(folder / "scripts" / "rvq.pt")
    basis, books = Basis(earlier["mu"].float(), earlier["P"].float(), earlier["sc"].float()), earlier["books"].float()
    metrics = torch.eye(LATENT).repeat(len(books), 1, 1)
    save(basis, metrics, books)
    codec = build(metrics, books)
    start_from(codec, folder / "codec", basis, basis)
    codec.save_pretrained(WORK / "codec")
    names = json.loads((WORK / "align.json").read_text())
    trainee = Trainee(len(tokenizer()), len(names["sounds"]) + 1, len(names["phones"]))
    model = HiggsAudioV2ForConditionalGeneration.from_pretrained(folder / "model", dtype=torch.float32)
    trainee.higgs.load_state_dict(model.state_dict())
    average = {name: value.clone() for name, value in trainee.state_dict().items()}
    state = {"weights": trainee.state_dict(), "average": average, "optimizer": Optimizer(trainee).state(), "step": 0}
    torch.save(state, WORK / "model.pt")


if __name__ == "__main__":
    main()
