"""The documented API: `HiggsAudioServeEngine.generate_streaming_with_context` and what belongs to it.

Code that was written for boson_multimodal's names runs with other import lines and model names. What differs is inside: a
chunk prefills its own text only, because the engine keeps the model's state of the chunks before it; the prompt is the
documented one (everything that is in the buffers, then the new chunk) and so are the codes. docs/documented-api.md has the
details.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import logging
import os
import threading
import uuid
import weakref
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Coroutine, Iterable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from . import documented
from .audio import FRAME_RATE, HOP, SAMPLE_RATE, clip_from_array, load_clip
from .backends.local import LocalSynthesizer
from .config import Sampling, Window
from .conversation.context import ContextState, append
from .conversation.session import LIMIT_REFILL, ROWS_PER_CHAR
from .conversation.synthesizer import (
    AudioEvent,
    Codes,
    ContextSpec,
    Exchange,
    FinishedEvent,
    FinishReason,
    SpeakRequest,
    Synthesizer,
    VoicePrompt,
)
from .conversation.voice import SCENE_END, SCENE_START, system_text
from .documented import END_STRINGS, clip_text
from .errors import ClipError, SettingsError
from .model.loading import load

log = logging.getLogger("higgs_voice.serve_engine")

MAX_CLIPS = 32
"""Encoded clips that an engine remembers."""

_T = TypeVar("_T")


@dataclass
class AudioContent:
    """Sound in a message: a path, or a file's bytes in base64."""

    audio_url: str = ""
    """Path of a clip; empty or ``placeholder`` where `raw_audio` holds it, or where a buffer holds its codes."""
    raw_audio: str | None = None
    """A whole audio file in base64."""
    offset: float | None = None
    """Seconds to skip at the clip's start."""
    duration: float | None = None
    """Seconds to take."""
    row_id: int | None = None
    type: Literal["audio"] = "audio"


@dataclass
class TextContent:
    """Text in a message."""

    text: str
    type: Literal["text"] = "text"


@dataclass
class Message:
    """A message of a conversation."""

    role: str
    """``system``, ``user`` or ``assistant``."""
    content: str | AudioContent | TextContent | list[str | AudioContent | TextContent]
    recipient: str | None = None


@dataclass
class ChatMLSample:
    """A conversation to be continued by an assistant's audio: a system message or none, any number of user messages with the
    assistant's audio after each, and the user message to speak."""

    messages: list[Message]
    start_index: int | None = None
    misc: dict[str, Any] | None = None
    speaker: str | None = None


@dataclass
class HiggsAudioStreamerDelta:
    """One step of a stream."""

    text: str | None = None
    """Always None: the model generates audio only."""
    text_tokens: torch.Tensor | None = None
    """Always None."""
    audio_tokens: torch.Tensor | None = None
    """A delayed row, int64 [K codebooks], on the CPU."""
    finish_reason: str | None = None
    """On the very last delta of a stream, and there only: ``stop``, ``length`` (`max_new_tokens` was reached), or the guard that
    ended the last chunk: ``runaway``, ``silence``, ``collapse``."""


@dataclass
class HiggsAudioResponse:
    """What `HiggsAudioServeEngine.generate` gives."""

    audio: NDArray[np.float32] | None = None
    """Mono [n]; None when the model gave no sound."""
    generated_audio_tokens: NDArray[np.int64] | None = None
    """Delayed rows, [K, L]."""
    sampling_rate: int | None = None
    generated_text: str = ""
    """Always empty: the model generates audio only."""
    generated_text_tokens: NDArray[np.int64] | None = None
    """Always empty, [0]."""
    usage: dict[str, int] | None = None


