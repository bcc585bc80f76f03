"""What the commands have in common: options, errors as one sentence, Ctrl-C, a voice from what people write, and a file of sound."""

from __future__ import annotations

import asyncio
import functools
import io
import logging
import os
import signal
import sys
import threading
import wave
from collections.abc import Callable, Coroutine, Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec, TypeVar

import typer
from rich.console import Console

from .audio import write_wav
from .config import engine_kind
from .errors import HiggsVoiceError, SettingsError

if TYPE_CHECKING:
    from .conversation.voice import Voice

_P = ParamSpec("_P")
_T = TypeVar("_T")

STANDARD_OUTPUT = Path("-")
_SILENT = logging.NullHandler()

Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        envvar="HIGGS_VOICE_MODEL",
        help="nano (embedded), a hub id, a folder, boson:<folder>, ws://host:port, or fake.",
    ),
]
Token = Annotated[
    str | None, typer.Option("--token", envvar="HIGGS_VOICE_TOKEN", help="A server's token.", show_envvar=True)
]
Device = Annotated[str, typer.Option("--device", envvar="HIGGS_VOICE_DEVICE", help="auto, cpu, cuda, cuda:1, …")]
Dtype = Annotated[str, typer.Option("--dtype", help="auto, float32 or bfloat16.")]
CodecDtype = Annotated[
    str, typer.Option("--codec-dtype", help="float32, or bfloat16: quicker on a CPU with AMX, with an error of -50 dB.")
]
KvDtype = Annotated[
    str,
    typer.Option(
        "--kv-dtype",
        help="auto (the model's), or bfloat16, on a CPU: half the memory of contexts, quicker in long ones.",
    ),
]
WeightDtype = Annotated[
    str,
    typer.Option(
        "--weight-dtype",
        help="auto (the model's), or int8: the layers' weights in half the memory of bfloat16, on a GPU.",
    ),
]
Temperature = Annotated[
    float | None,
    typer.Option(help="0 is greedy; about 0.3 for clones. Unless given, what the model recommends, or 0.7."),
]
Out = Annotated[Path | None, typer.Option("--out", help="Write a wav file instead of playing; - is standard output.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON line last.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error, and what the engine logs.")]
Folder = Annotated[
    Path | None,
    typer.Option(
        "--voices",
        envvar="HIGGS_VOICE_VOICES",
        help="The folder of voices; unless given, voices in the program's own configuration folder.",
    ),
]
Scene = Annotated[str | None, typer.Option(help='Where it is recorded: "Audio is recorded from a quiet room."')]
Speakers = Annotated[
    list[str] | None,
    typer.Option("--speaker", help='Who speaks: "feminine; warm". Once for each [SPEAKERn] of the text.'),
]
Clips = Annotated[list[Path] | None, typer.Option("--ref", help="A clip to clone; needs --ref-text.")]
ClipTexts = Annotated[
    list[str] | None, typer.Option("--ref-text", help="What is said in the clip; once for each --ref.")
]


def stderr() -> Console:
    return Console(stderr=True, highlight=False)


def command(call: Callable[_P, None]) -> Callable[_P, None]:
    """What every command does: an error of ours is one sentence and exit 1, Ctrl-C is exit 130."""

    @functools.wraps(call)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> None:
        debug = bool(kwargs.get("debug"))
        if debug:
            logging.basicConfig(level=logging.DEBUG, format="%(relativeCreated)7.0f %(name)s: %(message)s")
            for noisy in ("asyncio", "urllib3", "matplotlib"):
                logging.getLogger(noisy).setLevel(logging.INFO)
        else:
            # What a command has to say it says itself; `serve` puts its own log in this place.
            logging.getLogger("higgs_voice").addHandler(_SILENT)
        try:
            call(*args, **kwargs)
        except HiggsVoiceError as error:
            if debug:
                raise
            stderr().print(f"higgs-voice: {error}", markup=False, soft_wrap=True)
            raise typer.Exit(1) from error
        except KeyboardInterrupt as error:
            raise typer.Exit(130) from error
        except BrokenPipeError as error:
            # Who reads our output has gone; nothing more can be said to them, also not at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from error

    return run


def _heeds_ctrl_c() -> bool:
    """Whether it may be handled here: who started the process may ignore it."""
    return threading.current_thread() is threading.main_thread() and callable(signal.getsignal(signal.SIGINT))


