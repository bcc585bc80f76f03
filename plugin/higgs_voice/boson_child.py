"""The process with boson_multimodal in it: its model behind the wire protocol, on loopback, codes only.

`backends.boson` starts it and writes its settings as one line of JSON to its standard input. It writes one JSON line to standard output when it serves
(``{"port": n}``) or cannot (``{"error": …}``), and ends when its standard input does.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .backends import boson_serving as serving
from .conversation.synthesizer import (
    AudioEvent,
    Codes,
    ContextSpec,
    EngineInfo,
    Exchange,
    FinishedEvent,
    FinishReason,
    SpeakRequest,
    SpeechEvent,
    VoicePrompt,
)
from .errors import CheckpointError, EngineDiedError, HiggsVoiceError, RefusedError
from .model.delay import DelayReverter
from .model.prompt import SCENE_END, SCENE_START, Piece, PieceTokenizer, clean
from .server.app import Server, ServerSettings


class _Pieces(str):
    """A message's text of which only some is the template's own."""

    pieces: tuple[Piece, ...]

    __slots__ = ("pieces",)

    @classmethod
    def of(cls, *pieces: Piece) -> _Pieces:
        text = cls("".join(piece.text for piece in pieces))
        text.pieces = pieces
        return text


class _PromptTokenizer:
    """The tokenizer that the package's prompt code is given: text from outside never becomes a special token."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._pieces = PieceTokenizer(tokenizer)

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        if isinstance(text, _Pieces):
            return self._pieces.encode(*text.pieces).tolist()
        return self._tokenizer.encode(text, add_special_tokens=add_special_tokens)


class Codebooks:
    """The package's `HiggsAudioServeEngine` without its codec, as a `Synthesizer` of codes."""

    def __init__(self, model: str, name: str, device: str, dtype: str, kv_cache_lengths: list[int]) -> None:
        self._model, self._name = model, name
        self._device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        kind = ("bfloat16" if self._device.startswith("cuda") else "float32") if dtype == "auto" else dtype
        self._dtype: torch.dtype = getattr(torch, kind)
        self._lengths = kv_cache_lengths
        self._engine: Any = None
        self._temperature: float | None = None
        self._running: dict[str, tuple[str, asyncio.Event]] = {}
        self._info: EngineInfo | None = None

    @property
    def info(self) -> EngineInfo:
        if self._info is None:
            raise EngineDiedError("the engine has not been started")
        return self._info

    async def start(self) -> None:
        if self._engine is None:
            await asyncio.to_thread(self._load)

    def _load(self) -> None:
        with serving.without_codec():
            try:
                engine = serving.package.HiggsAudioServeEngine(
                    self._model, "", device=self._device, torch_dtype=self._dtype, kv_cache_lengths=self._lengths
                )
            except (OSError, ValueError, KeyError, AssertionError, RuntimeError) as error:
                first = (str(error).strip().splitlines() or [type(error).__name__])[0]
                raise CheckpointError(f"boson_multimodal cannot read {self._model}: {first}") from error
        engine.prompt_tokenizer = _PromptTokenizer(engine.tokenizer)
        serving.install()
        self._engine = engine
        # What differs from the class's own defaults: that version of transformers has 1.0 where a checkpoint says nothing.
        self._temperature = engine.model.generation_config.to_diff_dict().get("temperature")
        config = engine.model.config
        self._bos, self._eos = int(config.audio_stream_bos_id), int(config.audio_stream_eos_id)
        self._info = EngineInfo(
            model=self._name,
            num_codebooks=int(config.audio_num_codebooks),
            codebook_size=self._bos,
            max_positions=max(self._lengths),
        )

    async def aclose(self) -> None:
        for _, stop in self._running.values():
            stop.set()

    async def speak(self, request: SpeakRequest) -> AsyncGenerator[SpeechEvent]:
        asked = time.monotonic()
        sampling = request.sampling
        reverter = DelayReverter(self.info.num_codebooks, bos=self._bos, eos=self._eos)
        frames = rows = 0
        timings: dict[str, float] = {}
        stop = asyncio.Event()
        self._running[request.speech_id] = (request.session_id, stop)
        stream = self._engine.generate_delta_stream(
            serving.data_types.ChatMLSample(messages=messages(request)),
            max_new_tokens=sampling.max_new_tokens,
            temperature=sampling.recommended(self._temperature).drawn_at,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            force_audio_gen=True,
            ras_win_len=sampling.ras_win_len,
            ras_win_max_num_repeat=sampling.ras_win_max_num_repeat,
            seed=sampling.seed if sampling.seed is not None else secrets.randbits(31),
        )
        try:
            async with aclosing(stream) as deltas:
                async for delta in _until(deltas, stop):
                    if delta.audio_tokens is None:
                        continue
                    rows += 1
                    if rows == 1:  # the row that is all BOS
                        timings["prefill"] = time.monotonic() - asked
                        continue
                    frame = reverter.push(delta.audio_tokens.numpy().astype(np.int16))
                    if frame is not None:
                        if not frames:
                            timings["ttfa"] = time.monotonic() - asked
                        frames += 1
                        yield AudioEvent(b"", 0, frame[:, None])
        except HiggsVoiceError:
            raise
        except Exception as error:
            raise EngineDiedError(f"boson_multimodal failed: {type(error).__name__}: {error}") from error
        finally:
            self._running.pop(request.speech_id, None)
        timings["total"] = time.monotonic() - asked
        reason = FinishReason.STOPPED if stop.is_set() else FinishReason.LENGTH
        if not stop.is_set() and (reverter.ended or rows < sampling.max_new_tokens):
            reason = FinishReason.EOS
        yield FinishedEvent(reason, frames, timings=timings)

    def stop(self, speech_id: str) -> None:
        if (found := self._running.get(speech_id)) is not None:
            found[1].set()

    def prepare(self, session_id: str, context: ContextSpec) -> None:
        """The package keeps nothing from chunk to chunk."""

    def close_session(self, session_id: str) -> None:
        for session, stop in self._running.values():
            if session == session_id:
                stop.set()

    async def encode(self, pcm: NDArray[np.float32]) -> Codes:
        raise RefusedError("this process has no codec; clips are encoded where the sound is made")

    async def decode(self, codes: Codes) -> NDArray[np.float32]:
        raise RefusedError("this process has no codec; sound is made by whoever started it")

    def count_rows(self, context: ContextSpec, text: str = "") -> int:
        items = (*context.voice.references, *context.exchanges)
        return 40 + len(text.encode()) + sum(len(item.text.encode()) + item.frames + 28 for item in items)


