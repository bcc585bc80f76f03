"""Prompts as rows: which text token or which delayed audio row stands at which position.

Ids are built piece by piece. The template's own tokens are trusted; text from outside is tokenised without the
vocabulary's special tokens, so that no text can end a message, start audio or pose as another role. The oracle of the
tests is the processor's chat template; the layout is that of the original model where the template cannot express it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from .delay import Codes, begun_delay, build_delay

BEGIN = "<|begin_of_text|>"
SYSTEM = "<|start_header_id|>system<|end_header_id|>\n\n"
SCENE_START = "<|scene_desc_start|>\n"
SCENE_END = "\n<|scene_desc_end|>"
USER = "<|start_header_id|>user<|end_header_id|>\n\n"
ASSISTANT = "<|start_header_id|>assistant<|end_header_id|>\n\n"
AUDIO_START = "<|audio_out_bos|>"
CLIP_START = "<|audio_bos|>"
AUDIO_END = "<|audio_eos|>"
END = "<|eot_id|>"


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """A stretch of a context: L rows, each a text token or a delayed audio row."""

    tokens: NDArray[np.int32]
    """[L] token ids. Of an audio row this is a placeholder that the model never embeds."""
    codes: Codes
    """[L, K] delayed codes, BOS and EOS among them; 0 where the row is text."""
    audio: NDArray[np.bool_]
    """[L] which rows are audio."""

    @classmethod
    def empty(cls, num_codebooks: int) -> Self:
        return cls.of_text(np.zeros(0, dtype=np.int32), num_codebooks)

    @classmethod
    def of_text(cls, tokens: Sequence[int] | NDArray[np.int32], num_codebooks: int) -> Self:
        """Text tokens [L]."""
        ids = np.asarray(tokens, dtype=np.int32)
        return cls(ids, np.zeros((len(ids), num_codebooks), dtype=np.int16), np.zeros(len(ids), dtype=np.bool_))

    @classmethod
    def of_audio(cls, rows: Codes, token: int) -> Self:
        """Delayed rows [L, K], each with the same placeholder."""
        return cls(np.full(len(rows), token, dtype=np.int32), rows.astype(np.int16), np.ones(len(rows), dtype=np.bool_))

    @classmethod
    def concat(cls, parts: Sequence[Rows]) -> Self:
        """One after another; at least one part."""
        return cls(
            np.concatenate([part.tokens for part in parts]),
            np.concatenate([part.codes for part in parts]),
            np.concatenate([part.audio for part in parts]),
        )

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, where: slice) -> Rows:
        return Rows(self.tokens[where], self.codes[where], self.audio[where])

    def __add__(self, other: Rows) -> Rows:
        return Rows.concat((self, other))

    def common_prefix(self, other: Rows) -> int:
        """How many rows from the start are equal: of the same kind, with the same token (text) or codes (audio).

        The placeholder of an audio row does not count. The processor writes another one over the last rows of a clip than
        generation does, but an audio row's embedding comes from its codes alone, so keys and values are the same.
        """
        length = min(len(self), len(other))
        audio = self.audio[:length]
        equal = (audio == other.audio[:length]) & (audio | (self.tokens[:length] == other.tokens[:length]))
        equal &= (self.codes[:length] == other.codes[:length]).all(axis=1)
        return length if equal.all() else int(equal.argmin())

    def last_audio(self, count: int) -> Codes:
        """The last audio rows [≤ count, K], oldest first."""
        return self.codes[np.flatnonzero(self.audio)[-count:]] if count else self.codes[:0]


@dataclass(frozen=True, slots=True)
class Piece:
    """Part of a message: the template's own words, or text from outside."""

    text: str
    trusted: bool


def clean(text: str) -> str:
    """Text that every tokenizer takes: pairs of surrogates joined, lone ones replaced by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


class PieceTokenizer:
    """Token ids of messages that mix the template's words and text from outside."""

    def __init__(self, tokenizer: Any) -> None:
        """``tokenizer``: a transformers tokenizer with a `tokenizers.Tokenizer` behind it."""
        backend: Tokenizer = tokenizer.backend_tokenizer
        self._ids: dict[str, int] = {token.content: index for index, token in tokenizer.added_tokens_decoder.items()}
        longest_first = sorted(self._ids, key=len, reverse=True)
        self._special = re.compile("|".join(re.escape(token) for token in longest_first))
        self._control = np.array([index for index in self._ids.values() if index != tokenizer.unk_token_id], np.int32)
        # The same normaliser, splitter and vocabulary, but no added tokens to find and nothing to put around the text.
        self._plain = Tokenizer(backend.model)
        if backend.normalizer is not None:
            self._plain.normalizer = backend.normalizer
        if backend.pre_tokenizer is not None:
            self._plain.pre_tokenizer = backend.pre_tokenizer
        self.encode = lru_cache(maxsize=1024)(self._encode)
        """Pieces of a message to ids [n], remembered. Callers do not write into what they get."""

    def id(self, token: str) -> int:
        """Id of a special token. KeyError: the vocabulary has no such token."""
        return self._ids[token]

    def _encode(self, *pieces: Piece) -> NDArray[np.int32]:
        text = "".join(piece.text for piece in pieces)
        trusted = np.repeat([piece.trusted for piece in pieces], [len(piece.text) for piece in pieces])
        out: list[NDArray[np.int32]] = []
        start = position = 0
        # A special token counts where it begins in the template's own words. Some vocabularies have one token for a header
        # and the customary system line after it, so it may end in text from outside.
        while match := self._special.search(text, position):
            if trusted[match.start()]:
                out += [self._tokenize(text[start : match.start()]), np.array([self._ids[match.group()]], np.int32)]
                start = position = match.end()
            else:
                position = match.start() + 1
        out.append(self._tokenize(text[start:]))
        ids = np.concatenate(out)
        ids.flags.writeable = False
        return ids

    def _tokenize(self, text: str) -> NDArray[np.int32]:
        ids = np.array(self._plain.encode(text, add_special_tokens=False).ids if text else [], dtype=np.int32)
        # Nothing to remove with the vocabularies we know; a model that spells a special token as a word stays harmless.
        return ids[~np.isin(ids, self._control)]