@contextmanager
def killable() -> Generator[None]:
    """Ctrl-C ends the process at once in here, also while an import keeps the interpreter from hearing of it."""
    if not _heeds_ctrl_c():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def run_async(work: Coroutine[Any, Any, _T]) -> _T:
    """`asyncio.run`, where Ctrl-C says that it was heard, and a second one does not wait for threads that load a model.

    Errors: `KeyboardInterrupt`.
    """
    if not _heeds_ctrl_c():
        return asyncio.run(work)
    before = signal.getsignal(signal.SIGINT)
    heard: list[int] = []

    async def main() -> _T:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None

        def interrupted(number: int, _: FrameType | None) -> None:
            heard.append(number)
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # of the second one the interpreter need not hear
            with suppress(OSError):
                # It may come within a print, so it writes to the descriptor itself; a spinner has hidden the cursor.
                os.write(2, b"%sstopping; Ctrl-C again does not wait\n" % (b"\x1b[?25h\r" if os.isatty(2) else b""))
            with suppress(RuntimeError):  # the loop is closed already
                loop.call_soon_threadsafe(task.cancel)

        signal.signal(signal.SIGINT, interrupted)
        return await work

    try:
        return asyncio.run(main())
    except asyncio.CancelledError as error:
        if not heard:
            raise
        raise KeyboardInterrupt from error
    finally:
        signal.signal(signal.SIGINT, before)


def check_out(out: Path | None, *, as_json: bool) -> None:
    """Whether sound can be written there, before any is made; leaves no file behind. Errors: `SettingsError`."""
    if out is None:
        return
    if out == STANDARD_OUTPUT:
        if as_json:
            raise SettingsError(
                "--out - sends the sound to standard output, where --json prints its line; leave one away"
            )
        return
    if out.suffix.lower() not in ("", ".wav"):
        raise SettingsError(
            f"--out writes wav, so {out} would not be what its name says; name it {out.with_suffix('.wav')}"
        )
    try:
        path = out.expanduser()
        new = not path.exists()
        path.open("ab").close()
        if new:
            path.resolve().unlink()
    except OSError as error:
        raise SettingsError(f"cannot write {out}: {error.strerror or error}") from error


def write_out(out: Path, pcm: bytes, rate: int) -> None:
    """int16 mono PCM as wav. Errors: `SettingsError`."""
    if out == STANDARD_OUTPUT:
        data = io.BytesIO()
        with wave.open(data, "wb") as file:
            file.setparams((1, 2, rate, 0, "NONE", ""))
            file.writeframes(pcm)
        sys.stdout.buffer.write(data.getvalue())
        sys.stdout.buffer.flush()
        return
    path = out.expanduser()
    new = not path.exists()
    try:
        write_wav(path, pcm, rate)
    except OSError as error:
        if new:
            path.unlink(missing_ok=True)
        raise SettingsError(f"cannot write {out}: {error.strerror or error}") from error


def counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def number_types(model: str, codec_dtype: str, kv_dtype: str, weight_dtype: str) -> dict[str, str]:
    """The options of an engine for what is not computed, or kept, in the usual type.

    Errors: `SettingsError` for an engine that is not in this process: what it computes in is not ours to say.
    """
    usual = {"codec_dtype": "float32", "kv_dtype": "auto", "weight_dtype": "auto"}
    given = {"codec_dtype": codec_dtype, "kv_dtype": kv_dtype, "weight_dtype": weight_dtype}
    types = {name: kind for name, kind in given.items() if kind != usual[name]}
    if types and engine_kind(model) != "local":
        name, kind = next(iter(types.items()))
        option = "--" + name.replace("_", "-")
        raise SettingsError(f"{option} {kind} is for a model in this process, and {model} is not; leave it away")
    return types


def engine_options(
    model: str, device: str, dtype: str, token: str | None, types: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """What the engine that `model` names is made with."""
    kind = engine_kind(model)
    if kind == "remote":
        return {"token": token} if token else {}
    if kind == "fake":
        return {}
    return {"device": device, "dtype": dtype, **(types or {})}


def described(
    scene: str | None, speakers: list[str] | None, clips: list[Path] | None, texts: list[str] | None
) -> Voice:
    """A voice from options. Errors: `SettingsError`, `ClipError`."""
    from .conversation.voice import Reference, Voice

    clips, texts = clips or [], texts or []
    if len(clips) != len(texts):
        raise SettingsError(
            f"every --ref needs a --ref-text with what is said in it; got {len(clips)} clips and {len(texts)} texts"
        )
    for clip, text in zip(clips, texts, strict=True):
        if not text.strip():
            raise SettingsError(f"--ref-text is empty; write what is said in {clip}")
    references = [Reference.from_file(clip, text) for clip, text in zip(clips, texts, strict=True)]
    return Voice.create(scene=scene, speakers=speakers, references=references)
