"""Stage 8, export: the checkpoint as the package ships it, in the hub's layout and half precision.

    python -m training.export            # the codec and the model's averaged weights
    python -m training.export model      # the model alone

The tokenizer (letters, marks, the hub's special tokens), the chat template and the preprocessor's settings are in the package
already and stay as they are; training read them from there.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import HiggsAudioV2TokenizerModel

from training.conversations import tokenizer
from training.model import Trainee
from training.settings import PACKAGE, WORK


def export_model(folder: Path) -> None:
    """The averaged weights without the auxiliary heads."""
    names = json.loads((WORK / "align.json").read_text())
    trainee = Trainee(len(tokenizer()), len(names["sounds"]) + 1, len(names["phones"]))
    saved = torch.load(WORK / "model.pt")
    trainee.load_state_dict(saved["average"])
    generation = (folder / "generation_config.json").read_text()
    trainee.higgs.half().save_pretrained(folder)
    (folder / "generation_config.json").write_text(generation)
    print(f"model: step {saved['step']}, {sum(p.numel() for p in trainee.higgs.parameters()) / 1e6:.2f} M parameters")


UNREAD = ("decoder_semantic.", "fc1.", ".embed_avg")
"""Parts of the names of tensors that the class has and that only training reads: what the real codec's semantic half is taught
with, and the running means of codebooks."""


def export_codec(folder: Path) -> None:
    """Encoder, quantiser and decoder."""
    codec = HiggsAudioV2TokenizerModel.from_pretrained(WORK / "codec", dtype=torch.float32)
    codec.half().save_pretrained(folder)
    shrink(folder / "model.safetensors")
    print(f"codec: {sum(p.numel() for p in codec.parameters()) / 1e6:.2f} M parameters")


def shrink(path: Path) -> None:
    """Keep what nothing reads as zeros of one byte: the class wants it to be there, and makes it its own type when it loads."""
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    for name in tensors:
        if any(part in name for part in UNREAD):
            tensors[name] = torch.zeros_like(tensors[name], dtype=torch.float8_e4m3fn)
    save_file(tensors, path, metadata=metadata)


def main() -> None:
    parts = sys.argv[1:] or ["model", "codec"]
    if "model" in parts:
        export_model(PACKAGE / "model")
    if "codec" in parts:
        export_codec(PACKAGE / "codec")
    size = sum(path.stat().st_size for path in PACKAGE.rglob("*") if path.is_file())
    print(f"{size / 1e6:.1f} MB in all")


if __name__ == "__main__":
    main()