def revert_delay_pattern(data: torch.Tensor) -> torch.Tensor:
    """Delayed rows [K, L], one chunk's or several chunks' one after another, to frames [K, T + 2].

    The first frame is the first chunk's BOS and the last one the last chunk's EOS, which callers cut off by ``[:, 1:-1]``. A
    chunk begins at a column that is all BOS, so at a join the EOS frame before it and the BOS frame are left out: what the
    caller keeps is the chunks' codes one after another. A stretch from the middle of a stream is taken as it is. Columns
    that are too few for a frame give none.
    """
    if data.ndim != 2:
        raise SettingsError(f"delayed audio tokens must be [codebooks, length], not {list(data.shape)}")
    books, length = int(data.shape[0]), int(data.shape[1])
    if length < books:
        return data[:, :0]
    starts = [place for place in _starts(data) if place > 0]
    bounds = [0, *starts, length]
    parts = [data[:, begin:end] for begin, end in pairwise(bounds) if end - begin >= books]
    frames = [_undelay(part) for part in parts]
    if not frames:
        return data[:, :0]
    eos = None if not starts else data[0, starts[0]] + 1
    for place, part in enumerate(frames):
        if place < len(frames) - 1 and eos is not None:
            ends = (part == eos).any(dim=0).nonzero()
            frames[place] = part = part[:, : int(ends[0])] if len(ends) else part
        if place > 0:
            frames[place] = part[:, 1:]
    return torch.cat(frames, dim=1)


def _undelay(rows: torch.Tensor) -> torch.Tensor:
    """[K, L] to [K, L - K + 1]: codebook k stands k columns late."""
    count = rows.shape[1] - rows.shape[0] + 1
    return torch.stack([row[book : book + count] for book, row in enumerate(rows)])


def _starts(data: torch.Tensor) -> list[int]:
    """Columns where a chunk begins: all BOS, with the staircase of BOS after it.

    The value of BOS is not given; it is the largest in the data but for EOS, which is one more.
    """
    books, length = int(data.shape[0]), int(data.shape[1])
    top = int(data.max())
    found: list[int] = []
    for place in ((data == data[:1]).all(dim=0) & (data[0] >= top - 1)).nonzero().flatten().tolist():
        value = data[0, place]
        ahead = range(1, min(books, length - place))
        staircase = all(bool((data[step:, place + step] == value).all()) for step in ahead)
        # The last column of a chunk is all EOS, and the one before it nearly so.
        closes = place > 0 and bool((data[: books - 1, place - 1] == value).all())
        if staircase and not closes:
            found.append(int(place))
    return found


class AudioTokenizer:
    """The codec as documented: codes to sound and back."""

    def __init__(self, engine: Synthesizer, background: _Background) -> None:
        self._engine = engine
        self._background = background
        self.sampling_rate: int = engine.info.sample_rate
        """Samples a second of what `decode` gives."""
        self.tps: int = engine.info.frame_rate
        """Frames a second."""
        self.num_codebooks: int = engine.info.num_codebooks
        self.codebook_size: int = engine.info.codebook_size

    def decode(self, vq_code: torch.Tensor | NDArray[np.integer]) -> NDArray[np.float32]:
        """Codes [1, K, T], T may be 0, to sound: float32 [1, 1, T * 960]."""
        codes = vq_code.detach().cpu().numpy() if isinstance(vq_code, torch.Tensor) else np.asarray(vq_code)
        if codes.ndim == 2:
            codes = codes[None]
        if codes.ndim != 3 or codes.shape[0] != 1 or codes.shape[1] != self.num_codebooks:
            raise SettingsError(f"codes must be [1, {self.num_codebooks}, frames], not {list(codes.shape)}")
        if not codes.shape[2]:
            return np.zeros((1, 1, 0), dtype=np.float32)
        return self._background.run(self._engine.decode(codes[0].astype(np.int16)))[None, None]

    def encode(self, audio_path_or_wv: str | Path | NDArray[np.floating], sr: int | None = None) -> torch.Tensor:
        """A clip, given by its path or as samples [n] at `sr`, to codes: int64 [K, T] on the CPU. Errors: `ClipError`."""
        if isinstance(audio_path_or_wv, str | Path):
            pcm = load_clip(audio_path_or_wv)
        elif sr is None:
            raise SettingsError("samples need their rate: encode(samples, sr)")
        else:
            pcm = clip_from_array(audio_path_or_wv, sr)
        return torch.from_numpy(self._background.run(self._engine.encode(pcm)).astype(np.int64))


