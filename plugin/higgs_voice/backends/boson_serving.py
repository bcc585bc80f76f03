"""Inside an environment that has boson_multimodal: what its own `HiggsAudioServeEngine` lacks.

`install` gives the class the documented `generate_streaming_with_context`, and a `generate_delta_stream` of the same behaviour
whose weak spots are handled: a generation that fails ends its stream with its error, closing the stream stops the model within
a step, and two requests at once wait for one another instead of sharing the key-value caches. Nothing else of the package is
changed; tokens, prompts and sampling are its own.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import importlib
import os
import threading
from collections.abc import AsyncGenerator, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from types import SimpleNamespace
from typing import Any

import torch

from ..conversation.voice import system_text
from ..documented import END_STRINGS, clip_text, generate_streaming_with_context
from ..errors import DependencyError, EngineClosedError, SettingsError

try:
    package: Any = importlib.import_module("boson_multimodal.serve.serve_engine")
    data_types: Any = importlib.import_module("boson_multimodal.data_types")
    dataset: Any = importlib.import_module("boson_multimodal.dataset.chatml_dataset")
    utils: Any = importlib.import_module("boson_multimodal.model.higgs_audio.utils")
    generation: Any = importlib.import_module("transformers.generation.stopping_criteria")
except ModuleNotFoundError as error:
    raise DependencyError(
        f"this part of higgs-voice runs where boson_multimodal is installed, and {error.name} is missing here; `make boson` sets "
        "up an environment for it, .venv-boson"
    ) from error

_Delta: Any = package.HiggsAudioStreamerDelta
_POSTFIX = "<|start_header_id|>assistant<|end_header_id|>\n\n"
_AUDIO_START = "<|audio_out_bos|>"


class _Stopped(Exception):  # noqa: N818 - no error: it unwinds a generation that nobody wants any more
    pass


@dataclass(frozen=True, slots=True)
class _Failed:
    error: BaseException


@dataclass
class Codes(data_types.AudioContent):  # pyright: ignore[reportUntypedBaseClass]
    """Audio of a message that is there as codes."""

    codes: torch.Tensor | None = None
    """[K, T], no delay, no BOS or EOS."""


class _Streamer(package.AsyncHiggsAudioStreamer):  # pyright: ignore[reportUntypedBaseClass]
    """The package's streamer, which can be stopped and can fail."""

    loop: asyncio.AbstractEventLoop
    queue: asyncio.Queue[Any]

    def __init__(self, tokenizer: Any, codebooks: int) -> None:
        super().__init__(tokenizer, audio_num_codebooks=codebooks, skip_prompt=True)
        self.stopped = threading.Event()

    def put(self, value: torch.Tensor) -> None:
        if self.stopped.is_set():
            raise _Stopped
        super().put(value)

    def fail(self, error: BaseException) -> None:
        with contextlib.suppress(RuntimeError):  # the event loop is gone, and whoever listened with it
            self.loop.call_soon_threadsafe(self.queue.put_nowait, _Failed(error))


class _AudioEnds(generation.StoppingCriteria):  # pyright: ignore[reportUntypedBaseClass]
    """The end of the audio is the end of the answer: the text that the model would go on with is not spoken."""

    def __init__(self, audio_eos: int) -> None:
        super().__init__()
        self._audio_eos = audio_eos

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> bool:
        return bool((input_ids[:, -1] == self._audio_eos).all())


def install(cls: Any = package.HiggsAudioServeEngine) -> None:
    """Give the package's engine the documented streaming; doing it again changes nothing."""
    cls.generate_delta_stream = generate_delta_stream
    cls.generate_streaming_with_context = generate_streaming_with_context
    cls.open_generator = _open_generator


@contextlib.contextmanager
def without_codec() -> Generator[None]:
    """Engines made in here have no codec: they take and give codes, and fetch nothing for it."""
    before = package.load_higgs_audio_tokenizer
    package.load_higgs_audio_tokenizer = _no_codec
    try:
        yield
    finally:
        package.load_higgs_audio_tokenizer = before


def _no_codec(*_: object, **__: object) -> SimpleNamespace:
    return SimpleNamespace(tps=25, sampling_rate=24000)


def line_of(engine: Any) -> ThreadPoolExecutor:
    """The one thread on which an engine's model runs; requests wait there in order."""
    line: ThreadPoolExecutor | None = getattr(engine, "_higgs_voice_line", None)
    if line is None:
        line = engine._higgs_voice_line = ThreadPoolExecutor(1, thread_name_prefix="boson_multimodal")
    return line


