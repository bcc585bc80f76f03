"""The command line: what is printed where, exit codes, streams, players."""

from __future__ import annotations

import asyncio
import importlib
import io
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import tomllib
import wave
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from higgs_voice import __version__, cli, cli_parts
from higgs_voice.audio import write_wav
from higgs_voice.errors import DependencyError

RUN = CliRunner()


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr(cli._Player, "find", classmethod(lambda cls, rate: None))


def call(*words: str, stdin: str | bytes | None = None, code: int = 0) -> Result:
    result = RUN.invoke(cli.app, list(words), input=stdin)
    assert result.exit_code == code, result.output + repr(result.exception)
    return result


def last_line(result: Result) -> Any:
    return json.loads(result.stdout.splitlines()[-1])


def seconds_of(path: Path) -> float:
    with wave.open(str(path)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 24000)
        return file.getnframes() / 24000


def files() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path().iterdir() if path.is_file()}


# say


def test_say_writes_a_file_and_says_what_it_did() -> None:
    result = call("say", "Hello there, you. This is one voice.", "--model", "fake", "--out", "a.wav", "--json")
    found = last_line(result)
    assert set(found) == {"ttfa_ms", "audio_s", "rtf", "chunks", "failed_chunks", "sample_rate"}
    assert (found["chunks"], found["failed_chunks"], found["sample_rate"]) == (2, 0, 24000)
    assert found["ttfa_ms"] > 0
    assert seconds_of(Path("a.wav")) == pytest.approx(found["audio_s"])
    assert len(result.stdout.splitlines()) == 1
    assert "This is one voice." in result.stderr
    assert "wrote a.wav" in result.stderr


def test_say_without_a_player_writes_out_wav() -> None:
    result = call("say", "Hello there.", "--model", "fake")
    assert "no player was found" in result.stderr
    assert seconds_of(Path("out.wav")) > 0
    assert result.stdout == ""


@pytest.mark.parametrize("words", [(), ("-",)])
def test_say_reads_standard_input(words: tuple[str, ...]) -> None:
    text = "Grüße, liebe Welt. Und noch ein Satz.".encode()
    found = last_line(call("say", *words, "--model", "fake", "--out", "a.wav", "--json", stdin=text))
    assert found["chunks"] == 2


@pytest.mark.parametrize(("text", "said"), [(b"Caf\xe9 \xff. Yes.\xc3", 1), ("Café \ufffd. Yes.".encode(), 0)])
def test_bytes_that_are_no_text_are_survived_and_said_once(text: bytes, said: int) -> None:
    result = call("say", "-", "--model", "fake", "--json", stdin=text)
    assert last_line(result)["chunks"] >= 1
    assert result.stderr.count("not all UTF-8") == said


async def test_standard_input_is_passed_on_as_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    with os.fdopen(read) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        pieces = cli._stdin()
        os.write(write, b"Hel")
        assert await anext(pieces) == "Hel"
        os.write(write, "ö".encode()[:1])
        assert await anext(pieces) == ""
        os.write(write, "ö".encode()[1:])
        assert await anext(pieces) == "ö"
        os.close(write)
        assert [piece async for piece in pieces] == [""]


@pytest.mark.parametrize("words", [("",), ("   ",), ("...",), ("🎉",), ("-",)])
def test_where_there_is_nothing_to_say_nothing_is_written(words: tuple[str, ...]) -> None:
    Path("keep.wav").write_bytes(b"kept")
    for out in ("keep.wav", "new.wav"):
        result = call("say", *words, "--model", "fake", "--out", out, "--json", stdin=b"", code=1)
        nothing = {"ttfa_ms": None, "audio_s": 0.0, "rtf": None, "chunks": 0, "failed_chunks": 0}
        assert last_line(result) == nothing | {"sample_rate": 24000}
        assert result.stderr == "nothing in this text can be said\n"
    call("say", *words, "--model", "fake", stdin=b"", code=1)
    assert files() == {"keep.wav": b"kept"}