class _Background:
    """An event loop on a thread of its own: calls that must not wait for the caller's loop, or have none."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="higgs-voice serve engine", daemon=True)
        self._thread.start()

    @property
    def here(self) -> bool:
        """Whether this is its thread."""
        return threading.current_thread() is self._thread

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Wait for it here; what it raises is raised here."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def close(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(5.0)
            self._loop.close()


class HiggsAudioServeEngine:
    """A Higgs Audio v2 model with its codec, behind the documented calls.

    Args:
        model_name_or_path: ``nano``, a hub id or a folder. audio_tokenizer_name_or_path: the codec, likewise.
        tokenizer_name_or_path: a tokenizer other than the model's own.
        device: ``cuda``, ``cpu``, a `torch.device`; ``auto`` is the GPU where there is one.
        torch_dtype: ``auto`` is bfloat16 on a GPU and float32 on a CPU.
        kv_cache_lengths: taken and not needed; the cache grows with the context.

    Several streams may run at once; they are stepped together. Errors: `ModelError`, `SettingsError`.
    """

    def __init__(
        self,
        model_name_or_path: str,
        audio_tokenizer_name_or_path: str | None = None,
        tokenizer_name_or_path: str | None = None,
        device: str | torch.device = "auto",
        torch_dtype: torch.dtype | str = "auto",
        kv_cache_lengths: Sequence[int] = (1024, 4096, 8192),
    ) -> None:
        if device != "auto" and torch.device(device).type == "cuda" and not torch.cuda.is_available():
            raise SettingsError(
                f"device {str(device)!r} was asked for and torch finds no CUDA GPU here; use device='cpu'"
            )
        codec = audio_tokenizer_name_or_path if audio_tokenizer_name_or_path != "nano" else None
        loaded = load(model_name_or_path, codec=codec, device=device, dtype=torch_dtype)
        if tokenizer_name_or_path is not None and tokenizer_name_or_path != model_name_or_path:
            from transformers import AutoTokenizer

            loaded = replace(loaded, tokenizer=AutoTokenizer.from_pretrained(tokenizer_name_or_path))
        self.model = loaded.model
        self.tokenizer = loaded.tokenizer
        self.device = loaded.device
        self.model_name_or_path = model_name_or_path
        self.torch_dtype = loaded.dtype
        self.kv_cache_lengths = tuple(kv_cache_lengths)
        self._open(LocalSynthesizer(loaded=loaded))

    def _open(self, engine: Synthesizer) -> None:
        """Everything but the model, around an engine that has not been started."""
        self._engine = engine
        self._background = _Background()
        self._clips: OrderedDict[str, Codes] = OrderedDict()
        self._warned: set[str] = set()
        # A serve engine that is dropped without `close` takes its threads along. Not at exit: no thread may start there.
        self._finalizer = weakref.finalize(self, _shut_down, engine, self._background)
        self._finalizer.atexit = False
        self._background.run(engine.start())
        info = engine.info
        self.audio_tokenizer = AudioTokenizer(engine, self._background)
        self.audio_num_codebooks: int = info.num_codebooks
        self.audio_codebook_size: int = info.codebook_size
        """Codes are 0 … audio_codebook_size - 1; BOS is this number and EOS the next."""
        self.audio_tokenizer_tps: int = info.frame_rate
        self.samples_per_token: int = HOP

    def close(self) -> None:
        """Stop every stream and free the model; idempotent."""
        self._finalizer()

    def __enter__(self) -> HiggsAudioServeEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # The documented calls

    generate_streaming_with_context = documented.generate_streaming_with_context

    async def generate_delta_stream(
        self,
        chat_ml_sample: ChatMLSample,
        max_new_tokens: int = 2048,
        temperature: float = 0.7,
        top_k: int | None = None,
        top_p: float = 0.95,
        stop_strings: list[str] | None = None,
        force_audio_gen: bool = False,
        ras_win_len: int | None = 7,
        ras_win_max_num_repeat: int = 2,
        seed: int | None = None,
    ) -> AsyncGenerator[HiggsAudioStreamerDelta, None]:
        """Speak a conversation's last user message. `stop_strings` and `force_audio_gen` have no effect, as above.

        Errors: `SettingsError` for a conversation of another shape, `ClipError`, `EngineError`.
        """
        sampling = _sampling(max_new_tokens, temperature, top_k, top_p, ras_win_len, ras_win_max_num_repeat, seed)
        self.say_what_has_no_effect(stop_strings, force_audio_gen=True)
        voice, text = await asyncio.to_thread(self._conversation, chat_ml_sample)
        session = uuid.uuid4().hex
        request = SpeakRequest(
            session_id=session,
            speech_id=f"{session}/0",
            context=ContextSpec(voice=voice),
            text=text,
            sampling=sampling,
            pcm=False,
        )
        spoken = _Spoken(self.audio_num_codebooks, self.audio_codebook_size)
        try:
            rows = spoken.rows(self._engine, request)
            async with aclosing(rows):
                async for row in rows:
                    yield HiggsAudioStreamerDelta(audio_tokens=row)
            yield HiggsAudioStreamerDelta(audio_tokens=spoken.last_row, finish_reason=spoken.reason)
        finally:
            self._engine.close_session(session)

    def generate(
        self,
        chat_ml_sample: ChatMLSample,
        max_new_tokens: int = 2048,
        temperature: float = 0.7,
        top_k: int | None = None,
        top_p: float = 0.95,
        stop_strings: list[str] | None = None,
        force_audio_gen: bool = False,
        ras_win_len: int | None = 7,
        ras_win_max_num_repeat: int = 2,
        seed: int | None = None,
    ) -> HiggsAudioResponse:
        """`generate_delta_stream`, waited for: the whole sound at once. May be called with or without a running event loop,
        which it blocks."""

        async def collect() -> list[torch.Tensor]:
            deltas = self.generate_delta_stream(
                chat_ml_sample,
                max_new_tokens,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                stop_strings=stop_strings,
                force_audio_gen=force_audio_gen,
                ras_win_len=ras_win_len,
                ras_win_max_num_repeat=ras_win_max_num_repeat,
                seed=seed,
            )
            return [delta.audio_tokens async for delta in deltas if delta.audio_tokens is not None]

        rows = self._background.run(collect())
        voice, text = self._conversation(chat_ml_sample)
        prompt = self._engine.count_rows(ContextSpec(voice=voice), text)
        delayed = torch.stack(rows, dim=1) if rows else torch.zeros((self.audio_num_codebooks, 0), dtype=torch.int64)
        audio = None
        if rows:
            codes = revert_delay_pattern(delayed).clip(0, self.audio_codebook_size - 1)[:, 1:-1]
            audio = self.audio_tokenizer.decode(codes.unsqueeze(0))[0, 0]
        return HiggsAudioResponse(
            audio=audio,
            generated_audio_tokens=delayed.numpy(),
            sampling_rate=self.audio_tokenizer.sampling_rate,
            generated_text_tokens=np.zeros(0, dtype=np.int64),
            usage={
                "prompt_tokens": prompt,
                "completion_tokens": len(rows),
                "total_tokens": prompt + len(rows),
                "cached_tokens": 0,
            },
        )

    # Inside

    async def open_generator(
        self,
        scene_prompt: str | None,
        speaker_descriptions: str | list[str] | None,
        ref_audio_paths: list[str] | None,
        generation_chunk_buffer_size: int | Literal["auto"] | None,
    ) -> StreamingVoiceGenerator:
        return await asyncio.to_thread(
            StreamingVoiceGenerator,
            self,
            scene_prompt=scene_prompt,
            speaker_descriptions=speaker_descriptions,
            ref_audio_paths=ref_audio_paths,
            generation_chunk_buffer_size=generation_chunk_buffer_size,
        )

    def say_what_has_no_effect(self, stop_strings: list[str] | None, *, force_audio_gen: bool) -> None:
        """Warn, once each, about arguments that an audio-only model has no use for."""
        others = [text for text in stop_strings or () if text not in END_STRINGS]
        if others:
            self._warn_once(
                f"stop_strings {others!r} have no effect: the model generates no text in which they could be found"
            )
        if not force_audio_gen:
            self._warn_once("force_audio_gen=False has no effect: the model generates audio and no text")

    def _warn_once(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            log.warning("%s", text)

    def _conversation(self, sample: ChatMLSample) -> tuple[VoicePrompt, str]:
        """A sample as the engine takes it: system and earlier exchanges, and the text to speak."""
        messages = list(sample.messages)
        system = _text_of(messages.pop(0)) if messages and messages[0].role == "system" else None
        references: list[Exchange] = []
        while len(messages) > 1:
            user, assistant, *messages = messages
            if user.role != "user" or assistant.role != "assistant":
                raise SettingsError(
                    "a conversation is a system message or none, then user messages each followed by the assistant's audio, "
                    f"then the user message to speak; got {user.role} followed by {assistant.role}"
                )
            references.append(Exchange(text=_text_of(user), codes=self.encode_content(_audio_of(assistant))))
        if not messages or messages[0].role != "user":
            raise SettingsError("a conversation ends with the user message to speak")
        before, scene = _split_scene(system)
        return VoicePrompt(system=before, scene=scene, references=tuple(references)), _text_of(messages[0])

    def encode_content(self, content: AudioContent) -> Codes:
        """Codes [K, T] of a message's sound; what was encoded is remembered. Errors: `ClipError`."""
        if content.audio_url not in ("", "placeholder"):
            try:
                data = Path(content.audio_url).read_bytes()
            except OSError as error:
                raise ClipError(f"reference clip {content.audio_url!r} cannot be read: {error.strerror}") from error
        elif content.raw_audio:
            try:
                data = base64.b64decode(content.raw_audio, validate=True)
            except (binascii.Error, ValueError) as error:
                raise ClipError(f"raw_audio is not an audio file in base64: {error}") from error
        else:
            raise ClipError("an assistant message in a conversation needs its audio: an audio_url or raw_audio")
        key = f"{hashlib.sha256(data).hexdigest()} {content.offset} {content.duration}"
        if key not in self._clips:
            pcm = load_clip(data)
            begin = int((content.offset or 0.0) * SAMPLE_RATE)
            end = None if content.duration is None else begin + int(content.duration * SAMPLE_RATE)
            self._clips[key] = self._background.run(self._engine.encode(clip_from_array(pcm[begin:end], SAMPLE_RATE)))
            while len(self._clips) > MAX_CLIPS:
                self._clips.popitem(last=False)
        return self._clips[key]

    @property
    def synthesizer(self) -> Synthesizer:
        """The engine behind the calls."""
        return self._engine


