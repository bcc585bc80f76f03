"""boson_multimodal as an engine: ``boson:<folder or hub id>``.

The package's pins (an older transformers, protobuf before 3.20) shut out this process's libraries, so its model runs in a
child process with an environment of its own (`make boson` sets up ``.venv-boson``). The child speaks this package's wire
protocol on loopback and gives codes; they become sound here, by the same codec stream as every other engine's. Every chunk is
a full prefill of its context, as the package does it.

Imported where boson_multimodal itself is installed, this module gives the package's own `HiggsAudioServeEngine` the documented
`generate_streaming_with_context` (`boson_serving`).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib.util
import json
import logging
import secrets
import shutil
import sys
import tempfile
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import errors
from ..audio import FRAME_RATE, to_int16
from ..config import boson_python, cache_folder
from ..conversation.synthesizer import (
    AudioEvent,
    Codes,
    ContextSpec,
    EngineInfo,
    FinishedEvent,
    FinishReason,
    SpeakRequest,
    SpeechEvent,
)
from ..errors import (
    CheckpointError,
    DependencyError,
    EngineClosedError,
    EngineDiedError,
    HiggsVoiceError,
    NoAudioError,
    RunawayError,
    SynthesisError,
)
from .guards import Guards, SilenceWatch
from .remote import RemoteSynthesizer

if TYPE_CHECKING:
    from ..codec import Decoder, DecodeStream, Encoder

log = logging.getLogger("higgs_voice.boson")

_IMPORT_FROM = Path(__file__).resolve().parents[2]
_START_S = 600.0


class BosonSynthesizer:
    """See `Synthesizer`. One copy of the weights in one child process; its requests are spoken one after another.

    Args:
        model: a folder with a checkpoint in the original layout, a hub id, or ``nano``. codec: the codec, as transformers
            loads it: a folder or a hub id; the published one unless there is one in or beside the model's folder.
        device, dtype: of the model, in the child; ``auto`` takes the GPU and bfloat16 where there is one.
        python: the interpreter of the environment with boson_multimodal; unless given, that of HIGGS_VOICE_BOSON_PYTHON, of
            ``.venv-boson`` here or in the project's folder.
        kv_cache_lengths: the sizes of the model's key-value caches; the largest one bounds context and chunk together.
        start_timeout_s: how long the child may take to load.
    """

    def __init__(
        self,
        model: str,
        *,
        codec: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        python: str | None = None,
        guards: Guards | None = None,
        kv_cache_lengths: Sequence[int] = (1024, 4096, 8192),
        start_timeout_s: float = _START_S,
    ) -> None:
        self._model = model.removeprefix("boson:")
        self._codec_name = codec
        self._options = {"device": device, "dtype": dtype, "kv_cache_lengths": list(kv_cache_lengths)}
        self._python = python
        self._guards = guards or Guards()
        self._start_timeout_s = start_timeout_s
        self._starting = asyncio.Lock()
        self._closed = False
        self._child: asyncio.subprocess.Process | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._last_words: deque[str] = deque(maxlen=20)
        self._died: EngineDiedError | None = None
        self._line: RemoteSynthesizer | None = None
        self._info: EngineInfo | None = None
        self._decoder: Decoder | None = None
        self._encoder: Encoder | None = None
        self._sounding = ThreadPoolExecutor(1, thread_name_prefix="higgs-voice codec")

    # Life

    @property
    def info(self) -> EngineInfo:
        if self._info is None:
            raise EngineClosedError("the engine has not been started; await start() first")
        return self._info

    async def start(self) -> None:
        async with self._starting:
            if self._closed:
                raise EngineClosedError("this engine is closed; create another one")
            if self._line is not None:
                return
            try:
                await asyncio.gather(self._start_child(), self._run(self._load_codec))
                assert self._line is not None
                assert self._decoder is not None
                theirs = self._line.info
                if (theirs.num_codebooks, theirs.codebook_size) != (
                    self._decoder.num_codebooks,
                    self._decoder.codebook_size,
                ):
                    raise CheckpointError(
                        f"the model {self._model} and its codec do not fit: the model speaks {theirs.num_codebooks} codebooks of "
                        f"{theirs.codebook_size} codes, the codec has {self._decoder.num_codebooks} of "
                        f"{self._decoder.codebook_size}"
                    )
                self._info = replace(theirs, codec_fingerprint=self._decoder.fingerprint)
            except BaseException:
                await self._end_child()
                raise

    async def aclose(self) -> None:
        self._closed = True
        await self._end_child()
        self._sounding.shutdown(wait=False, cancel_futures=True)

    # Synthesizer

    async def speak(self, request: SpeakRequest) -> AsyncGenerator[SpeechEvent]:
        seed = request.sampling.seed if request.sampling.seed is not None else secrets.randbits(31)
        for attempt in range(self._guards.retries + 1):
            sampling = request.sampling.replace(seed=(seed + attempt) % 2**31)
            again = False
            async with aclosing(self._attempt(replace(request, sampling=sampling))) as events:
                async for event in events:
                    if isinstance(event, FinishedEvent):
                        collapsed = event.reason is FinishReason.EOS and event.frames < self._guards.min_frames
                        again = collapsed and attempt < self._guards.retries
                        if collapsed and not again:
                            tries = self._guards.retries + 1
                            error = NoAudioError(f"the model gave no sound for this text with {tries} seeds")
                            event = replace(event, reason=FinishReason.COLLAPSE, frames=0, error=error)
                    if not again:
                        yield event
            if not again:
                return

    async def _attempt(self, request: SpeakRequest) -> AsyncGenerator[SpeechEvent]:
        """One generation, with sound; nothing is given of one that collapses."""
        line, decoder = self._serving()
        stream = decoder.open() if request.pcm else None
        watch = SilenceWatch(self._guards)
        most = self._guards.max_frames(request.text)
        held: list[Codes] = []
        frames = start = 0
        asked = replace(request, pcm=False)
        try:
            async with aclosing(line.speak(asked)) as events:
                async for event in events:
                    ending: tuple[FinishReason, SynthesisError | None] | None = None
                    if isinstance(event, AudioEvent):
                        fresh = event.codes[:, : most - frames]
                        frames += fresh.shape[1]
                        held.append(fresh)
                        if stream is not None:
                            stream.push(fresh)
                        if frames >= most:
                            seconds = most / FRAME_RATE
                            said = f"stopped after {seconds:.1f} s of audio: the text cannot need more"
                            ending = FinishReason.RUNAWAY, RunawayError(said)
                    else:
                        ending = event.reason, event.error
                    collapsed = frames < self._guards.min_frames
                    if stream is not None and ending is not None and ending[0] is not FinishReason.STOPPED:
                        stream.finish()
                    if ending is None or (ending[0] is not FinishReason.STOPPED and not collapsed):
                        async for sound in self._sounds(stream, watch):
                            if isinstance(sound, SynthesisError):
                                ending = ending or (FinishReason.SILENCE, sound)
                                continue
                            yield AudioEvent(to_int16(sound).tobytes(), start, _joined(held, decoder.num_codebooks))
                            start += sound.size
                        if held and (stream is None or ending is not None) and not collapsed:
                            yield AudioEvent(b"", start, _joined(held, decoder.num_codebooks))
                    if ending is not None:
                        timings = event.timings if isinstance(event, FinishedEvent) else {}
                        yield FinishedEvent(ending[0], frames, ending[1], timings)
                        return
        except HiggsVoiceError as error:
            raise self._died or error from error

    async def _sounds(
        self, stream: DecodeStream | None, watch: SilenceWatch
    ) -> AsyncGenerator[NDArray[np.float32] | SynthesisError]:
        """What can be decoded now, float32 [n] a piece; an error when there was too much silence in it."""
        while stream is not None and stream.ready:
            samples = await self._run(stream.pull)
            yield samples
            if (error := watch.hear(samples)) is not None:
                yield error

    def stop(self, speech_id: str) -> None:
        if self._line is not None:
            self._line.stop(speech_id)

    def prepare(self, session_id: str, context: ContextSpec) -> None:
        """Nothing can be prepared: the package prefills everything for every chunk."""

    def close_session(self, session_id: str) -> None:
        if self._line is not None:
            self._line.close_session(session_id)

    async def encode(self, pcm: NDArray[np.float32]) -> Codes:
        self._serving()
        assert self._encoder is not None
        return await self._run(self._encoder.encode, pcm)

    async def decode(self, codes: Codes) -> NDArray[np.float32]:
        _, decoder = self._serving()
        return await self._run(decoder.decode, codes)

    def count_rows(self, context: ContextSpec, text: str = "") -> int:
        line, _ = self._serving()
        return line.count_rows(context, text)

    # Inside

    def _serving(self) -> tuple[RemoteSynthesizer, Decoder]:
        if self._died is not None:
            raise self._died
        if self._line is None or self._decoder is None:
            raise EngineClosedError(
                "this engine is closed" if self._closed else "the engine is not running; await start() first"
            )
        return self._line, self._decoder

    async def _run(self, work: Any, *args: Any) -> Any:
        """On the codec's thread."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._sounding, work, *args)
        except RuntimeError as error:
            if self._closed:
                raise EngineClosedError("this engine is closed") from error
            raise

    def _load_codec(self) -> None:
        from ..codec import Decoder, Encoder
        from ..model.loading import load_codec, resolve

        source = resolve(self._model, self._codec_name)
        codec = load_codec(source.codec)
        self._decoder, self._encoder = Decoder(codec), Encoder(codec)

    async def _start_child(self) -> None:
        python = find_python(self._python)
        model = await asyncio.to_thread(original_layout, self._model)
        token = secrets.token_hex(16)
        # Standard input is the child's life line: it ends when this process does, however it ends.
        child = self._child = await asyncio.create_subprocess_exec(
            python,
            "-m",
            "higgs_voice.boson_child",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=_IMPORT_FROM,  # where the child finds this package, should its environment not have it
        )
        assert child.stdin is not None
        assert child.stdout is not None
        options = {"model": model, "name": f"boson:{self._model}", "token": token, **self._options}
        child.stdin.write(json.dumps(options).encode() + b"\n")
        self._watcher = asyncio.get_running_loop().create_task(self._watch(child), name="higgs-voice boson child")
        try:
            said = await asyncio.wait_for(child.stdout.readline(), self._start_timeout_s)
        except TimeoutError:
            raise EngineDiedError(
                f"boson_multimodal has not loaded {model} within {self._start_timeout_s:.0f} s"
            ) from None
        if not said:
            await self._watcher
            raise self._died or EngineDiedError("the process with boson_multimodal ended before it was ready")
        answer = json.loads(said)
        if "error" in answer:
            kind = getattr(errors, answer["kind"], None)
            raise (kind if isinstance(kind, type) else EngineDiedError)(answer["error"])
        line = RemoteSynthesizer(f"ws://127.0.0.1:{answer['port']}", token=token, grace_s=2.0)
        await line.start()
        self._line = line

    async def _watch(self, child: asyncio.subprocess.Process) -> None:
        """Keep the child's last words, and tell everybody when it is gone."""
        assert child.stderr is not None
        while said := await child.stderr.readline():
            text = said.decode("utf-8", "replace").rstrip()
            self._last_words.append(text)
            log.debug("boson_multimodal: %s", text)
        code = await child.wait()
        if not self._closed and self._died is None:
            words = next((item for item in reversed(self._last_words) if item.strip()), "it said nothing")
            self._died = EngineDiedError(f"the process with boson_multimodal ended with exit code {code}: {words}")
            if self._line is not None:
                await self._line.aclose()

    async def _end_child(self) -> None:
        line, self._line = self._line, None
        if line is not None:
            await line.aclose()
        child, self._child = self._child, None
        if child is not None and child.returncode is None:
            assert child.stdin is not None
            child.stdin.close()  # it ends by itself when its life line does
            try:
                await asyncio.wait_for(child.wait(), 5.0)
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    child.kill()
                await child.wait()
        if self._watcher is not None:
            await asyncio.gather(self._watcher, return_exceptions=True)


