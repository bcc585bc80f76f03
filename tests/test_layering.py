"""Imports point one way, as the design has it, and what must not load torch does not.

    agents, examples -> adapters, server -> backends -> conversation, model, codec -> text, leaves

The files are parsed, so imports inside functions and under `TYPE_CHECKING` count too.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PLUGIN = ROOT / "plugin"
PACKAGE = PLUGIN / "higgs_voice"

LEAVES = {"errors", "audio", "config", "wire", "nano", "telemetry", "documented", "heap", "_version"}
BELOW_BACKENDS = {"conversation", "model", "codec", "text"}

# What each part of the package may import of the package, itself aside. A part that is not here fails the test: it has to
# be given its place first.
MAY_IMPORT: dict[str, set[str]] = {
    **dict.fromkeys(LEAVES, LEAVES),
    "text": LEAVES,
    "conversation": {"text"} | LEAVES,
    "captured": LEAVES,
    "model": {"text", "captured"} | LEAVES,
    "codec": {"text", "captured"} | LEAVES,
    "backends": BELOW_BACKENDS | LEAVES,
    "adapters": {"backends", "conversation", "text"} | LEAVES,
    "server": {"backends", "conversation", "text"} | LEAVES,
    # The documented API hands out tensors, so it may reach the delay pattern and the codec.
    "serve_engine": {"backends"} | BELOW_BACKENDS | LEAVES,
    # Entry points, and the list of public names.
    "bench": {"serve_engine", "server", "adapters", "backends"} | BELOW_BACKENDS | LEAVES,
    "boson_child": {"server", "backends"} | BELOW_BACKENDS | LEAVES,
    "cli_parts": {"conversation"} | LEAVES,
    "cli_bench": {"cli_parts", "bench", "conversation"} | LEAVES,
    "cli_voices": {"cli", "cli_parts", "backends", "conversation"} | LEAVES,
    "cli": {"cli_parts", "cli_bench", "cli_voices", "bench", "serve_engine", "server", "adapters", "backends"}
    | BELOW_BACKENDS
    | LEAVES,
    "__init__": {"serve_engine", "server", "adapters", "backends"} | BELOW_BACKENDS | LEAVES,
}

NO_TORCH = {"adapters", "conversation", "text"} | LEAVES
HEAVY = ("torch", "torchaudio", "transformers")

# Entry points may read the environment, and the settings may give them a hand.
READS_ENVIRONMENT = {"cli.py", "config.py", "server/__main__.py"}


@dataclass(frozen=True)
class Import:
    """One imported name, absolute and dotted; `from a import b` is ``a.b``."""

    file: Path
    line: int
    name: str

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line} imports {self.name}"


def module_of(file: Path) -> list[str]:
    parts = list(file.relative_to(PLUGIN).with_suffix("").parts)
    return parts[:-1] if parts[-1] == "__init__" else parts


@cache
def nodes_of(file: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(file.read_text(), str(file))))


def imports_of(file: Path, source: str | None = None) -> Iterator[Import]:
    package = module_of(file) if file.name == "__init__.py" else module_of(file)[:-1]
    for node in nodes_of(file) if source is None else ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(file, node.lineno, alias.name)
        elif isinstance(node, ast.ImportFrom):
            base = [] if node.level == 0 else package[: len(package) - node.level + 1]
            base = base + (node.module.split(".") if node.module else [])
            for alias in node.names:
                yield Import(file, node.lineno, ".".join([*base, alias.name]))


def part_of(file: Path) -> str:
    """The part of the package that a file belongs to: the folder or module right under higgs_voice."""
    return file.relative_to(PACKAGE).with_suffix("").parts[0]


def part_imported(name: str) -> str | None:
    """The part of the package that an import names; None for one from elsewhere."""
    top, _, rest = name.partition(".")
    if top != "higgs_voice":
        return None
    part = rest.partition(".")[0]
    # `from higgs_voice import Voice` asks for a public name, not for a part.
    return part if part in MAY_IMPORT or (PACKAGE / part).is_dir() or (PACKAGE / f"{part}.py").is_file() else "__init__"


def package_files() -> list[Path]:
    files = sorted(PACKAGE.rglob("*.py"))
    assert files, f"no Python files under {PACKAGE}"
    return files


def plugin_files() -> list[Path]:
    return sorted(PLUGIN.rglob("*.py"))


def crossing(file: Path, source: str | None = None) -> list[str]:
    """What `file` imports of the package and may not."""
    here = part_of(file)
    found: list[str] = []
    for item in imports_of(file, source):
        there = part_imported(item.name)
        if there is not None and there != here and there not in MAY_IMPORT[here]:
            found.append(f"{item}: {here} may not know {there}")
    return found


def test_every_part_has_its_place() -> None:
    unknown = {part_of(file) for file in package_files()} - set(MAY_IMPORT)
    assert not unknown, f"give {sorted(unknown)} a place in MAY_IMPORT (and in the design)"


def test_imports_point_one_way() -> None:
    found = [line for file in package_files() for line in crossing(file)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("part", "source"),
    [
        ("model", "from ..codec import stream"),
        ("codec", "from higgs_voice.model.delay import revert"),
        ("text", "import higgs_voice.conversation.voice"),
        ("conversation", "def later():\n    from ..backends import local"),
        ("errors", "from .cli import app"),
        ("adapters", "from ..model.loading import load"),
    ],
)
def test_an_import_that_points_the_wrong_way_is_found(part: str, source: str) -> None:
    file = PACKAGE / f"{part}.py" if part in LEAVES else PACKAGE / part / "x.py"
    assert crossing(file, source)


def test_parts_without_torch_never_name_it() -> None:
    found = [
        str(item)
        for file in package_files()
        if part_of(file) in NO_TORCH
        for item in imports_of(file)
        if item.name.partition(".")[0] in HEAVY
    ]
    assert not found, "\n".join(found)


def test_the_livekit_plugin_knows_the_adapter_alone() -> None:
    files = sorted((PLUGIN / "livekit").rglob("*.py"))
    assert files
    found = [
        str(item)
        for file in files
        for item in imports_of(file)
        if item.name.partition(".")[0] in HEAVY
        or part_imported(item.name) not in (None, "__init__", "adapters", "_version")
    ]
    assert not found, "\n".join(found)


def test_namespaces_shared_with_livekit_have_no_init() -> None:
    for folder in (PLUGIN, PLUGIN / "livekit", PLUGIN / "livekit" / "plugins"):
        assert not (folder / "__init__.py").exists(), f"{folder}/__init__.py would hide livekit-agents' own modules"


def test_no_script_hides_a_package() -> None:
    """A script's folder comes first on sys.path: agents/livekit.py would be imported in livekit's place."""
    taken = {"livekit", "pipecat", "higgs_voice", "torch", "transformers", "numpy", "soundfile", "websockets"}
    found = [
        str(file.relative_to(ROOT))
        for folder in ("agents", "examples", "benchmarks", "scripts", "tests")
        for file in (ROOT / folder).glob("*.py")
        if file.stem in taken | set(sys.stdlib_module_names)
    ]
    assert not found


def test_only_entry_points_read_the_environment() -> None:
    found: list[str] = []
    for file in plugin_files():
        if file.is_relative_to(PACKAGE) and str(file.relative_to(PACKAGE)) in READS_ENVIRONMENT:
            continue
        for node in nodes_of(file):
            names: list[str] = []
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os":
                names = [node.attr]
            elif isinstance(node, ast.ImportFrom) and node.module == "os":
                names = [alias.name for alias in node.names]
            if {"environ", "environb", "getenv", "getenvb"} & set(names):
                found.append(f"{file.relative_to(ROOT)}:{getattr(node, 'lineno', 0)} uses os.{names[0]}")
    assert not found, "\n".join(found)


# Runs in a process of its own: refuses torch and all that stands on it, and then imports what must do without.
_WITHOUT_TORCH = """
import importlib, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {heavy!r}:
            raise ModuleNotFoundError("No module named " + repr(name), name=name)
        return None

sys.meta_path.insert(0, Refuse())
for name in {modules!r}:
    importlib.import_module(name)
loaded = sorted(name for name in sys.modules if name.partition(".")[0] in {heavy!r})
assert not loaded, loaded
"""


def test_parts_without_torch_import_where_there_is_none() -> None:
    modules = [
        ".".join(module_of(file))
        for file in package_files()
        if part_of(file) in NO_TORCH | {"__init__"} and "-" not in file.stem
    ]
    modules += [".".join(module_of(file)) for file in sorted((PLUGIN / "livekit").rglob("*.py"))]
    run_python(_WITHOUT_TORCH.format(heavy=HEAVY, modules=modules))


def test_importing_the_package_loads_no_framework() -> None:
    run_python(
        """
import sys, higgs_voice
heavy = {"torch", "torchaudio", "transformers", "tokenizers", "pipecat", "livekit", "fastapi", "matplotlib", "soundfile"}
loaded = sorted(heavy & {name.partition(".")[0] for name in sys.modules})
assert not loaded, loaded
"""
    )


def run_python(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