def test_a_say_that_fails_leaves_files_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    from higgs_voice.backends import fake

    Path("keep.wav").write_bytes(b"kept")
    Path("link.wav").symlink_to("nowhere.wav")

    async def broken(self: Any) -> None:
        raise DependencyError("it does not start")

    monkeypatch.setattr(fake.FakeSynthesizer, "start", broken)
    for out in ("keep.wav", "new.wav", "link.wav"):
        assert "it does not start" in call("say", "Hello.", "--model", "fake", "--out", out, code=1).stderr
    assert files() == {"keep.wav": b"kept"}
    assert Path("link.wav").is_symlink()


def test_a_text_that_gave_no_sound_is_not_written_either(monkeypatch: pytest.MonkeyPatch) -> None:
    from higgs_voice.backends import fake
    from higgs_voice.conversation.synthesizer import FinishReason

    class Mute(fake.FakeSynthesizer):
        def __init__(self, **options: Any) -> None:
            super().__init__(script=lambda request: FinishReason.COLLAPSE, **options)

    monkeypatch.setattr(fake, "FakeSynthesizer", Mute)
    result = call("say", "Hello.", "--model", "fake", "--out", "new.wav", code=1)
    assert result.stderr.splitlines()[-1].startswith("higgs-voice: ")
    assert files() == {}


def test_chunks_that_broke_off_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    from higgs_voice.backends import fake
    from higgs_voice.conversation.synthesizer import FinishReason

    class Babbling(fake.FakeSynthesizer):
        def __init__(self, **options: Any) -> None:
            super().__init__(script=lambda asked: FinishReason.RUNAWAY if "one" in asked.text else None, **options)

    monkeypatch.setattr(fake, "FakeSynthesizer", Babbling)
    text = "Hello there, you. This is one voice."
    result = call("say", text, "--model", "fake", "--out", "a.wav", "--json")
    assert (last_line(result)["chunks"], last_line(result)["failed_chunks"]) == (2, 1)
    assert "1 of them did not end well" in result.stderr


def test_a_disk_that_is_full_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, pcm: bytes, rate: int) -> None:
        path.write_bytes(b"RIFF")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cli_parts, "write_wav", full)
    result = call("say", "Hello.", "--model", "fake", "--out", "new.wav", code=1)
    assert result.stderr.endswith("higgs-voice: cannot write new.wav: No space left on device\n")
    assert files() == {}


def test_a_dash_is_standard_output_and_nothing_else_goes_there() -> None:
    result = call("say", "Hello there.", "--model", "fake", "--out", "-")
    with wave.open(io.BytesIO(result.stdout_bytes)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 24000)
        assert len(file.readframes(-1)) == 2 * file.getnframes() == len(result.stdout_bytes) - 44
        assert file.getnframes() > 0
    assert files() == {}


@pytest.mark.parametrize("out", ["sound", "sound.WAV"])
def test_a_name_without_a_suffix_or_with_its_own_is_taken(out: str) -> None:
    call("say", "Hello there.", "--model", "fake", "--out", out)
    assert seconds_of(Path(out)) > 0


