"""What the stages share: where the work lies, the voices, the codec's frame, the seeds.

The work folder (speech, codes, checkpoints; some gigabytes) is `build/nano` unless `NANO_WORK` names another.
"""

import os
from pathlib import Path

WORK = Path(os.environ.get("NANO_WORK", "build/nano"))
PACKAGE = Path(__file__).resolve().parents[1] / "plugin" / "higgs_voice" / "nano"

SAMPLE_RATE = 24_000  # Hz
HOP = 960  # samples a frame: 25 frames a second
FRAME_S = HOP / SAMPLE_RATE
CODEBOOKS = 8
CODEBOOK_SIZE = 256
STREAM_BOS = CODEBOOK_SIZE  # the code that fills the delay pattern's head
STREAM_EOS = CODEBOOK_SIZE + 1  # and the one that fills its tail

VOICES = ("slt", "rms", "awb", "kal16")
VOICE_OF_TEXT = ("slt", "rms", "slt", "rms", "awb", "slt", "rms", "kal16", "awb", "rms", "slt", "kal16")
HELD_OUT = 600  # texts at the head of the list that no stage trains on

TEXT_SEED, CODEBOOK_SEED, DECODER_SEED, ENCODER_SEED, MODEL_SEED, EVALUATION_SEED = 7, 11, 13, 17, 19, 23
