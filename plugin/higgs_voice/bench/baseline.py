"""The documented algorithm on other engines, to be measured beside ours with the same weights: every chunk is prefilled anew.

``boson``: boson_multimodal, in its own environment (`backends.boson`). ``transformers``: the model class's own `generate` on
the whole prompt. Both say codes, and both are given the same codec stream as ours, so that what differs is the engine.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.generation.stopping_criteria import StoppingCriteria, StoppingCriteriaList

from ..backends.boson import BosonSynthesizer
from ..backends.guards import Guards
from ..backends.sounding import Sounding
from ..conversation.synthesizer import (
    AudioEvent,
    Codes,
    ContextSpec,
    EngineInfo,
    FinishedEvent,
    FinishReason,
    SpeakRequest,
    SpeechEvent,
    Synthesizer,
)
from ..errors import EngineDiedError, SettingsError
from ..model.delay import DelayReverter
from ..model.loading import Loaded, load
from ..model.prompt import PromptBuilder, Rows

NAMES = ("boson", "transformers")
_GUARDS = Guards(base_s=600.0, silence_s=600.0, min_frames=1, retries=0)


def baseline(name: str, model: str, *, device: str = "auto", dtype: str = "auto") -> Synthesizer:
    """A baseline's engine on the weights of `model`. Errors: `SettingsError`."""
    match name:
        case "boson":
            return BosonSynthesizer(model, device=device, dtype=dtype, guards=_GUARDS)
        case "transformers":
            return TransformersSynthesizer(model, device=device, dtype=dtype)
        case _:
            raise SettingsError(f"there is no baseline {name!r}; there are: {', '.join(NAMES)}")


class TransformersSynthesizer(Sounding):
    """See `Synthesizer`: transformers' `generate`, one request after another."""

    def __init__(self, model: str, *, device: str = "auto", dtype: str = "auto") -> None:
        super().__init__(model, None, _GUARDS)
        self._options = {"device": device, "dtype": dtype}
        self._codes: _Generate | None = None

    async def _connect(self) -> Synthesizer:
        # After the codec, on its thread: transformers' lazy modules are not to be imported by two threads at once.
        loaded = await self._run(lambda: load(self._model, **self._options))
        self._codes = _Generate(loaded)
        return self._codes

    async def _disconnect(self) -> None:
        if self._codes is not None:
            await self._codes.aclose()

    @property
    def active(self) -> int:
        """Requests that the model is working on."""
        return self._codes.active if self._codes is not None else 0

    @property
    def steps(self) -> int:
        """Steps the model has taken."""
        return self._codes.steps if self._codes is not None else 0


class _Watch(StoppingCriteria):
    """Counts the steps, and says when to stop."""

    def __init__(self, engine: _Generate, stopped: threading.Event) -> None:
        self._engine, self._stopped = engine, stopped

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> Any:
        self._engine.steps += 1
        return torch.full((len(input_ids),), self._stopped.is_set(), device=input_ids.device)


