"""What the documented API is on either engine: ours (`serve_engine`), and boson_multimodal's own class (`backends.boson_serving`).

The second lives in an environment of its own, so nothing here needs more than Python. Signatures that say the same twice,
because what is behind them differs (`generate_streaming`, `generate_delta_stream`), are held together by a test.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable
from contextlib import aclosing
from pathlib import Path
from typing import Literal, Protocol, TypeVar

log = logging.getLogger("higgs_voice.documented")

END_STRINGS = ("<|end_of_text|>", "<|eot_id|>")
"""What integrators pass as `stop_strings` by habit, and what ends boson_multimodal's text unless they do."""

_Delta = TypeVar("_Delta")
_Delta_co = TypeVar("_Delta_co", covariant=True)


class VoiceGenerator(Protocol[_Delta_co]):
    """A `StreamingVoiceGenerator`, as far as it is needed here."""

    @property
    def generate_streaming(self) -> Callable[..., AsyncGenerator[_Delta_co, None]]:
        """Called with the chunks, and by name with the rest."""
        ...

    def close(self) -> None:
        """Free what is kept of its context."""
        ...


class ServeEngine(Protocol[_Delta_co]):
    """A `HiggsAudioServeEngine`, as far as it is needed here."""

    async def open_generator(
        self,
        scene_prompt: str | None,
        speaker_descriptions: str | list[str] | None,
        ref_audio_paths: list[str] | None,
        generation_chunk_buffer_size: int | Literal["auto"] | None,
    ) -> VoiceGenerator[_Delta_co]:
        """A new context. Clips are read and encoded here. Errors: `ClipError`, `SettingsError`."""
        ...


async def generate_streaming_with_context(
    self: ServeEngine[_Delta],
    text_chunks: list[str] | Iterable[str] | AsyncIterable[str],
    scene_prompt: str | None = None,
    speaker_descriptions: str | list[str] | None = None,
    ref_audio_paths: list[str] | None = None,
    generation_chunk_buffer_size: int | Literal["auto"] | None = 5,
    max_new_tokens: int = 2048,
    temperature: float = 0.7,
    top_k: int | None = None,
    top_p: float = 0.95,
    stop_strings: list[str] | None = None,
    force_audio_gen: bool = True,
    ras_win_len: int | None = 7,
    ras_win_max_num_repeat: int = 2,
    seed: int | None = None,
) -> AsyncGenerator[_Delta, None]:
    """Speak chunks of text one after another, each with the ones before it as its context. A method of both engines.

    Args:
        text_chunks: a list, or any iterable; our engine also takes an async one, which is asked for the next chunk when the
            last has been spoken. Blank chunks are passed over.
        scene_prompt: where it is recorded. speaker_descriptions: one, or one for each speaker.
        ref_audio_paths: clips to clone. What is said in ``voice.wav`` is read from ``voice.txt`` beside it; without that
            file the transcript is empty, which is warned about: a transcript makes a better clone.
        generation_chunk_buffer_size: chunks kept as context; None keeps all, as far as the model's positions go; "auto", on our
            engine, keeps as many as half of its free memory for contexts has room for.
        max_new_tokens: rows (25 a second) that a chunk may take. temperature: 0 is greedy. ras_win_len: None turns
            repetition-aware sampling off. seed: used for every chunk; None draws one for each.
        stop_strings, force_audio_gen: have no effect on our engine. The model generates audio and no text, so there is nothing
            in which a string could be found, and nothing else that could be generated. Other values than the usual ones are
            warned about once. boson_multimodal's engine heeds them.

    Yields: a delta for every delayed row. Leaving the loop early stops the model.
    Errors: `SettingsError`, `ClipError`, `EngineError`; on boson_multimodal's engine whatever its generation raises.
    """
    generator = await self.open_generator(
        scene_prompt, speaker_descriptions, ref_audio_paths, generation_chunk_buffer_size
    )
    try:
        deltas = generator.generate_streaming(
            text_chunks,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            stop_strings=stop_strings,
            force_audio_gen=force_audio_gen,
            ras_win_len=ras_win_len,
            ras_win_max_num_repeat=ras_win_max_num_repeat,
            seed=seed,
        )
        async with aclosing(deltas):
            async for delta in deltas:
                yield delta
    finally:
        generator.close()


def clip_text(path: str | os.PathLike[str], place: int, count: int) -> str:
    """What the user message before a clip holds, when it is number `place` of `count`: what is said in it, after the
    speaker's mark where there are several."""
    text = transcript(Path(path))
    return f"[SPEAKER{place}] {text}".rstrip() if count > 1 else text


def transcript(clip: Path) -> str:
    """What is said in a clip, from the text file beside it; empty, with a warning, where that cannot be read."""
    file = clip.with_suffix(".txt")
    try:
        return file.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        log.warning("there is no transcript of the reference clip %s: write what is said in it to %s", clip, file)
    except (OSError, UnicodeDecodeError) as error:
        log.warning("the transcript %s of a reference clip cannot be read: %s", file, error)
    return ""


__all__ = ["END_STRINGS", "ServeEngine", "VoiceGenerator", "clip_text", "generate_streaming_with_context", "transcript"]
