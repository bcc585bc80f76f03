"""`higgs-voice say | serve | bench | voices | convert | doctor`. The environment is read here and nowhere below."""

from __future__ import annotations

import asyncio
import codecs
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import unicodedata
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from . import telemetry
from ._version import __version__
from .audio import PcmChunk
from .cli_bench import bench_app
from .cli_parts import (
    STANDARD_OUTPUT,
    Clips,
    ClipTexts,
    CodecDtype,
    Debug,
    Device,
    Dtype,
    Folder,
    Json,
    KvDtype,
    Model,
    Out,
    Scene,
    Speakers,
    Temperature,
    Token,
    WeightDtype,
    check_out,
    command,
    counted,
    described,
    killable,
    number_types,
    write_out,
)
from .cli_parts import engine_options as _engine_options
from .cli_parts import run_async as _run
from .cli_parts import stderr as _stderr
from .cli_voices import voices_app
from .config import Sampling, engine_kind, voices_folder
from .errors import DependencyError, HiggsVoiceError, SettingsError

if TYPE_CHECKING:
    from .conversation.speech import ChunkReport
    from .conversation.voice import Voice

app = typer.Typer(
    name="higgs-voice",
    help="One voice for a whole conversation: text streamed in, Higgs Audio v2 out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(bench_app, name="bench")
app.add_typer(voices_app, name="voices")

DEFAULT_OUT = Path("out.wav")
PLAYERS = {
    "pw-cat": ("--playback", "--raw", "--format=s16", "--rate={rate}", "--channels=1", "-"),
    "paplay": ("--raw", "--format=s16le", "--rate={rate}", "--channels=1"),
    "aplay": ("-q", "-t", "raw", "-f", "S16_LE", "-r", "{rate}", "-c", "1", "-"),
    "ffplay": ("-nodisp", "-autoexit", "-loglevel", "quiet", "-f", "s16le", "-ar", "{rate}", "-i", "-"),
    "play": ("-q", "-t", "raw", "-e", "signed", "-b", "16", "-r", "{rate}", "-c", "1", "-"),
}
"""Programs that play raw PCM from their standard input."""


@app.callback(invoke_without_command=True)
def main(
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.", is_eager=True)] = False,
) -> None:
    if version:
        typer.echo(f"higgs-voice {__version__}")
        raise typer.Exit


# say


@app.command()
@command
def say(
    text: Annotated[str | None, typer.Argument(help="What to say; - reads a stream from standard input.")] = None,
    model: Model = "nano",
    scene: Scene = None,
    speaker: Speakers = None,
    ref: Clips = None,
    ref_text: ClipTexts = None,
    voice: Annotated[
        str | None, typer.Option(help="A voice's name, or a file that Voice.save wrote, instead of the four above.")
    ] = None,
    folder: Folder = None,
    seed: Annotated[int | None, typer.Option(help="Makes it repeatable.")] = None,
    temperature: Temperature = None,
    out: Out = None,
    as_json: Json = False,
    verbatim: Annotated[
        bool, typer.Option("--verbatim", help="Say the text as it stands; do not spell numbers out.")
    ] = False,
    token: Token = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    codec_dtype: CodecDtype = "float32",
    kv_dtype: KvDtype = "auto",
    weight_dtype: WeightDtype = "auto",
    debug: Debug = False,
) -> None:
    """Say a text, or a stream as it comes.

    Plays through sounddevice or a player that is installed; where there is none, writes out.wav and says so. Progress goes to
    standard error. With --json the last line of standard output holds ttfa_ms, audio_s, rtf, chunks, failed_chunks (of them, those
    that broke off or gave no sound) and sample_rate. Exit 1 if there was nothing to say. Ctrl-C keeps what was said until then.
    """
    if text is None and sys.stdin.isatty():
        raise SettingsError('nothing to say: give a text, or - and a stream: echo "Hello." | higgs-voice say -')
    check_out(out, as_json=as_json)
    if voice is not None and (scene or speaker or ref or ref_text):
        raise SettingsError("--voice is a whole voice; leave --scene, --speaker and --ref away")
    who = _named(voice, model, folder) if voice is not None else described(scene, speaker, ref, ref_text)
    source = _stdin() if text in (None, "-") else text
    assert source is not None
    sampling = Sampling(seed=seed, temperature=temperature)
    engine_options = _engine_options(
        model, device, dtype, token, number_types(model, codec_dtype, kv_dtype, weight_dtype)
    )
    saying = Saying(model, engine_options, who, sampling, source, out, normalize=not verbatim, folder=folder)
    saying.finish(as_json=as_json)


def _named(voice: str, model: str, folder: Path | None) -> Voice | str:
    """A voice, before a model is loaded for it; a server's has to wait for the server."""
    from .conversation.presets import find_voice

    if engine_kind(model) == "remote":
        return voice
    return _run(find_voice(voice, folder=folder))


async def _stdin() -> AsyncIterator[str]:
    """Standard input as it comes, in whatever pieces; bytes that are no UTF-8 become U+FFFD, which is said once.

    A thread reads, and it is not waited for: Ctrl-C ends the command while a read goes on. It reads the descriptor itself,
    since an interpreter cannot end while somebody holds the lock of its buffered file.
    """
    loop = asyncio.get_running_loop()
    pieces: asyncio.Queue[bytes] = asyncio.Queue(maxsize=16)
    try:
        number = sys.stdin.fileno()
    except (OSError, ValueError, AttributeError):
        number = None  # not a file: a test's

    def read() -> None:
        data = b"begin"
        while data:
            data = os.read(number, 4096) if number is not None else sys.stdin.buffer.read(4096)
            asyncio.run_coroutine_threadsafe(pieces.put(data), loop).result()

    threading.Thread(target=read, name="standard input", daemon=True).start()
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    said = False
    while True:
        data = await pieces.get()
        text = decoder.decode(data, final=not data)
        if not said and "\ufffd" in text and b"\xef\xbf\xbd" not in data:
            _stderr().print("standard input is not all UTF-8; what cannot be read is left out")
            said = True
        yield text
        if not data:
            return


def _latin(text: str) -> bool:
    """Whether all letters are of the Latin alphabet."""
    return all(unicodedata.name(letter, "").startswith("LATIN") for letter in text if letter.isalpha())


@dataclass(slots=True)
class Saying:
    """One run of `say`."""

    model: str
    options: dict[str, Any]
    voice: Voice | str
    """Itself, or what `find_voice` finds it by once the engine is there."""
    sampling: Sampling
    source: str | AsyncIterator[str]
    out: Path | None
    normalize: bool
    folder: Path | None = None
    """Of voices."""
    _console: Console = field(default_factory=_stderr)
    _pcm: list[bytes] = field(default_factory=list[bytes])
    _reports: list[ChunkReport] = field(default_factory=list["ChunkReport"])
    _audio_s: float = 0.0

    def finish(self, *, as_json: bool) -> None:
        """Run, and print what `--json` asks for. Errors: `typer.Exit` where no sound came of it."""
        summary = _run(self.run())
        if as_json:
            typer.echo(json.dumps(summary))
        if not self._audio_s:
            raise typer.Exit(1)

    async def run(self) -> dict[str, Any]:
        """The summary of `--json`."""
        from .backends import create_backend
        from .conversation.presets import find_voice
        from .conversation.session import SessionSettings, VoiceSession

        with killable():
            engine = create_backend(self.model, **self.options)
        try:
            with self._console.status(f"loading {self.model} …"):
                await engine.start()
            settings = SessionSettings(sampling=self.sampling, normalize=self.normalize)
            rate = engine.info.sample_rate
            player = None if self.out is not None else _Player.find(rate)
            voice = self.voice
            if isinstance(voice, str):
                voice = await find_voice(voice, engine, folder=self.folder)
            async with VoiceSession(engine, voice=voice, settings=settings) as session:
                try:
                    await self._speak(session, player)
                except asyncio.CancelledError:  # Ctrl-C
                    if self._audio_s and self.out != STANDARD_OUTPUT:
                        self._write(player, rate)
                    raise
        finally:
            await engine.aclose()
        if self._audio_s:
            self._write(player, rate)
        busy = sum(report.total_s for report in self._reports)
        summary: dict[str, Any] = {
            "ttfa_ms": round(self._reports[0].ttfa_s * 1000, 1) if self._reports else None,
            "audio_s": round(self._audio_s, 3),
            "rtf": round(busy / self._audio_s, 4) if self._audio_s else None,
            "chunks": len(self._reports),
            "failed_chunks": len(failed := [report for report in self._reports if report.error is not None]),
            "sample_rate": rate,
        }
        if not self._audio_s:
            self._console.print("nothing in this text can be said")
        else:
            self._console.print(
                f"{counted(len(self._reports), 'chunk')}, {self._audio_s:.1f} s of sound; first sound after {summary['ttfa_ms']:.0f} ms, "
                f"generated in {summary['rtf'] or 0:.2f} of its time"
                + (f"; {len(failed)} of them did not end well" if failed else "")
            )
        return summary

    async def _speak(self, session: Any, player: _Player | None) -> None:
        from .conversation.speech import ChunkReport

        began = time.monotonic()
        with self._console.status("…") as status:
            async for event in session.speak(self.source):
                if isinstance(event, PcmChunk):
                    self._pcm.append(event.pcm)
                    self._audio_s += event.duration_s
                    status.update(f"{self._audio_s:5.1f} s of sound in {time.monotonic() - began:.1f} s")
                    if player is not None:
                        await player.play(event.pcm)
                elif isinstance(event, ChunkReport):
                    self._reports.append(event)
                    self._console.print(
                        f"{event.audio_s:5.2f} s  first sound {event.ttfa_s * 1000:4.0f} ms  rtf {event.rtf:4.2f}  {event.written}",
                        markup=False,
                    )
                    if event.error is not None:
                        self._console.print(f"        {event.error}", markup=False)
                    if self.model == "nano" and not _latin(event.spoken):
                        self._console.print("        nano has learned English: it makes sounds of this, but no words")
            if player is not None:
                status.update("playing the rest")
                await player.finish()

    def _write(self, player: _Player | None, rate: int) -> None:
        if self.out is None and player is not None and player.error is None:
            return
        out = self.out
        if out is None:
            reason = "no player was found" if player is None else f"{player.name} did not play ({player.error})"
            out = DEFAULT_OUT
            self._console.print(f"{reason}, so the sound goes to a file; sounddevice is one: pip install sounddevice")
        write_out(out, b"".join(self._pcm), rate)
        self._console.print(f"wrote {'the sound to standard output' if out == STANDARD_OUTPUT else out}", markup=False)


class _Player:
    """Sound out of this machine's speakers: sounddevice, or a program that reads raw PCM."""

    def __init__(self, name: str, write: Callable[[bytes], None], close: Callable[[], None]) -> None:
        self.name = name
        self.error: str | None = None
        """Why it stopped playing; what was played until then is not known."""
        self._write = write
        self._close = close

    async def play(self, pcm: bytes) -> None:
        """Waits while the device's buffer is full."""
        await self._try(lambda: self._write(pcm))

    async def finish(self) -> None:
        """Wait until everything has been played."""
        await self._try(self._close)

    async def _try(self, work: Callable[[], None]) -> None:
        if self.error is None:
            try:
                await asyncio.to_thread(work)
            except Exception as error:  # noqa: BLE001  # a device's driver raises what it likes; the sound goes to a file then
                self.error = str(error) or type(error).__name__

    @classmethod
    def find(cls, rate: int) -> _Player | None:
        """The first that is there."""
        return cls._sounddevice(rate) or cls._program(rate)

    @classmethod
    def _sounddevice(cls, rate: int) -> _Player | None:
        try:
            import sounddevice

            stream = sounddevice.RawOutputStream(samplerate=rate, channels=1, dtype="int16")
            stream.start()
        except Exception:  # noqa: BLE001  # not installed, no PortAudio, no device: each has an exception of its own
            return None

        def close() -> None:
            stream.stop()
            stream.close()

        def write(pcm: bytes) -> None:
            stream.write(pcm)

        return cls("sounddevice", write, close)

    @classmethod
    def _program(cls, rate: int) -> _Player | None:
        name = next((name for name in PLAYERS if shutil.which(name)), None)
        if name is None:
            return None
        words = [name, *(word.format(rate=rate) for word in PLAYERS[name])]
        process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        stdin = process.stdin
        assert stdin is not None

        def write(pcm: bytes) -> None:
            stdin.write(pcm)
            stdin.flush()

        def close() -> None:
            stdin.close()
            if process.wait() != 0:
                raise OSError(f"it ended with status {process.returncode}")

        return cls(name, write, close)


# serve


@app.command()
@command
def serve(
    model: Model = "nano",
    host: Annotated[
        str, typer.Option(envvar="HIGGS_VOICE_HOST", help="Other than this machine needs a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(envvar="HIGGS_VOICE_PORT", help="0 takes a free one.")] = 8765,
    token: Token = None,
    folder: Folder = None,
    max_sessions: Annotated[int, typer.Option(help="Sessions of all clients together.")] = 64,
    admit_beyond_capacity: Annotated[
        bool, typer.Option(help="Take sessions although, by the engine's measured pace, speech would have gaps.")
    ] = False,
    drain: Annotated[
        float,
        typer.Option(min=0.0, help="Seconds that a shutdown waits for what is being said; 3 more at most to close."),
    ] = 25.0,
    limit: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Any limit of docs/operating.md: max_http_streams=16. Once for each."),
    ] = None,
    log_format: Annotated[
        str, typer.Option(envvar="HIGGS_VOICE_LOG_FORMAT", help="Log lines on standard error: text, or json.")
    ] = "text",
    log_text: Annotated[bool, typer.Option(help="Let log lines hold the text of what is spoken.")] = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    codec_dtype: CodecDtype = "float32",
    kv_dtype: KvDtype = "auto",
    weight_dtype: WeightDtype = "auto",
    debug: Debug = False,
) -> None:
    """Serve an engine to other processes and machines, until Ctrl-C."""
    try:
        from .server.app import Server
        from .server.app import serve as run_server
        from .server.settings import parse_limits
    except ModuleNotFoundError as error:
        raise DependencyError(
            f'the server needs {error.name}, which is not installed; run: pip install "higgs-voice[server]"'
        ) from error

    if log_format not in ("text", "json"):
        raise SettingsError(f"--log-format is text or json, not {log_format!r}")
    limits: dict[str, Any] = {
        "max_sessions": max_sessions,
        "drain_s": drain,
        "admit_beyond_capacity": admit_beyond_capacity,
        **parse_limits(limit or []),
    }
    telemetry.configure("json" if log_format == "json" else "text", level="DEBUG" if debug else "INFO")
    console = _stderr()
    console.quiet = log_format == "json"

    def ready(server: Server) -> None:
        console.print(f"{model} is ready at {server.url}", markup=False)

    run_server(
        model,
        host=host,
        port=port,
        token=token,
        voices=folder if folder is not None else _existing(voices_folder()),
        engine_options=_engine_options(
            model, device, dtype, None, number_types(model, codec_dtype, kv_dtype, weight_dtype)
        ),
        on_loading=lambda: console.print(f"loading {model} …", markup=False),
        on_ready=ready,
        log_text=log_text,
        **limits,
    )


def _existing(folder: Path) -> Path | None:
    return folder if folder.is_dir() else None


# doctor

EXTRAS: dict[str, tuple[str, tuple[str, ...]]] = {
    "engine": ("the model in this process", ("torch", "torchaudio", "transformers", "tokenizers", "safetensors")),
    "pipecat": ("Pipecat agents", ("pipecat-ai", "aiortc", "onnxruntime")),
    "livekit": ("LiveKit agents", ("livekit-agents",)),
    "phone": ("telephone calls", ("pipecat-ai", "onnxruntime", "fastapi", "uvicorn", "cryptography")),
    "server": ("higgs-voice serve", ("fastapi", "uvicorn", "prometheus-client")),
    "rate": ("a speech rate other than 1", ("libsonic",)),
    "otel": ("traces", ("opentelemetry-api",)),
}


@app.command()
@command
def doctor(
    model: Model = "nano",
    as_json: Json = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    debug: Debug = False,
) -> None:
    """Say what this machine can run, what is missing, and which command installs it. Exit 1 if something installed fails."""
    rows = _doctor(model, device, dtype)
    if as_json:
        typer.echo(json.dumps([{"part": part, "ok": ok, "says": says} for part, ok, says in rows], ensure_ascii=False))
    else:
        table = Table(box=None, show_header=False)
        marks = {True: "[green]ok[/]", False: "[red]fails[/]", None: "[yellow]–[/]"}
        for part, ok, says in rows:
            table.add_row(marks[ok], part, says)
        Console().print(table)
    if any(ok is False for _, ok, _ in rows):
        raise typer.Exit(1)


def _doctor(model: str, device: str, dtype: str) -> list[tuple[str, bool | None, str]]:
    """(part, whether it works or None where it is not there, what to know)."""
    from .bench.common import Place

    rows: list[tuple[str, bool | None, str]] = [
        ("higgs-voice", True, f"{__version__}, Python {sys.version.split()[0]}, {sys.platform}")
    ]
    missing: dict[str, list[str]] = {}
    for extra, (use, packages) in EXTRAS.items():
        found = {name: _installed(name) for name in packages}
        missing[extra] = [name for name, number in found.items() if number is None]
        if missing[extra]:
            says = f'{use}: missing {", ".join(missing[extra])}; pip install "higgs-voice[{extra}]"'
            rows.append((extra, None, says))
        else:
            rows.append((extra, True, f"{use}: " + ", ".join(f"{name} {number}" for name, number in found.items())))
    player = _Player.find(24000)
    rows.append(("player", True if player else None, player.name if player else "none: say writes out.wav instead"))
    if missing["engine"] and model not in ("fake",) and "://" not in model:
        rows.append(("model", None, f"{model} cannot run here; a server can be used: --model ws://host:port"))
        return rows
    if not missing["engine"]:
        import torch

        place = Place.here()
        rows.append(("processor", True, f"{place.cpu}, {place.cores} cores, {torch.get_num_threads()} torch threads"))
        if torch.cuda.is_available():
            properties = torch.cuda.get_device_properties(0)
            rows.append(
                ("GPU", True, f"{properties.name}, {properties.total_memory / 1e9:.0f} GB, CUDA {torch.version.cuda}")
            )
        else:
            rows.append(("GPU", None, "none that torch can use: nano runs in real time, the 3B model does not"))
        try:
            rows.append(("codec dtypes", True, _codec_dtypes(device)))
        except SettingsError as error:
            return [*rows, ("device", False, str(error))]
        if (kernels := _gpu_kernels(device)) is not None:
            rows.append(("GPU kernels", *kernels))
    rows += _run(_check(model, device, dtype))
    return rows


def _gpu_kernels(device: str) -> tuple[bool, str] | None:
    """Whether what a step on a GPU runs can be compiled here, and what to know; None where none would be used."""
    from .model.loading import pick_device
    from .model.toolchain import check_kernels

    where = pick_device(device)
    if where.type != "cuda":
        return None
    try:
        check_kernels(where)
    except DependencyError as error:
        return False, str(error)
    return True, "they compile and run"


def _codec_dtypes(device: str) -> str:
    """In what the codec can compute on that device, as `--codec-dtype` takes it."""
    from .codec.stream import pick_dtype
    from .model.loading import pick_device

    where = pick_device(device)
    try:
        pick_dtype("bfloat16", where)
    except SettingsError:
        return "float32; --codec-dtype bfloat16 needs a CPU with AMX"
    return "float32; bfloat16 is quicker (--codec-dtype bfloat16)"


@app.command(name="convert")
@command
def convert_checkpoint(
    source: Annotated[Path, typer.Argument(help="A folder with the language model's checkpoint, in either layout.")],
    target: Annotated[Path, typer.Argument(help="The folder to write.")],
    debug: Debug = False,
) -> None:
    """Put a checkpoint into its other layout: transformers' or the original one, which boson_multimodal reads.

    Nothing is computed and nothing is lost; converting the result gives the first files again.
    """
    try:
        from .model.convert import convert
    except ModuleNotFoundError as error:
        raise DependencyError(
            f'conversion needs {error.name}, which is not installed; run: pip install "higgs-voice[engine]"'
        ) from error
    layout = convert(source, target, on_file=lambda file: _stderr().print(f"writing {target / file}", markup=False))
    _stderr().print(f"{target} holds the checkpoint in the {layout} layout", markup=False)


def _installed(name: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return None


async def _check(model: str, device: str, dtype: str) -> list[tuple[str, bool | None, str]]:
    """Load the model, say a sentence, and take the codec both ways."""
    import numpy as np

    from .backends import create_backend
    from .conversation.session import VoiceSession
    from .conversation.speech import ChunkReport

    began = time.monotonic()
    try:
        engine = create_backend(model, **_engine_options(model, device, dtype, None))
        await engine.start()
    except HiggsVoiceError as error:
        return [("model", False, str(error))]
    rows: list[tuple[str, bool | None, str]] = []
    try:
        info = engine.info
        loaded = f"{info.model}, {info.num_codebooks} codebooks of {info.codebook_size}, loaded in {time.monotonic() - began:.1f} s"
        async with VoiceSession(engine) as session:
            events = [event async for event in session.speak("This machine can speak.")]
        reports = [event for event in events if isinstance(event, ChunkReport)]
        audio = sum(event.audio_s for event in reports)
        if not audio:
            rows.append(("model", False, f"{loaded}; it gave no sound"))
        else:
            ttfa, rtf = reports[0].ttfa_s * 1000, sum(event.total_s for event in reports) / audio
            pace = "in real time" if rtf < 0.8 else "too slow for a live call"
            rows.append(("model", True, f"{loaded}; first sound after {ttfa:.0f} ms, rtf {rtf:.2f}: {pace}"))
        pcm = np.concatenate(
            [event.to_array() for event in events if isinstance(event, PcmChunk)] or [np.zeros(0, np.int16)]
        )
        tone = (pcm.astype(np.float32) / 32768.0)[:24000]
        codes = await engine.encode(np.pad(tone, (0, 24000 - len(tone))))
        sound = await engine.decode(codes)
        fine = bool(np.isfinite(sound).all()) and len(sound) == codes.shape[1] * (info.sample_rate // info.frame_rate)
        rows.append(("codec", fine, f"1 s to {codes.shape[1]} frames and back" if fine else "its sound is not finite"))
    except HiggsVoiceError as error:
        rows.append(("model", False, str(error)))
    finally:
        await engine.aclose()
    return rows


def entry() -> NoReturn:
    """`python -m higgs_voice.cli`."""
    app(prog_name="higgs-voice")
    raise SystemExit(0)


if __name__ == "__main__":
    entry()
