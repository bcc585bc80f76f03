"""`higgs-voice voices list | show | add | remove | preview`: the operator's folder of voices."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from .cli_parts import (
    Clips,
    ClipTexts,
    Debug,
    Device,
    Dtype,
    Folder,
    Json,
    Model,
    Out,
    Scene,
    Speakers,
    Temperature,
    Token,
    check_out,
    command,
    described,
    engine_options,
    killable,
    run_async,
    stderr,
)
from .config import Sampling, engine_kind, voices_folder
from .errors import HiggsVoiceError, SettingsError

if TYPE_CHECKING:
    from .conversation.presets import Presets
    from .conversation.voice import Voice

voices_app = typer.Typer(
    help="Voices by name: list, show, add, remove, preview. They are named wherever a voice is asked for.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

PREVIEW = "Hello, this is my voice. How can I help you today?"

Name = Annotated[str, typer.Argument(help="Letters, digits, - and _.")]


def _presets(folder: Path | None) -> Presets:
    """Errors: `SettingsError` for a folder that is named and is not there."""
    from .conversation.presets import Presets

    if folder is not None and not folder.is_dir():
        raise SettingsError(f"the folder of voices {str(folder)!r} does not exist")
    return Presets(folder if folder is not None else voices_folder())


@voices_app.command("list")
@command
def list_voices(folder: Folder = None, as_json: Json = False, debug: Debug = False) -> None:
    """The voices that may be named: the folder's and those that ship."""
    presets = _presets(folder)
    found = [_row(presets, name) for name in presets.names()]
    found += [{**_EMPTY, "name": name, "error": error} for name, error in _unusable(presets.folder)]
    if as_json:
        typer.echo(json.dumps(found, ensure_ascii=False))
        return
    table = Table("voice", "scene", "speakers", "clips", "from", box=None)
    for item in found:
        clips = ", ".join(f"{seconds:.1f} s" for seconds in item["clips_s"])
        table.add_row(
            item["name"], item["scene"] or "", "\n".join(item["speakers"]), clips or item["error"] or "", item["from"]
        )
    Console().print(table)
    stderr().print(f"the folder is {presets.folder}", markup=False, soft_wrap=True)


_EMPTY: dict[str, Any] = {"name": "", "scene": None, "speakers": [], "clips_s": [], "from": "folder", "error": None}


def _row(presets: Presets, name: str) -> dict[str, Any]:
    known = presets.all().get(name)
    origin = "the model" if known is None else "shipped" if known.shipped else "folder"
    try:
        voice = presets.get(name)
    except HiggsVoiceError as error:
        return {**_EMPTY, "name": name, "from": origin, "error": f"not usable: {error}"}
    return {
        "name": name,
        "scene": voice.scene if known is not None else "the model's own choice, kept by the context",
        "speakers": list(voice.speakers),
        "clips_s": [round(item.seconds, 2) for item in voice.references],
        "from": origin,
        "error": None,
    }


def _unusable(folder: Path | None) -> list[tuple[str, str]]:
    """Files that look like voices and cannot be named."""
    from .conversation.presets import CLIPS, NAME, SAVED

    found: list[tuple[str, str]] = []
    for file in sorted(folder.iterdir()) if folder is not None and folder.is_dir() else []:
        if file.suffix not in (SAVED, *CLIPS):
            continue
        if NAME.fullmatch(file.stem) is None:
            found.append((file.stem, "not usable: rename it to letters, digits, - and _"))
        elif file.suffix in CLIPS and not file.with_suffix(".txt").is_file() and not file.with_suffix(SAVED).is_file():
            found.append((file.stem, f"not usable: write what is said in it to {file.stem}.txt"))
    return found


@voices_app.command("show")
@command
def show(name: Name, folder: Folder = None, as_json: Json = False, debug: Debug = False) -> None:
    """Everything about one voice."""
    presets = _presets(folder)
    voice = presets.get(name)
    known = presets.all().get(name)
    found = {
        "name": name,
        "file": str(known.file) if known is not None else None,
        "shipped": known is not None and known.shipped,
        "scene": voice.scene,
        "speakers": list(voice.speaker_lines),
        "system": voice.system,
        "clips": [
            {
                "text": item.text,
                "seconds": round(item.seconds, 2),
                "sound": bool(len(item.pcm)),
                "codec": item.codec or None,
            }
            for item in voice.references
        ],
    }
    if as_json:
        typer.echo(json.dumps(found, ensure_ascii=False))
        return
    table = Table(box=None, show_header=False)
    table.add_row("voice", name)
    file = str(known.file) if known is not None else "none: the model's own choice, kept by the context"
    table.add_row("file", file)
    table.add_row("scene", voice.scene or "")
    table.add_row("speakers", "\n".join(voice.speaker_lines))
    for item in voice.references:
        encoded = f"codes of codec {item.codec[:12]}" if item.codec else "not encoded yet"
        table.add_row("clip", f"{item.seconds:.1f} s, {encoded}: {item.text}")
    Console(soft_wrap=True).print(table)