def test_the_voice_and_the_sampling_are_passed_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from higgs_voice.backends import fake

    made: list[fake.FakeSynthesizer] = []

    class Kept(fake.FakeSynthesizer):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            made.append(self)

    monkeypatch.setattr(fake, "FakeSynthesizer", Kept)
    clip = tmp_path / "clip.wav"
    write_wav(clip, bytes(range(256)) * 200)
    who = [
        "--scene",
        "A hall.",
        "--speaker",
        "warm",
        "--speaker",
        "deep",
        "--ref",
        str(clip),
        "--ref-text",
        "What is said.",
    ]
    call("say", "Pay $5, please.", "--model", "fake", *who, "--seed", "7", "--temperature", "0.2")
    (request,) = made[0].requests
    voice = request.context.voice
    assert (voice.scene, voice.speakers) == ("A hall.", ("SPEAKER0: warm", "SPEAKER1: deep"))
    assert [item.text for item in voice.references] == ["What is said."]
    assert (request.sampling.seed, request.sampling.temperature) == (7, 0.2)
    assert "five dollars" in request.text
    call("say", "Pay $5, please.", "--model", "fake", "--verbatim")
    assert made[1].requests[0].text == "Pay $5, please."


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["say", "Hi.", "--model", "no-such-model"], "no-such-model"),
        (["say", "Hi.", "--model", "fake", "--temperature", "-1"], "temperature"),
        (["say", "Hi.", "--model", "fake", "--out", "no/such/a.wav"], "cannot write no/such/a.wav: No such file"),
        (["say", "Hi.", "--model", "fake", "--out", "."], "cannot write"),
        (
            ["say", "Hi.", "--model", "fake", "--out", "a.mp3"],
            "--out writes wav, so a.mp3 would not be what its name says",
        ),
        (["say", "Hi.", "--model", "fake", "--out", "-", "--json"], "--out - sends the sound to standard output"),
        (["say", "Hi.", "--model", "fake", "--ref", "no.wav", "--ref-text", " "], "--ref-text is empty"),
        (["say", "Hi.", "--model", "fake", "--ref", "no.wav", "--ref-text", "x"], "no.wav"),
        (["say", "Hi.", "--model", "fake", "--ref", "no.wav"], "--ref-text"),
        (["say", "Hi.", "--model", "fake", "--voice", "no.voice"], "no.voice"),
        (["say", "Hi.", "--model", "fake", "--voice", "no.voice", "--scene", "x"], "--voice is a whole voice"),
        (["say", "Hi.", "--model", "fake", "--voice", "nobody"], "there is no voice 'nobody'; there are: "),
        (["bench", "latency", "--model", "fake", "--voice", "nobody"], "there is no voice 'nobody'"),
        (["bench", "context", "--window", "wide"], "last_n"),
        (["bench", "concurrency", "--sessions", "many"], "1,2,4"),
    ],
)
def test_an_error_is_one_sentence(words: list[str], says: str) -> None:
    result = call(*words, code=1)
    assert says in result.stderr
    assert result.stderr.startswith("higgs-voice: ") or "wrote" not in result.stderr
    assert "Traceback" not in result.output
    assert files() == {}


def test_debug_shows_where_it_came_from() -> None:
    result = RUN.invoke(cli.app, ["say", "Hi.", "--model", "no-such-model", "--debug"])
    assert result.exception is not None
    assert "no-such-model" in str(result.exception)


def test_ctrl_c_is_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(work: Any) -> None:
        work.close()
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_run", interrupted)
    call("say", "Hi.", "--model", "fake", code=130)


def test_an_unknown_option_is_a_usage_error() -> None:
    assert call("say", "Hi.", "--sed", "7", code=2)


def test_the_environment_names_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIGGS_VOICE_MODEL", "fake")
    assert last_line(call("say", "Hi there.", "--json"))["chunks"] == 1


# Players


def player(folder: Path, name: str, script: str) -> None:
    path = folder / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("#!/bin/sh\n" + script)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.mark.parametrize("name", sorted(cli.PLAYERS))
