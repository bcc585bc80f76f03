"""What the model reads, as the engine lays it out.

    <|begin_of_text|> system [scene] <|eot_id|>
    user: text <|eot_id|>  assistant: <|audio_out_bos|> rows <|audio_eos|><|eot_id|>        exchange after exchange

An exchange is the same whether it is a reference, a pinned one or a recent one, so a trimmed window is just another
sequence of exchanges. Rows are the delayed codes: codebook q runs q rows behind, the head filled with the stream's BOS
and the tail with its EOS.
"""

import random
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerFast

from training.settings import CODEBOOKS, STREAM_BOS, STREAM_EOS

SYSTEM = "Generate audio following instruction."
SEX = {"slt": "feminine", "rms": "masculine", "awb": "masculine", "kal16": "masculine"}
ACCENT = {"slt": "american", "rms": "american", "awb": "scottish", "kal16": "robotic"}
SCENES = (
    "Audio is recorded from a quiet room.",
    "A phone call.",
    "Quiet room, clear speech.",
    "Customer support call.",
    "Indoors, no noise.",
    "A calm conversation.",
    "A friendly voice assistant talks with a caller.",
    "Audio is recorded from a phone line.",
    "The speaker sits in a quiet office.",
)


def delayed(codes: np.ndarray) -> np.ndarray:
    """Rows [N + 9, 8] of codes [8, N]: BOS, codes and EOS of codebook q shifted down by q rows."""
    frames = codes.shape[1]
    rows = np.full((frames + 1 + CODEBOOKS, CODEBOOKS), STREAM_EOS, np.int64)
    for q in range(CODEBOOKS):
        rows[: q + 1, q] = STREAM_BOS
        rows[q + 1 : q + 1 + frames, q] = codes[q]
    return rows


@dataclass(frozen=True, slots=True)
class Exchange:
    """Token ids of one exchange; places are indices into them."""

    ids: list[int]
    text_at: int  # first letter
    audio_at: int  # first audio row
    letters: int


class Layout:
    """Turns texts into token ids with the checkpoint's own tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        def ids(text: str) -> list[int]:
            return tokenizer(text, add_special_tokens=False).input_ids

        self.ids = ids
        self.bos = tokenizer.bos_token
        self.user = ids("<|start_header_id|>user<|end_header_id|>\n\n")
        self.assistant = ids("<|start_header_id|>assistant<|end_header_id|>\n\n<|audio_out_bos|>")
        self.eot = ids("<|eot_id|>")
        self.end = ids("<|audio_eos|><|eot_id|>")
        self.row, self.tail_row = ids("<|AUDIO_OUT|>")[0], ids("<|reserved_special_token_6|>")[0]

    def system(self, scene: str | None) -> list[int]:
        """The head of a conversation, with a scene or without."""
        block = f"\n\n<|scene_desc_start|>\n{scene}\n<|scene_desc_end|>" if scene else ""
        return self.ids(f"{self.bos}<|start_header_id|>system<|end_header_id|>\n\n{SYSTEM}{block}<|eot_id|>")

    def question(self, text: str) -> list[int]:
        """A text to speak, up to where the audio begins."""
        return self.user + self.ids(text) + self.eot + self.assistant

    def exchange(self, text: str, rows: int, tag: str = "") -> Exchange:
        """A text and `rows` rows of its speech; `tag` is `[SPEAKERn] ` or nothing."""
        before = self.question(tag + text)
        ids = before + [self.row] * (rows - CODEBOOKS + 1) + [self.tail_row] * (CODEBOOKS - 1) + self.end
        letters = len(self.ids(text))
        return Exchange(ids, len(self.user) + len(self.ids(tag)) if tag else len(self.user), len(before), letters)


def describe(voice: str, rng: random.Random) -> str:
    """One of the ways to describe a voice."""
    sex, accent = SEX[voice], ACCENT[voice]
    ways = [
        sex,
        sex,
        f"{accent}; {sex}",
        f"{sex}; {accent}",
        f"{sex}; moderate pitch",
        f"{sex} voice",
        f"{sex}, {accent} accent",
    ]
    if voice in ("awb", "kal16"):  # a bare "masculine" is mostly rms
        ways = ways[1:]
        ways[0] = f"{accent}; {sex}"
    return rng.choice(ways)


def scene(voices: list[str], rng: random.Random) -> str | None:
    """A scene for these speakers, or None: of one voice half of the conversations say nothing, of two 15 in a hundred."""
    kind = rng.random()
    place = rng.choice(SCENES)
    if len(voices) == 1 and kind < 0.35:
        return None
    if kind < (0.5 if len(voices) == 1 else 0.15):
        return place
    speakers = "\n".join(f"SPEAKER{n}: {describe(voice, rng)}" for n, voice in enumerate(voices))
    return speakers if kind < 0.7 else f"{place}\n\n{speakers}"