def find_python(named: str | None = None) -> str:
    """The interpreter of the environment with boson_multimodal. Errors: `DependencyError`."""
    named = named or boson_python()
    if named is not None:
        if (found := shutil.which(named)) is None:
            raise DependencyError(
                f"there is no interpreter {named!r}; name that of the environment with boson_multimodal"
            )
        return str(Path(found).absolute())
    for folder in (Path.cwd(), _IMPORT_FROM.parent):
        found = folder / ".venv-boson" / "bin" / "python"
        if found.exists():
            return str(found)
    raise DependencyError(
        "boson_multimodal lives in an environment of its own, which is not there; in a clone run: make boson; elsewhere: python3 -m "
        "venv .venv-boson && .venv-boson/bin/pip install 'higgs-voice[boson,server]'"
    )


def original_layout(model: str) -> str:
    """A model's name as the package reads it: the embedded voice is converted once, a folder is looked at.

    Errors: `CheckpointError`.
    """
    from ..model.convert import TRANSFORMERS, layout_of

    if model == "nano":
        return str(_nano())
    folder = Path(model).expanduser()
    if not folder.is_dir():
        return model
    if (folder / "model" / "config.json").is_file():
        folder = folder / "model"
    if layout_of(folder) == TRANSFORMERS:
        raise CheckpointError(
            f"{folder} is in transformers' layout, and boson_multimodal reads the original one; run: higgs-voice convert {folder} "
            "FOLDER"
        )
    return str(folder)


def _nano() -> Path:
    """The embedded voice in the original layout, kept in the user's cache."""
    from ..model.convert import NANO_MODEL, convert

    digest = hashlib.sha256()
    for file in sorted(NANO_MODEL.iterdir()):
        digest.update(file.name.encode() + file.read_bytes())
    digest.update(Path(sys.modules[convert.__module__].__file__ or "").read_bytes())
    cache = cache_folder()
    folder = cache / f"nano-original-{digest.hexdigest()[:16]}"
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as made:
            convert(NANO_MODEL, Path(made) / "model")
            with contextlib.suppress(OSError):  # another process was first
                (Path(made) / "model").rename(folder)
    return folder


def _joined(held: list[Codes], codebooks: int) -> Codes:
    """What is held, [K, n], and nothing held any more."""
    codes = np.concatenate(held, axis=1) if held else np.zeros((codebooks, 0), dtype=np.int16)
    held.clear()
    return codes


if importlib.util.find_spec("boson_multimodal") is not None:
    from .boson_serving import StreamingVoiceGenerator as StreamingVoiceGenerator
    from .boson_serving import install as install

    install()