def test_a_player_gets_the_sound(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    player(tmp_path, name, f"echo $@ > {tmp_path}/words\nexec cat > {tmp_path}/heard\n")
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/bin:/usr/bin")
    monkeypatch.setattr(cli, "PLAYERS", {name: cli.PLAYERS[name]})
    monkeypatch.setattr(cli._Player, "find", classmethod(lambda cls, rate: cls._program(rate)))
    found = last_line(call("say", "Hello there.", "--model", "fake", "--json"))
    assert (tmp_path / "heard").stat().st_size == found["audio_s"] * 48000
    assert "24000" in (tmp_path / "words").read_text()
    assert not Path("out.wav").exists()


def test_a_player_that_fails_leaves_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    player(tmp_path, "aplay", "exit 3\n")
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/bin:/usr/bin")
    monkeypatch.setattr(cli._Player, "find", classmethod(lambda cls, rate: cls._program(rate)))
    monkeypatch.setattr(cli, "PLAYERS", {"aplay": cli.PLAYERS["aplay"]})
    result = call("say", "Hello there, this is a long text. It goes on and on.", "--model", "fake")
    assert "aplay did not play" in result.stderr
    assert seconds_of(Path("out.wav")) > 1


# serve, doctor, version


def test_serve_hands_its_options_on(monkeypatch: pytest.MonkeyPatch) -> None:
    app = pytest.importorskip("higgs_voice.server.app")
    given: dict[str, Any] = {}
    monkeypatch.setattr(app, "serve", lambda model, **options: given.update(options, model=model))
    call("serve", "--model", "fake", "--port", "0", "--token", "secret-token", "--max-sessions", "3")
    assert (given["model"], given["port"], given["token"], given["max_sessions"]) == ("fake", 0, "secret-token", 3)
    assert (given["host"], given["voices"], given["engine_options"]) == ("127.0.0.1", None, {})
    call(
        "serve",
        "--model",
        "nano",
        "--device",
        "cpu",
        "--codec-dtype",
        "bfloat16",
        "--kv-dtype",
        "bfloat16",
        "--weight-dtype",
        "int8",
    )
    types = {"codec_dtype": "bfloat16", "kv_dtype": "bfloat16", "weight_dtype": "int8"}
    assert given["engine_options"] == {"device": "cpu", "dtype": "auto", **types}
    given.clear()
    for model in ("fake", "ws://127.0.0.1:1", "boson:nano"):
        refused = call("serve", "--model", model, "--kv-dtype", "bfloat16", code=1)
        assert f"--kv-dtype bfloat16 is for a model in this process, and {model} is not" in refused.stderr
    assert not given
    call("serve", "--model", "nano")
    assert given["engine_options"] == {"device": "auto", "dtype": "auto"}


def test_serve_takes_any_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    app = pytest.importorskip("higgs_voice.server.app")
    given: list[Any] = []

    async def run(_: Any, settings: Any, **__: Any) -> None:
        given.append(settings)

    monkeypatch.setattr(app, "run", run)
    words = ("serve", "--model", "fake", "--port", "0", "--max-sessions", "3")
    call(*words, "--limit", "max_http_streams=16", "--limit", "quiet-s=0.5", "--limit", "admit_beyond_capacity=true")
    (settings,) = given
    assert (settings.max_http_streams, settings.quiet_s, settings.admit_beyond_capacity) == (16, 0.5, True)
    assert (settings.max_sessions, settings.max_requests_per_minute) == (3, 120)
    for limit, sentence in (
        ("max_http=16", "there is no limit 'max_http'; the limits are: max_connections, max_sessions, "),
        ("token=secret-token", "there is no limit 'token'; the limits are: "),
        ("max_text", "--limit takes NAME=VALUE, not 'max_text'; the limits are: "),
        (
            "max_text=lots",
            "max_text: Input should be a valid integer, unable to parse string as an integer (got 'lots')",
        ),
        ("max_text=0", "max_text: Input should be greater than or equal to 1 (got '0')"),
    ):
        refused = call(*words, "--limit", limit, code=1).stderr
        assert sentence in refused
        assert len(refused.splitlines()) == 1
    assert len(given) == 1


def test_serve_says_that_a_port_is_taken_before_it_loads_anything() -> None:
    pytest.importorskip("higgs_voice.server.app")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        refused = call("serve", "--port", str(taken.getsockname()[1]), code=1).stderr
    assert "choose another port" in refused
    assert "loading" not in refused


def test_serve_without_its_extra_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "higgs_voice.server.app", None)
    assert "higgs-voice[server]" in call("serve", code=1).stderr


def test_doctor_says_what_is_there_and_what_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = cli._installed
    gone = ("aiortc", "opentelemetry-api")
    monkeypatch.setattr(cli, "_installed", lambda name: None if name in gone else installed(name))
    rows = {row["part"]: row for row in json.loads(call("doctor", "--model", "fake", "--json").stdout)}
    assert rows["pipecat"]["ok"] is None
    assert 'pip install "higgs-voice[pipecat]"' in rows["pipecat"]["says"]
    assert rows["otel"]["ok"] is None
    assert 'pip install "higgs-voice[otel]"' in rows["otel"]["says"]
    assert rows["rate"]["ok"] is True
    assert "libsonic" in rows["rate"]["says"]
    assert rows["phone"]["ok"] is True
    assert rows["engine"]["ok"] is True
    assert rows["player"]["ok"] is None
    assert rows["model"]["ok"] is True
    assert rows["codec"]["ok"] is True