async def generate_delta_stream(
    self: Any,
    chat_ml_sample: Any,
    max_new_tokens: int,
    temperature: float = 0.7,
    top_k: int | None = None,
    top_p: float = 0.95,
    stop_strings: list[str] | None = None,
    force_audio_gen: bool = False,
    ras_win_len: int | None = 7,
    ras_win_max_num_repeat: int = 2,
    seed: int | None = None,
) -> AsyncGenerator[Any]:
    """The package's method of this name; see the module. Raises what the generation raised."""
    streamer = _Streamer(self.tokenizer, self.audio_num_codebooks)

    def work() -> None:
        try:
            if streamer.stopped.is_set():
                return
            settings: dict[str, Any] = {}
            if not force_audio_gen or stop_strings is not None:
                strings = list(END_STRINGS) if stop_strings is None else stop_strings
                settings |= {"stop_strings": strings, "tokenizer": self.tokenizer}
            if force_audio_gen:
                ends = _AudioEnds(self.tokenizer.convert_tokens_to_ids("<|audio_eos|>"))
                settings["stopping_criteria"] = generation.StoppingCriteriaList([ends])
            with torch.no_grad():
                inputs = prepare_inputs(self, chat_ml_sample, force_audio_gen=force_audio_gen)
                self._prepare_kv_caches()
                self.model.generate(
                    **inputs,
                    max_new_tokens=max_new_tokens,
                    use_cache=True,
                    do_sample=temperature != 0.0,
                    temperature=temperature,
                    top_k=top_k,
                    top_p=top_p,
                    past_key_values_buckets=self.kv_caches,
                    ras_win_len=ras_win_len if ras_win_len is not None and ras_win_len > 0 else None,
                    ras_win_max_num_repeat=ras_win_max_num_repeat,
                    seed=seed,
                    streamer=streamer,
                    **settings,
                )
        except _Stopped:
            pass
        except BaseException as error:  # noqa: BLE001 - whatever it is, the reader must hear of it
            streamer.fail(error)

    try:
        done = asyncio.wrap_future(line_of(self).submit(work))
    except RuntimeError as error:
        raise EngineClosedError("this engine is closed") from error
    try:
        async for delta in streamer:
            if isinstance(delta, _Failed):
                raise delta.error
            yield delta
    finally:
        streamer.stopped.set()
        await asyncio.shield(done)


def prepare_inputs(engine: Any, sample: Any, *, force_audio_gen: bool) -> dict[str, Any]:
    """The package's collator over a conversation whose audio may be there as codes. Errors: `SettingsError`."""
    tokenizer = getattr(engine, "prompt_tokenizer", engine.tokenizer)
    tokens, _, contents, _ = package.prepare_chatml_sample(sample, tokenizer)
    if tokens is None:
        raise SettingsError("boson_multimodal could not read this conversation; what it printed says why")
    tokens = [
        *tokens,
        *tokenizer.encode(_POSTFIX + (_AUDIO_START if force_audio_gen else ""), add_special_tokens=False),
    ]
    codes = [found for found in (_codes(engine, content) for content in contents) if found is not None]
    lengths = [0, *(each.shape[1] for each in codes)]
    starts = torch.tensor(lengths, dtype=torch.long).cumsum(0)[:-1].to(engine.device) if codes else None
    item = dataset.ChatMLDatasetSample(
        input_ids=torch.tensor(tokens, dtype=torch.long),
        label_ids=None,
        audio_ids_concat=torch.cat(codes, dim=1) if codes else None,
        audio_ids_start=starts,
        audio_waveforms_concat=None,
        audio_waveforms_start=None,
        audio_sample_rate=None,
        audio_speaker_indices=None,
    )
    # The package's server leaves out the codes of sound in a system or user message; its model and its examples take them.
    engine.collator.return_audio_in_tokens = bool(engine.model.config.encode_audio_in_tokens)
    batch = vars(engine.collator([item]))
    device = engine.model.device
    return {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in batch.items()}


def _codes(engine: Any, content: Any) -> torch.Tensor | None:
    """Codes [K, T] of a message's audio; None where only its place is meant."""
    if isinstance(content, Codes):
        return content.codes
    if content.audio_url not in ("placeholder", ""):
        source: Any = content.audio_url
    elif content.raw_audio is not None:
        source = BytesIO(base64.b64decode(content.raw_audio))
    else:
        return None
    rate = engine.audio_tokenizer.sampling_rate
    sound, _ = package.librosa.load(source, sr=rate)
    return engine.audio_tokenizer.encode(sound, rate).squeeze(0).cpu()


