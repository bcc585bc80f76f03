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
from contextlib import aclosing
from pathlib import Path
from typing import Any, cast

from .. import errors
from ..config import boson_python, cache_folder
from ..conversation.synthesizer import FinishedEvent, FinishReason, SpeakRequest, SpeechEvent
from ..errors import CheckpointError, DependencyError, EngineDiedError
from .guards import Guards
from .remote import RemoteSynthesizer
from .sounding import Sounding

log = logging.getLogger("higgs_voice.boson")

_IMPORT_FROM = Path(__file__).resolve().parents[2]
_START_S = 600.0


class BosonSynthesizer(Sounding):
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
        super().__init__(model.removeprefix("boson:"), codec, guards)
        self._options = {"device": device, "dtype": dtype, "kv_cache_lengths": list(kv_cache_lengths)}
        self._python = python
        self._start_timeout_s = start_timeout_s
        self._child: asyncio.subprocess.Process | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._last_words: deque[str] = deque(maxlen=20)
        self._remote: RemoteSynthesizer | None = None
        self._speaking: dict[str, str] = {}
        """Chunks that are being spoken, and their sessions."""
        self._stopped: set[str] = set()
        """Those of them that were told to stop."""

    async def _connect(self) -> RemoteSynthesizer:
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
            limit=2**22,  # of one line
            cwd=_IMPORT_FROM,  # where the child finds this package, should its environment not have it
        )
        assert child.stdin is not None
        assert child.stdout is not None
        options = {"model": model, "name": f"boson:{self._model}", "token": token, **self._options}
        child.stdin.write(json.dumps(options).encode() + b"\n")
        self._watcher = asyncio.get_running_loop().create_task(self._watch(child), name="higgs-voice boson child")
        try:
            answer = await asyncio.wait_for(self._answer(child.stdout), self._start_timeout_s)
        except TimeoutError:
            raise EngineDiedError(
                f"boson_multimodal has not loaded {model} within {self._start_timeout_s:.0f} s"
            ) from None
        if answer is None:
            await self._watcher
            raise self._failure or EngineDiedError("the process with boson_multimodal ended before it was ready")
        if "error" in answer:
            kind = getattr(errors, answer["kind"], None)
            raise (kind if isinstance(kind, type) else EngineDiedError)(answer["error"])
        line = RemoteSynthesizer(f"ws://127.0.0.1:{answer['port']}", token=token, grace_s=2.0)
        self._remote = line
        await line.start()
        return line

    async def _answer(self, lines: asyncio.StreamReader) -> dict[str, Any] | None:
        """The child's own line among what is printed while it imports; None if it ended before it said it."""
        while said := await lines.readline():
            try:
                answer = json.loads(said)
            except ValueError:
                answer = None
            if isinstance(answer, dict) and ("port" in answer or "error" in answer):
                return cast("dict[str, Any]", answer)
            text = said.decode("utf-8", "replace").rstrip()
            self._last_words.append(text)
            log.debug("boson_multimodal: %s", text)
        return None

    async def _watch(self, child: asyncio.subprocess.Process) -> None:
        """Keep the child's last words, and tell everybody when it is gone."""
        assert child.stderr is not None
        while said := await child.stderr.readline():
            text = said.decode("utf-8", "replace").rstrip()
            self._last_words.append(text)
            log.debug("boson_multimodal: %s", text)
        code = await child.wait()
        if not self._closed and self._failure is None:
            words = next((item for item in reversed(self._last_words) if item.strip()), "it said nothing")
            kind, _, said = words.partition(": ")
            if kind == f"{errors.__name__}.{DependencyError.__name__}":  # the last line of a traceback
                self._failure = DependencyError(said)
            else:
                self._failure = EngineDiedError(
                    f"the process with boson_multimodal ended with exit code {code}: {words}"
                )
            if self._remote is not None:
                await self._remote.aclose()

    async def _disconnect(self) -> None:
        line, self._remote = self._remote, None
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

    # Between two seeds of a chunk that collapsed, the child and the line to it know nothing of the chunk: a stop that comes then
    # has to be remembered here.

    async def speak(self, request: SpeakRequest) -> AsyncGenerator[SpeechEvent]:
        self._speaking[request.speech_id] = request.session_id
        try:
            async with aclosing(super().speak(request)) as events:
                async for event in events:
                    yield event
        finally:
            self._speaking.pop(request.speech_id, None)
            self._stopped.discard(request.speech_id)

    async def _attempt(self, request: SpeakRequest) -> AsyncGenerator[SpeechEvent]:
        if request.speech_id in self._stopped:
            yield FinishedEvent(FinishReason.STOPPED, 0)
            return
        async with aclosing(super()._attempt(request)) as events:
            async for event in events:
                yield event

    def stop(self, speech_id: str) -> None:
        if speech_id in self._speaking:
            self._stopped.add(speech_id)
        super().stop(speech_id)

    def close_session(self, session_id: str) -> None:
        self._stopped.update(speech for speech, session in self._speaking.items() if session == session_id)
        super().close_session(session_id)


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


if importlib.util.find_spec("boson_multimodal") is not None:
    from .boson_serving import StreamingVoiceGenerator as StreamingVoiceGenerator
    from .boson_serving import install as install

    install()