def test_doctor_says_what_the_codec_can_compute_in(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    for amx, sentence in ((True, "bfloat16 is quicker"), (False, "bfloat16 needs a CPU with AMX")):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda amx=amx: amx)
        found = json.loads(call("doctor", "--model", "fake", "--device", "cpu", "--json").stdout)
        assert [sentence in row["says"] for row in found if row["part"] == "codec dtypes"] == [True]


def test_doctor_says_whether_a_gpus_kernels_can_be_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where one would be used."""
    torch = pytest.importorskip("torch")
    gpu, checked = torch.device("cuda", 1), list[Any]()

    def check(device: Any) -> None:
        checked.append(device)
        if len(checked) > 1:
            raise DependencyError("no C compiler (apt install gcc)")

    def kernels(device: str, code: int = 0) -> list[tuple[bool, str]]:
        found = json.loads(call("doctor", "--model", "fake", "--device", device, "--json", code=code).stdout)
        return [(row["ok"], row["says"]) for row in found if row["part"] == "GPU kernels"]

    monkeypatch.setattr("higgs_voice.model.toolchain.check_kernels", check)
    assert kernels("cpu") == []
    monkeypatch.setattr("higgs_voice.codec.stream.pick_dtype", lambda *_: torch.float32)
    monkeypatch.setattr("higgs_voice.model.loading.pick_device", lambda device: torch.device(device))
    assert kernels("cuda:1") == [(True, "they compile and run")]
    assert kernels("cuda:1", code=1) == [(False, "no C compiler (apt install gcc)")]
    assert checked == [gpu, gpu]


def test_doctor_fails_when_the_model_does(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no-such-model" in call("doctor", "--model", "no-such-model", code=1).stdout

    def missing(model: str, **options: Any) -> None:
        raise DependencyError("an extra is not installed")

    monkeypatch.setattr("higgs_voice.backends.create_backend", missing)
    assert "an extra is not installed" in call("doctor", "--model", "fake", code=1).stdout


def test_the_version_is_printed() -> None:
    assert call("--version").stdout.strip() == f"higgs-voice {__version__}"


# The program itself


def program(*words: str) -> list[str]:
    return [sys.executable, "-m", "higgs_voice.cli", *words]


def test_the_program_says_a_stream_on_the_embedded_voice() -> None:
    done = subprocess.run(
        program("say", "-", "--seed", "7", "--out", "a.wav", "--json"),
        input="Yes. I see. 你好。".encode(),
        capture_output=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["chunks"] >= 1
    assert seconds_of(Path("a.wav")) == pytest.approx(found["audio_s"], abs=1e-3)
    assert found["audio_s"] > 0.3
    assert done.stderr.decode().count("nano has learned English") == 1


async def test_ctrl_c_ends_the_program_while_it_waits_for_text() -> None:
    """What was said until then is kept."""
    process = await asyncio.create_subprocess_exec(
        *program("say", "-", "--model", "fake"),
        stdin=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stderr is not None
    process.stdin.write(b"A first sentence. And then")
    await process.stdin.drain()
    said = b""
    while b"A first sentence." not in said:  # it is running, and waits for more
        line = await process.stderr.readline()
        assert line, said
        said += line
    process.send_signal(signal.SIGINT)
    assert await asyncio.wait_for(process.wait(), 20) == 130
    said += await process.stderr.read()
    assert b"Traceback" not in said
    assert b"wrote out.wav" in said
    assert seconds_of(Path("out.wav")) > 0.5


LOADING = """
import asyncio, threading
from higgs_voice import backends, cli
from higgs_voice.backends import fake

def load():
    print("loading", flush=True)
    threading.Event().wait()