def _shut_down(engine: Synthesizer, background: _Background) -> None:
    def work() -> None:
        background.run(engine.aclose())
        background.close()

    # The garbage collector may come by on any thread, also on the one that has to do the work.
    thread = threading.Thread(target=work, name="higgs-voice shut down", daemon=True)
    thread.start()
    if not background.here:
        thread.join(10.0)


@dataclass(slots=True)
class _Spoken:
    """One chunk on its way out, frames turned back into delayed rows."""

    books: int
    bos: int
    frames: list[Codes] = field(default_factory=list[Codes])
    """[K, n] pieces."""
    reason: str = "stop"
    remember: bool = False
    """Whether its exchange may enter the context."""

    @property
    def codes(self) -> Codes:
        """[K, T]."""
        return np.concatenate(self.frames, axis=1) if self.frames else np.zeros((self.books, 0), dtype=np.int16)

    @property
    def last_row(self) -> torch.Tensor | None:
        """All EOS, int64 [K]: the row that closes a chunk. None for one without sound."""
        return torch.full((self.books,), self.bos + 1, dtype=torch.int64) if self.frames else None

    async def rows(self, engine: Synthesizer, request: SpeakRequest) -> AsyncGenerator[torch.Tensor]:
        """Delayed rows, int64 [K], in time with the frames: all BOS, then row r with frame r - 1 - k in codebook k, then the
        staircase of EOS up to `last_row`. A chunk without sound has none."""
        last: list[Codes] = []  # the last K frames, [K] each
        async with aclosing(engine.speak(request)) as events:
            async for event in events:
                if isinstance(event, FinishedEvent):
                    self._finish(event)
                    continue
                for frame in _frames(event):
                    if not self.frames:
                        yield torch.full((self.books,), self.bos, dtype=torch.int64)
                    self.frames.append(frame[:, None])
                    last = [*last, frame][-self.books :]
                    yield self._row(last)
        for late in range(1, self.books if last else 1):
            yield self._row(last, late)

    def _row(self, last: Sequence[Codes], late: int = 0) -> torch.Tensor:
        """The row that is complete with the newest frame, or the one `late` rows after it."""
        row = torch.empty(self.books, dtype=torch.int64)
        for book in range(self.books):
            back = book + 1 - late  # which of the last frames, from the end
            if back < 1:
                row[book] = self.bos + 1
            else:
                row[book] = int(last[-back][book]) if back <= len(last) else self.bos
        return row

    def _finish(self, event: FinishedEvent) -> None:
        names = {FinishReason.EOS: "stop", FinishReason.STOPPED: "stop"}
        self.reason = names.get(event.reason, event.reason.value)
        self.remember = event.reason in (FinishReason.EOS, FinishReason.LENGTH)
        if event.error is not None:
            log.warning("a chunk is not kept as context: %s", event.error)