async def _until(deltas: AsyncGenerator[Any], stop: asyncio.Event) -> AsyncGenerator[Any]:
    """Deltas until the stop, which need not wait for the next one."""
    stopped = asyncio.ensure_future(stop.wait())
    following: asyncio.Future[Any] | None = None
    try:
        while not stop.is_set():
            following = asyncio.ensure_future(anext(deltas, None))
            await asyncio.wait({following, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if not following.done():
                return
            delta = following.result()
            if delta is None:
                return
            yield delta
    finally:
        stopped.cancel()
        if following is not None and not following.done():
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)


def messages(request: SpeakRequest) -> list[Any]:
    """A request as the package's conversation."""
    voice = request.context.voice
    out: list[Any] = []
    if voice.system is not None:
        out.append(_message("system", _system(voice, voice.system)))
    references = () if voice.references_in_scene and voice.system is not None else voice.references
    for exchange in (*references, *request.context.exchanges):
        out += [_message("user", [_outside(exchange.text)]), _message("assistant", [_audio(exchange)])]
    return [*out, _message("user", [_outside(request.text)])]


def _system(voice: VoicePrompt, system: str) -> list[Any]:
    """The system message's contents: text, and the sound of clips that stand in the scene."""
    scene = clean(voice.scene).strip() if voice.scene else ""
    lines = [line for line in (clean(speaker).strip() for speaker in voice.speakers) if line]
    clips = voice.references if voice.references_in_scene else ()
    pieces = [Piece(clean(system).strip(), trusted=False)]
    out: list[Any] = []
    if scene or lines or clips:
        pieces.append(Piece("\n\n" + SCENE_START, trusted=True))
    if scene:
        pieces.append(Piece(scene, trusted=False))
    between = "\n\n" if scene else ""
    for number, clip in enumerate(clips):
        pieces.append(Piece(f"{between}SPEAKER{number}: ", trusted=True))
        out += [_Pieces.of(*pieces), _audio(clip)]
        pieces, between = [], "\n"
    for line in lines:
        pieces += [Piece(between, trusted=True), Piece(line, trusted=False)]
        between = "\n"
    if scene or lines or clips:
        pieces.append(Piece(SCENE_END, trusted=True))
    return [*out, _Pieces.of(*pieces)]


def _outside(text: str) -> str:
    return _Pieces.of(Piece(clean(text).strip(), trusted=False))


def _audio(exchange: Exchange) -> Any:
    return serving.Codes(audio_url="", codes=torch.from_numpy(exchange.codes.astype(np.int64)))


def _message(role: str, content: Any) -> Any:
    return serving.data_types.Message(role=role, content=content)


async def main() -> None:
    options = json.loads(sys.stdin.buffer.readline())
    token = options.pop("token")
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # the package prints; the line to the parent stays clean
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(sys.stdin.fileno(), lambda: ended.set() if not os.read(sys.stdin.fileno(), 1) else None)
    engine = Codebooks(**options)
    settings = ServerSettings(
        port=0,
        token=token,
        admit_beyond_capacity=True,
        max_sessions=1_000_000,
        max_chunks_per_minute=1_000_000,
        max_text=1_000_000,
    )
    try:
        async with Server(engine, settings) as server:
            print(json.dumps({"port": server.port}), file=out, flush=True)
            await ended.wait()
    except HiggsVoiceError as error:
        print(json.dumps({"kind": type(error).__name__, "error": str(error)}), file=out, flush=True)
    finally:
        await engine.aclose()
    with contextlib.suppress(OSError):
        out.flush()
    os._exit(0)  # a generation that is on its way does not hold the process


if __name__ == "__main__":
    asyncio.run(main())