class StreamingVoiceGenerator:
    """The rolling context of one voice: every chunk is a full prefill of `base_messages` and the two rolling lists.

    The lists may be read and changed between calls; emptying them begins a new context.
    """

    def __init__(
        self,
        serve_engine: Any,
        scene_prompt: str | None = None,
        speaker_descriptions: str | list[str] | None = None,
        ref_audio_paths: list[str] | None = None,
        generation_chunk_buffer_size: int | None = 5,
    ) -> None:
        """Clips are read and encoded here; a clip's transcript stands beside it (NAME.wav, NAME.txt)."""
        self.serve_engine = serve_engine
        self.generation_chunk_buffer_size = generation_chunk_buffer_size
        self.base_messages: list[Any] = [_message("system", system_text(scene_prompt, speaker_descriptions))]
        self.ref_audio_ids: list[torch.Tensor] = []
        """Codes of the clips, [K, T] each."""
        self.generated_audio_ids: list[torch.Tensor] = []
        """Codes of the chunks in the context, oldest first."""
        self.generation_messages: list[Any] = []
        """Two messages for each chunk in the context."""
        for place, path in enumerate(ref_audio_paths or []):
            clip = data_types.AudioContent(audio_url=os.fspath(path))
            codes = _codes(serve_engine, clip)
            assert codes is not None
            text = clip_text(path, place, len(ref_audio_paths or []))
            self.ref_audio_ids.append(codes)
            self.base_messages += [_message("user", text), _message("assistant", clip)]

    def close(self) -> None:
        """Nothing is kept beside the lists; it is here for code that runs on either engine."""

    async def generate_streaming(
        self,
        text_chunks: Iterable[str],
        max_new_tokens: int = 2048,
        temperature: float = 0.7,
        top_k: int | None = None,
        top_p: float = 0.95,
        stop_strings: list[str] | None = None,
        force_audio_gen: bool = True,
        ras_win_len: int | None = 7,
        ras_win_max_num_repeat: int = 2,
        seed: int | None = None,
    ) -> AsyncGenerator[Any]:
        """Deltas of all chunks, in order. Errors: `SettingsError`, and whatever a generation raises."""
        for text in [text_chunks] if isinstance(text_chunks, str) else text_chunks:
            if not text.strip():
                continue
            rows: list[torch.Tensor] = []
            new = _message("user", text)
            stream = self.serve_engine.generate_delta_stream(
                data_types.ChatMLSample(messages=[*self._context(), new]),
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
            async with contextlib.aclosing(stream) as deltas:
                async for delta in deltas:
                    if delta.audio_tokens is not None:
                        rows.append(delta.audio_tokens)
                    yield delta
            self._remember(new, rows)
        yield _Delta(finish_reason="stop")

    def _context(self) -> list[Any]:
        """The messages before a new chunk, each piece of audio with its codes."""
        codes = iter([*self.ref_audio_ids, *self.generated_audio_ids])
        messages: list[Any] = []
        try:
            for message in [*self.base_messages, *self.generation_messages]:
                is_audio = isinstance(message.content, data_types.AudioContent)
                content = Codes(audio_url="", codes=next(codes)) if is_audio else message.content
                messages.append(_message(message.role, content))
        except StopIteration:
            raise SettingsError("the buffers do not fit: there are more audio messages than pieces of audio") from None
        if next(codes, None) is not None:
            raise SettingsError("the buffers do not fit: there are more pieces of audio than audio messages")
        return messages

    def _remember(self, said: Any, rows: list[torch.Tensor]) -> None:
        books, size = self.serve_engine.audio_num_codebooks, self.serve_engine.audio_codebook_size
        if len(rows) <= books + 1:
            return  # nothing but the delay pattern: no sound
        codes = utils.revert_delay_pattern(torch.stack(rows, dim=1)).clip(0, size - 1)[:, 1:-1]
        self.generated_audio_ids.append(codes)
        self.generation_messages += [said, _message("assistant", data_types.AudioContent(audio_url=""))]
        keep = self.generation_chunk_buffer_size
        if keep is not None:
            del self.generated_audio_ids[: max(0, len(self.generated_audio_ids) - keep)]
            del self.generation_messages[: max(0, len(self.generation_messages) - 2 * keep)]


async def _open_generator(
    self: Any,
    scene_prompt: str | None,
    speaker_descriptions: str | list[str] | None,
    ref_audio_paths: list[str] | None,
    generation_chunk_buffer_size: int | None,
) -> StreamingVoiceGenerator:
    return StreamingVoiceGenerator(
        self, scene_prompt, speaker_descriptions, ref_audio_paths, generation_chunk_buffer_size
    )


def _message(role: str, content: Any) -> Any:
    return data_types.Message(role=role, content=content)


__all__ = ["Codes", "StreamingVoiceGenerator", "install", "prepare_inputs", "without_codec"]