def _frames(event: AudioEvent) -> Iterator[Codes]:
    for place in range(event.codes.shape[1] if event.codes.size else 0):
        yield event.codes[:, place]


class StreamingVoiceGenerator:
    """The rolling context of one voice, in four lists that may be read and changed between calls.

    The prompt of a chunk is `base_messages` with `ref_audio_ids`, then `generation_messages` with `generated_audio_ids`, then
    the chunk; after it the two rolling lists take it in and are cut to `generation_chunk_buffer_size` chunks. Emptying them
    begins a new context. `generate_streaming` may be called again and again: the context goes on.
    """

    def __init__(
        self,
        serve_engine: HiggsAudioServeEngine,
        scene_prompt: str | None = None,
        speaker_descriptions: str | list[str] | None = None,
        ref_audio_paths: list[str] | None = None,
        generation_chunk_buffer_size: int | Literal["auto"] | None = 5,
    ) -> None:
        """Clips are read and encoded here. Errors: `ClipError`, `SettingsError`."""
        self.serve_engine = serve_engine
        self.scene_prompt = scene_prompt
        self.speaker_descriptions = speaker_descriptions
        self.generation_chunk_buffer_size = generation_chunk_buffer_size
        self.base_messages: list[Message] = [Message("system", system_text(scene_prompt, speaker_descriptions))]
        """The system message, and a user and an assistant message for each clip."""
        self.ref_audio_ids: list[torch.Tensor] = []
        """Codes of the clips, int64 [K, T] each."""
        self.generated_audio_ids: list[torch.Tensor] = []
        """Codes of the chunks in the context, oldest first."""
        self.generation_messages: list[Message] = []
        """Two messages for each chunk in the context."""
        self._session = uuid.uuid4().hex
        self._count = 0
        self._held = 0
        """Rows of the engine's memory that the context took when it was last looked at."""
        self._prompt: tuple[list[Message], list[torch.Tensor], VoicePrompt] | None = None
        self._known: dict[int, tuple[torch.Tensor, Exchange]] = {}
        self._read(ref_audio_paths or [])
        self._finalizer = weakref.finalize(self, serve_engine.synthesizer.close_session, self._session)
        self._finalizer.atexit = False

    def close(self) -> None:
        """Free the engine's state of this context; idempotent. The lists stay, and another call builds the state again."""
        self.serve_engine.synthesizer.close_session(self._session)

    async def generate_streaming(
        self,
        text_chunks: list[str] | Iterable[str] | AsyncIterable[str],
        max_new_tokens: int = 2048,
        temperature: float = 0.7,
        top_k: int | None = None,
        top_p: float = 0.95,
        stop_strings: list[str] | None = None,
        force_audio_gen: bool = True,
        ras_win_len: int | None = 7,
        ras_win_max_num_repeat: int = 2,
        seed: int | None = None,
    ) -> AsyncGenerator[HiggsAudioStreamerDelta, None]:
        """See `HiggsAudioServeEngine.generate_streaming_with_context`."""
        sampling = _sampling(max_new_tokens, temperature, top_k, top_p, ras_win_len, ras_win_max_num_repeat, seed)
        size = self.generation_chunk_buffer_size
        if isinstance(size, str) and size != "auto":
            raise SettingsError(f'generation_chunk_buffer_size is a number, None or "auto", not {size!r}')
        window = Window.last_n(None if isinstance(size, str) else size)
        serve = self.serve_engine
        serve.say_what_has_no_effect(stop_strings, force_audio_gen=force_audio_gen)
        # The row that closes a chunk holds no sound; it waits until it is known whether another chunk follows.
        closing: torch.Tensor | None = None
        reason = "stop"
        async for text in _chunks(text_chunks):
            if not text.strip():
                continue
            if closing is not None:
                yield HiggsAudioStreamerDelta(audio_tokens=closing)
            spoken = _Spoken(serve.audio_num_codebooks, serve.audio_codebook_size)
            rows = spoken.rows(serve.synthesizer, self._request(text, sampling, window))
            async with aclosing(rows):
                async for row in rows:
                    yield HiggsAudioStreamerDelta(audio_tokens=row)
            closing, reason = spoken.last_row, spoken.reason
            if spoken.remember and spoken.frames:
                self._remember(text, spoken.codes, window)
        yield HiggsAudioStreamerDelta(audio_tokens=closing, finish_reason=reason)

    # Inside

    def _read(self, paths: list[str]) -> None:
        for place, path in enumerate(paths):
            content = AudioContent(audio_url=os.fspath(path))
            self.ref_audio_ids.append(torch.from_numpy(self.serve_engine.encode_content(content).astype(np.int64)))
            text = clip_text(path, place, len(paths))
            self.base_messages += [Message("user", text), Message("assistant", content)]

    def _request(self, text: str, sampling: Sampling, window: Window) -> SpeakRequest:
        voice = self._voice()
        state = self._state(voice, text, sampling)
        self._count += 1
        return SpeakRequest(
            session_id=self._session,
            speech_id=f"{self._session}/{self._count}",
            context=ContextSpec(voice=voice, exchanges=state.exchanges),
            text=text,
            sampling=sampling,
            next_context=self._next(voice, state, window),
            pcm=False,
        )

    def _voice(self) -> VoicePrompt:
        """`base_messages` and `ref_audio_ids` as the engine takes them; the same object while they are the same."""
        known = self._prompt
        same = known is not None and known[0] == self.base_messages and _same(known[1], self.ref_audio_ids)
        if known is None or not same:
            messages = list(self.base_messages)
            system = _text_of(messages.pop(0)) if messages and messages[0].role == "system" else None
            before, scene = _split_scene(system)
            references = tuple(self._exchanges(messages, self.ref_audio_ids))
            prompt = VoicePrompt(system=before, scene=scene, references=references)
            known = self._prompt = ([replace(item) for item in self.base_messages], list(self.ref_audio_ids), prompt)
        return known[2]

    def _exchanges(self, messages: Sequence[Message], codes: Sequence[torch.Tensor]) -> Iterator[Exchange]:
        texts = [_text_of(message) for message in messages if message.role == "user"]
        if len(texts) != len(codes):
            raise SettingsError(f"the buffers do not fit: {len(texts)} user messages for {len(codes)} pieces of audio")
        for text, ids in zip(texts, codes, strict=True):
            known = self._known.get(id(ids))
            if known is None or known[0] is not ids or known[1].text != text:
                known = self._known[id(ids)] = (ids, Exchange(text=text, codes=ids.cpu().numpy().astype(np.int16)))
            yield known[1]

    def _state(self, voice: VoicePrompt, text: str, sampling: Sampling) -> ContextState:
        """The rolling lists as a context that leaves room for the chunk; what does not fit is dropped from the lists."""
        engine = self.serve_engine.synthesizer
        room = min(sampling.max_new_tokens, int(len(text) * ROWS_PER_CHAR) + 4 * FRAME_RATE)
        items = list(self._exchanges(self.generation_messages, self.generated_audio_ids))
        if self.generation_chunk_buffer_size == "auto":
            items = self._within_memory(voice, items)
        limit = engine.info.max_positions
        if engine.count_rows(ContextSpec(voice, tuple(items)), text) + room > limit:
            before = len(items)
            while items and engine.count_rows(ContextSpec(voice, tuple(items)), text) + room > limit * LIMIT_REFILL:
                items.pop(0)
            self._keep(len(items))
            log.warning(
                "the context reached the model's %d positions; the oldest %d of %d chunks were dropped",
                limit,
                before - len(items),
                before,
            )
        return ContextState(window=tuple(items))

    def _within_memory(self, voice: VoicePrompt, items: list[Exchange]) -> list[Exchange]:
        """The newest of the chunks, as many as take the memory that this context has and half of what is free."""
        engine = self.serve_engine.synthesizer
        if not isinstance(engine, LocalSynthesizer):
            return items
        most = self._held + engine.free_rows // 2
        while items and engine.count_rows(ContextSpec(voice, tuple(items))) > most:
            items.pop(0)
        self._held = engine.count_rows(ContextSpec(voice, tuple(items)))
        self._keep(len(items))
        return items

    def _next(self, voice: VoicePrompt, state: ContextState, window: Window) -> ContextSpec | None:
        """What is left of the context when the coming chunk has joined it, where that evicts something."""
        new = Exchange(text="", codes=np.zeros((self.serve_engine.audio_num_codebooks, 0), dtype=np.int16))
        kept = tuple(item for item in append(state, new, window, pin=False).window if item is not new)
        return None if len(kept) == len(state.window) else ContextSpec(voice=voice, exchanges=kept)

    def _remember(self, text: str, codes: Codes, window: Window) -> None:
        ids = torch.from_numpy(codes.astype(np.int64))
        exchange = Exchange(text=text, codes=codes)
        self._known[id(ids)] = (ids, exchange)
        self.generated_audio_ids.append(ids)
        self.generation_messages += [Message("user", text), Message("assistant", AudioContent())]
        state = ContextState(
            window=tuple(self._exchanges(self.generation_messages[:-2], self.generated_audio_ids[:-1]))
        )
        self._keep(len(append(state, exchange, window, pin=False).window))

    def _keep(self, count: int) -> None:
        """The newest `count` chunks stay."""
        del self.generated_audio_ids[: len(self.generated_audio_ids) - count]
        del self.generation_messages[: len(self.generation_messages) - 2 * count]
        kept = {id(ids) for ids in (*self.ref_audio_ids, *self.generated_audio_ids)}
        self._known = {key: value for key, value in self._known.items() if key in kept}