@voices_app.command("add")
@command
def add(
    name: Name,
    scene: Scene = None,
    speaker: Speakers = None,
    ref: Clips = None,
    ref_text: ClipTexts = None,
    voice: Annotated[Path | None, typer.Option(help="A saved voice (Voice.save), instead of the four above.")] = None,
    encode: Annotated[
        bool,
        typer.Option("--encode", help="Keep the clips' codes too, of --model's codec: no session encodes them then."),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a voice of that name.")] = False,
    folder: Folder = None,
    model: Model = "nano",
    token: Token = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    debug: Debug = False,
) -> None:
    """Keep a voice under a name: higgs-voice voices add anna --ref anna.wav --ref-text "What is said in it."

    Clone only voices whose owners agreed to it.
    """
    from .conversation.presets import Presets, check_name
    from .conversation.voice import Voice

    check_name(name)
    if folder is not None and folder.exists() and not folder.is_dir():
        raise SettingsError(f"cannot write to {str(folder)!r}: it is a file, and voices are kept in a folder")
    presets = Presets(folder if folder is not None else voices_folder())
    if voice is not None:
        if scene or speaker or ref or ref_text:
            raise SettingsError("--voice is a whole voice; leave --scene, --speaker and --ref away")
        made = Voice.load(voice)
    else:
        made = described(scene, speaker, ref, ref_text)
        if not (made.scene or made.speakers or made.references):
            raise SettingsError(
                "a voice needs something that makes it one: --scene, --speaker, --ref with --ref-text, or --voice"
            )
    if encode:
        made = run_async(_encoded(made, model, engine_options(model, device, dtype, token)))
    try:
        file = presets.add(name, made, replace_old=force)
    except OSError as error:
        raise SettingsError(f"cannot write to {presets.folder}: {error.strerror or error}") from error
    where = f" --voices {shlex.quote(str(folder))}" if folder is not None else ""
    stderr().print(
        f"wrote {file}; hear it with: higgs-voice voices preview {name}{where}", markup=False, soft_wrap=True
    )


async def _encoded(voice: Voice, model: str, options: dict[str, Any]) -> Voice:
    from .backends import create_backend

    with killable():
        engine = create_backend(model, **options)
    try:
        await engine.start()
        return await voice.resolve(engine)
    finally:
        await engine.aclose()


@voices_app.command("remove")
@command
def remove(name: Name, folder: Folder = None, debug: Debug = False) -> None:
    """Delete a voice of the folder, with its clip and transcript."""
    presets = _presets(folder)
    try:
        gone = presets.remove(name)
    except OSError as error:
        raise SettingsError(f"cannot remove {name!r} from {presets.folder}: {error.strerror or error}") from error
    stderr().print(f"removed {', '.join(str(file) for file in gone)}", markup=False, soft_wrap=True)


@voices_app.command("preview")
@command
def preview(
    name: Name,
    text: Annotated[str, typer.Option(help="What it says.")] = PREVIEW,
    out: Out = None,
    seed: Annotated[int | None, typer.Option(help="Makes it repeatable.")] = 1,
    temperature: Temperature = None,
    folder: Folder = None,
    model: Model = "nano",
    token: Token = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Hear a voice. A voice of a server is previewed there: --model ws://host:port."""
    from .cli import Saying
    from .conversation.presets import check_name

    check_name(name)
    check_out(out, as_json=as_json)
    presets = _presets(folder)
    remote = engine_kind(model) == "remote"
    voice = name if remote else replace(presets.get(name), name=name)
    saying = Saying(
        model,
        engine_options(model, device, dtype, token),
        voice,
        Sampling(seed=seed, temperature=temperature),
        text,
        out,
        normalize=True,
        folder=presets.folder,
    )
    saying.finish(as_json=as_json)