class Slow(fake.FakeSynthesizer):
    async def start(self):
        await asyncio.to_thread(load)

fake.FakeSynthesizer = Slow
cli.entry()
"""


async def test_a_second_ctrl_c_does_not_wait_for_a_model_that_loads() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", LOADING, "say", "Hello.", "--model", "fake", "--out", "a.wav"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        assert await process.stdout.readline() == b"loading\n"
        process.send_signal(signal.SIGINT)
        assert (await process.stderr.readline()).startswith(b"stopping")
        process.send_signal(signal.SIGINT)
        assert await process.wait() == -signal.SIGINT
    finally:
        if process.returncode is None:
            process.kill()
    assert await process.stderr.read() == b""
    assert files() == {}


@pytest.mark.parametrize("before", [signal.default_int_handler, signal.SIG_IGN])
def test_ctrl_c_ends_the_program_at_once_while_the_engine_is_imported(
    monkeypatch: pytest.MonkeyPatch, before: Any
) -> None:
    seen: list[Any] = []

    def importing(model: str, **options: Any) -> None:
        seen.append(signal.getsignal(signal.SIGINT))
        raise DependencyError("an extra is not installed")

    monkeypatch.setattr("higgs_voice.backends.create_backend", importing)
    kept = signal.signal(signal.SIGINT, before)
    try:
        call("say", "Hello.", "--model", "fake", code=1)
        assert signal.getsignal(signal.SIGINT) is before
    finally:
        signal.signal(signal.SIGINT, kept)
    assert seen == [signal.SIG_DFL if callable(before) else before]


def test_the_engines_log_is_for_debug_alone() -> None:
    code = (
        "import logging; from higgs_voice import cli; cli.app(standalone_mode=False); "
        "logging.getLogger('higgs_voice.x').error('a log line')"
    )
    for words, shown in (((), False), (("--debug",), True)):
        done = subprocess.run(
            [sys.executable, "-c", code, "say", "Hello.", "--model", "fake", "--out", "a.wav", *words],
            capture_output=True,
            text=True,
            timeout=100,
            check=True,
        )
        assert ("a log line" in done.stderr) == shown


# What the installed program begins with


def entry_point() -> tuple[str, str]:
    project = tomllib.loads((Path(__file__).resolve().parent.parent / "pyproject.toml").read_text())
    module, _, function = project["project"]["scripts"]["higgs-voice"].partition(":")
    return module, function


def test_the_programs_first_module_imports_next_to_nothing() -> None:
    """What comes before it decides about SIGINT has Python's own handler, and so a traceback."""
    module, function = entry_point()
    code = f"import sys; had = set(sys.modules); import {module}; print(*(set(sys.modules) - had)); {module}.{function}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=True)
    assert done.stdout.split() == [module]


@pytest.mark.parametrize("ignored", [False, True])
async def test_ctrl_c_in_the_programs_imports_has_no_traceback(tmp_path: Path, ignored: bool) -> None:
    """Unless it is ignored, as by a shell for what it starts in the background."""
    module, function = entry_point()
    package = tmp_path / "slow" / "higgs_voice"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("print('importing', flush=True)\ninput()\n")
    (package / "cli.py").write_text("def app():\n    print('ran')\n")
    code = f"import sys; from {module} import {function}; sys.path.insert(0, {str(package.parent)!r}); {function}()"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        preexec_fn=(lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)) if ignored else None,
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"importing\n"
    process.send_signal(signal.SIGINT)
    out, said = await process.communicate(b"\n" if ignored else None)
    assert said == b""
    assert (process.returncode, out) == ((0, b"ran\n") if ignored else (-signal.SIGINT, b""))


def test_the_program_takes_ctrl_c_while_a_command_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    module, function = entry_point()
    seen: list[Any] = []
    monkeypatch.setattr(cli, "app", lambda: seen.append(signal.getsignal(signal.SIGINT)))
    before = signal.getsignal(signal.SIGINT)
    try:
        getattr(importlib.import_module(module), function)()
        assert seen == [signal.default_int_handler]
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGINT, before)