def _same(before: Sequence[torch.Tensor], now: Sequence[torch.Tensor]) -> bool:
    return len(before) == len(now) and all(one is other for one, other in zip(before, now, strict=True))


def _sampling(
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    ras_win_len: int | None,
    ras_win_max_num_repeat: int,
    seed: int | None,
) -> Sampling:
    """Errors: `SettingsError`. A window or a k of 0 or less turns it off, as in the original."""
    return Sampling(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k if top_k is not None and top_k > 0 else None,
        top_p=top_p if top_p is not None else 1.0,
        ras_win_len=ras_win_len if ras_win_len is not None and ras_win_len > 0 else None,
        ras_win_max_num_repeat=ras_win_max_num_repeat,
        seed=seed,
    )


async def _chunks(text_chunks: Iterable[str] | AsyncIterable[str]) -> AsyncIterator[str]:
    if isinstance(text_chunks, str):
        yield text_chunks  # one chunk, not one for each of its characters
    elif isinstance(text_chunks, AsyncIterable):
        async for text in text_chunks:
            yield text
    else:
        for text in text_chunks:
            yield text


def _split_scene(system: str | None) -> tuple[str | None, str | None]:
    """A system message as integrators write it: what stands around the scene's marks, and what stands between them."""
    if system is None:
        return None, None
    before, mark, rest = system.partition(SCENE_START)
    if not mark:
        return system.strip(), None
    inside, mark, after = rest.rpartition(SCENE_END)
    scene = inside if mark else after
    around = [part for part in (before.strip(), after.strip() if mark else "") if part]
    return "\n".join(around), scene.strip() or None


def _parts(message: Message) -> list[str | AudioContent | TextContent]:
    return message.content if isinstance(message.content, list) else [message.content]


def _text_of(message: Message) -> str:
    """A message's text. Errors: `SettingsError` when there is sound in it."""
    texts: list[str] = []
    for part in _parts(message):
        if isinstance(part, AudioContent):
            raise SettingsError(
                f"audio in a {message.role} message is not taken; give a clip as the audio of an assistant message, "
                "after a user message with what is said in it"
            )
        texts.append(part if isinstance(part, str) else part.text)
    return "".join(texts)


def _audio_of(message: Message) -> AudioContent:
    sounds = [part for part in _parts(message) if isinstance(part, AudioContent)]
    if len(sounds) != 1:
        raise SettingsError(
            "an assistant message in a conversation holds exactly one AudioContent; text of its own is not taken"
        )
    return sounds[0]


__all__ = [
    "AudioContent",
    "AudioTokenizer",
    "ChatMLSample",
    "HiggsAudioResponse",
    "HiggsAudioServeEngine",
    "HiggsAudioStreamerDelta",
    "Message",
    "StreamingVoiceGenerator",
    "TextContent",
    "revert_delay_pattern",
]