class _Generate:
    """The engine of codes."""

    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded
        self._prompts = PromptBuilder(loaded.tokenizer, loaded.model.config)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="transformers generate")
        self._stops: dict[str, tuple[str, threading.Event]] = {}
        self.active = 0
        self.steps = 0
        self.info = EngineInfo(
            model=f"transformers:{loaded.name}",
            num_codebooks=loaded.limits.num_codebooks,
            codebook_size=loaded.limits.codebook_size,
            max_positions=loaded.limits.max_positions,
        )

    async def start(self) -> None:
        """It is loaded already."""

    async def aclose(self) -> None:
        for _, stopped in self._stops.values():
            stopped.set()
        await asyncio.to_thread(self._thread.shutdown)

    async def speak(self, request: SpeakRequest) -> AsyncGenerator[SpeechEvent]:
        loop = asyncio.get_running_loop()
        rows: asyncio.Queue[NDArray[np.int16] | BaseException | None] = asyncio.Queue()
        stopped = threading.Event()
        timings: dict[str, float] = {}
        began = time.monotonic()

        def put(item: NDArray[np.int16] | BaseException | None) -> None:
            timings.setdefault("prefill", time.monotonic() - began)
            loop.call_soon_threadsafe(rows.put_nowait, item)

        def work() -> None:
            try:
                if not stopped.is_set():
                    self._run(request, _Watch(self, stopped), put)
                put(None)
            except BaseException as error:  # noqa: BLE001 - whoever waits must hear of it
                put(error)

        self._stops[request.speech_id] = (request.session_id, stopped)
        self.active += 1
        done = asyncio.wrap_future(self._thread.submit(work))
        config: Any = self._loaded.model.config
        reverter = DelayReverter(
            self.info.num_codebooks, bos=config.audio_stream_bos_id, eos=config.audio_stream_eos_id
        )
        frames = count = 0
        try:
            while (row := await rows.get()) is not None:
                if isinstance(row, BaseException):
                    raise EngineDiedError(f"transformers failed: {type(row).__name__}: {row}") from row
                count += 1
                frame = reverter.push(row) if count > 1 else None  # the first row is all BOS
                if frame is not None:
                    frames += 1
                    yield AudioEvent(b"", 0, frame[:, None])
        finally:
            stopped_by_us = stopped.is_set()
            stopped.set()
            await asyncio.shield(done)
            self.active -= 1
            self._stops.pop(request.speech_id, None)
        timings["total"] = time.monotonic() - began
        reason = FinishReason.STOPPED if stopped_by_us else FinishReason.EOS
        if not stopped_by_us and not reverter.ended and count >= request.sampling.max_new_tokens:
            reason = FinishReason.LENGTH
        yield FinishedEvent(reason, frames, timings=timings)

    @torch.inference_mode()
    def _run(self, request: SpeakRequest, watch: _Watch, put: Callable[[NDArray[np.int16]], None]) -> None:
        """`generate` shows its rows to nobody before it ends, so they are taken where the next step is fed with them."""
        device, sampling = self._loaded.device, request.sampling
        temperature = sampling.recommended(self._loaded.temperature).drawn_at
        rows = self._rows(request.context, request.text)
        inputs: dict[str, Any] = {"input_ids": torch.from_numpy(rows.tokens.astype(np.int64))[None].to(device)}
        if rows.audio.any():
            audio = torch.from_numpy(rows.codes[rows.audio].astype(np.int64))[None].to(device)
            inputs["audio_input_ids"] = audio
            inputs["audio_input_ids_mask"] = torch.ones(audio.shape[:2], dtype=torch.bool, device=device)
        model: Any = self._loaded.model
        model.generation_config.ras_win_len = sampling.ras_win_len
        model.generation_config.ras_win_max_num_repeat = sampling.ras_win_max_num_repeat
        torch.manual_seed(sampling.seed or 0)
        forwards = 0

        def see(module: Any, args: Any, fed: dict[str, Any]) -> None:
            nonlocal forwards
            forwards += 1
            if forwards > 1:  # the first one is the prompt's
                put(fed["audio_input_ids"][0, -1].to("cpu", torch.int16).numpy())

        hook = model.register_forward_pre_hook(see, with_kwargs=True)
        try:
            out = model.generate(
                **inputs,
                max_new_tokens=sampling.max_new_tokens,
                do_sample=temperature > 0,
                temperature=temperature or 1.0,
                top_k=sampling.top_k,
                top_p=sampling.top_p,
                stopping_criteria=StoppingCriteriaList([watch]),
            )
        finally:
            hook.remove()
        put(out[0, -1].to("cpu", torch.int16).numpy())  # the last row is fed to no step

    def _rows(self, context: ContextSpec, text: str) -> Rows:
        builder, voice = self._prompts, context.voice
        references = [(item.text, item.codes) for item in voice.references]
        return Rows.concat(
            [
                builder.prefix(
                    voice.system, voice.scene, voice.speakers, references, in_scene=voice.references_in_scene
                ),
                *(builder.exchange(item.text, item.codes) for item in context.exchanges),
                builder.opening(text),
            ]
        )

    def stop(self, speech_id: str) -> None:
        if (found := self._stops.get(speech_id)) is not None:
            found[1].set()

    def prepare(self, session_id: str, context: ContextSpec) -> None:
        """Nothing is kept from chunk to chunk."""

    def close_session(self, session_id: str) -> None:
        for session, stopped in self._stops.values():
            if session == session_id:
                stopped.set()

    async def encode(self, pcm: NDArray[np.float32]) -> Codes:
        raise SettingsError("this engine has no codec of its own")

    async def decode(self, codes: Codes) -> NDArray[np.float32]:
        raise SettingsError("this engine has no codec of its own")

    def count_rows(self, context: ContextSpec, text: str = "") -> int:
        return len(self._rows(context, text))


__all__ = ["NAMES", "TransformersSynthesizer", "baseline"]