class PromptBuilder:
    """Rows of the parts of a context. Put one after another they are the prompt:
    `prefix`, any number of `exchange`, `opening` of the text to speak."""

    def __init__(self, tokenizer: Any, config: Any) -> None:
        """``config``: the model's `HiggsAudioV2Config`."""
        self._tokenizer = PieceTokenizer(tokenizer)
        self.num_codebooks: int = config.num_codebooks
        self.bos: int = config.audio_stream_bos_id
        self.eos: int = config.audio_stream_eos_id
        self.audio_token: int = config.audio_token_id
        self.delay_token: int = config.audio_delay_token_id
        self._after_audio = self._text(Piece(AUDIO_END + END, trusted=True))

    def prefix(
        self,
        system: str | None,
        scene: str | None = None,
        speakers: Sequence[str] = (),
        references: Sequence[tuple[str, Codes]] = (),
        *,
        in_scene: bool = False,
    ) -> Rows:
        """What never leaves a context: system message, and (transcript, codes [K, T]) of the reference clips.

        ``system`` None leaves the system message out, scene and speakers with it. ``in_scene``: the clips' sound stands in the
        scene block, as the description of SPEAKER0 and those after it, and before ``speakers``; the layout is the original's
        (examples/generation.py with the reference in the system message), which transformers' template does not share.
        """
        if in_scene and references and system is not None:
            return self._prefix_with_sound(system, scene, speakers, [codes for _, codes in references])
        pieces = [Piece(BEGIN, trusted=True)]
        if system is not None:
            pieces += [Piece(SYSTEM, trusted=True), self._outside(system)]
            lines = [line for line in (clean(speaker).strip() for speaker in speakers) if line]
            place = clean(scene).strip() if scene else ""
            # An empty line parts the scene from the speakers; without a scene the speakers stand alone.
            block = "\n\n".join(part for part in (place, "\n".join(lines)) if part)
            if block:
                pieces += [
                    Piece("\n\n" + SCENE_START, trusted=True),
                    Piece(block, trusted=False),
                    Piece(SCENE_END, trusted=True),
                ]
            pieces.append(Piece(END, trusted=True))
        return Rows.concat([self._text(*pieces), *(self.exchange(text, codes) for text, codes in references)])

    def _prefix_with_sound(
        self, system: str, scene: str | None, speakers: Sequence[str], clips: Sequence[Codes]
    ) -> Rows:
        place = clean(scene).strip() if scene else ""
        pieces = [
            Piece(BEGIN + SYSTEM, trusted=True),
            self._outside(system),
            Piece("\n\n" + SCENE_START, trusted=True),
            *([Piece(place, trusted=False), Piece("\n\n", trusted=True)] if place else []),
        ]
        parts: list[Rows] = []
        for number, codes in enumerate(clips):
            pieces.append(Piece(f"SPEAKER{number}: {CLIP_START}", trusted=True))
            parts += [self._text(*pieces), self._audio(codes)]
            pieces = [Piece(AUDIO_END, trusted=True)]
            if number + 1 < len(clips):
                pieces.append(Piece("\n", trusted=True))
        for line in (clean(speaker).strip() for speaker in speakers):
            if line:
                pieces += [Piece("\n", trusted=True), Piece(line, trusted=False)]
        pieces.append(Piece(SCENE_END + END, trusted=True))
        return Rows.concat([*parts, self._text(*pieces)])

    def opening(self, text: str) -> Rows:
        """The user message, and the assistant's up to where its audio begins."""
        return self._text(
            Piece(USER, trusted=True),
            self._outside(text),
            Piece(END + ASSISTANT + AUDIO_START, trusted=True),
        )

    def exchange(self, text: str, codes: Codes) -> Rows:
        """`opening`, the audio's delayed rows (all BOS first, all EOS last), the end of the message."""
        return Rows.concat([self.opening(text), self._audio(codes), self._after_audio])

    def begun(self, codes: Codes) -> Rows:
        """Behind `opening`: what a generation that has given frames [K, T] has fed, up to the last row that they make complete."""
        return Rows.of_audio(begun_delay(codes, bos=self.bos)[0], self.audio_token)

    def _audio(self, codes: Codes) -> Rows:
        audio = Rows.of_audio(build_delay(codes, bos=self.bos, eos=self.eos), self.audio_token)
        audio.tokens[len(audio) - (self.num_codebooks - 1) :] = self.delay_token
        return audio

    def exchange_length(self, text: str, frames: int) -> int:
        """`len(exchange(...))` for a number of frames, without building it."""
        return len(self.opening(text)) + frames + self.num_codebooks + 1 + len(self._after_audio)

    def _outside(self, text: str) -> Piece:
        return Piece(clean(text).strip(), trusted=False)

    def _text(self, *pieces: Piece) -> Rows:
        return Rows.of_text(self._tokenizer.encode(*pieces), self.num_codebooks)
