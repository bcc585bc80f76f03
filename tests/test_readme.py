"""The code in README.md and docs/ runs as it stands there.

Every ```python block is run, with top-level await, in an empty folder. Two HTML comments right before a block, which a
reader of the page does not see, change that:

    <!-- not run: why -->        it is compiled and its imports are made, and that is all
    <!-- before: code -->        lines that run first, for a block that shows a part of a program

A ```bash block is run when `<!-- run -->` stands before it. In all others each `make` target and each option of a
`higgs-voice` command must at least exist.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import linecache
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("**/*.md"))]

_BLOCK = re.compile(
    r"(?P<notes>(?:^[ ]*<!--(?:(?!-->).)*-->\s*\n)*)^(?P<indent>[ ]*)```(?P<language>python|bash)\s*\n(?P<code>.*?)^(?P=indent)```",
    re.MULTILINE | re.DOTALL,
)
_NOTE = re.compile(r"<!--\s*(not run|before|run)\b:?(.*?)-->", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block of code, with what the comments before it say."""

    page: Path
    line: int
    """Of the first line of code, from 1."""
    language: str
    code: str
    notes: dict[str, str]

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks_of(page: Path, text: str) -> list[Block]:
    blocks: list[Block] = []
    for match in _BLOCK.finditer(text):
        indent = match["indent"]
        code = "".join(line.removeprefix(indent) for line in match["code"].splitlines(keepends=True))
        notes = {note[1]: note[2].strip("\n ") for note in _NOTE.finditer(match["notes"])}
        blocks.append(Block(page, text.count("\n", 0, match.start("code")) + 1, match["language"], code, notes))
    return blocks


BLOCKS = [block for page in PAGES if page.is_file() for block in blocks_of(page, page.read_text())]
PYTHON = [block for block in BLOCKS if block.language == "python"]
BASH = [block for block in BLOCKS if block.language == "bash"]


def run(block: Block, code: str) -> None:
    """Run Python as the page's own lines, so that a traceback points into the page."""
    name = f"<{block}>"
    source = "\n" * (block.line - 1) + code
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    names: dict[str, Any] = {"__name__": "__main__"}
    program = compile(source, name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    if program.co_flags & inspect.CO_COROUTINE:
        asyncio.run(_awaited(program, names))
    else:
        exec(program, names)


async def _awaited(program: Any, names: dict[str, Any]) -> None:
    await eval(program, names)


def imports(code: str) -> str:
    """The import statements of a program, wherever they stand."""
    nodes = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Import | ast.ImportFrom)]
    return "\n".join(ast.unparse(node) for node in nodes)


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_python(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if "not run" in block.notes:
        assert block.notes["not run"], f"{block}: say why it is not run"
        compile(block.code, str(block), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        run(block, imports(block.code))
        return
    if "before" in block.notes:
        # On one line of the page with the block's first, so that line numbers stay those of the page.
        before = block.notes["before"] + "\n"
        shifted = Block(block.page, block.line - before.count("\n"), block.language, block.code, block.notes)
        run(shifted, before + block.code)
        return
    run(block, block.code)


def commands_of(block: Block) -> list[list[str]]:
    """The words of each command; pipes and lists are taken apart, `$ ` prompts and comments dropped."""
    commands: list[list[str]] = []
    for line in block.code.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        for word in lexer:
            if set(word) <= set("|&;()<>"):
                commands.append(words)
                words = []
            else:
                words.append(word)
        commands.append(words)
    # What stands before the program: assignments, `.venv/bin/` and the like.
    stripped = [words[next((i for i, word in enumerate(words) if "=" not in word), 0) :] for words in commands]
    return [[Path(words[0]).name, *words[1:]] for words in stripped if words]


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def check_make(words: list[str]) -> None:
    targets = [word for word in words if "=" not in word and not word.startswith("-")]
    missing = [target for target in targets if target not in make_targets()]
    assert not missing, f"the Makefile has no target {missing}"


def check_higgs_voice(words: list[str]) -> None:
    """Each subcommand and option exists."""
    import typer

    from higgs_voice.cli import app

    command: Any = typer.main.get_command(app)
    while words and hasattr(command, "commands") and words[0] in command.commands:
        command = command.commands[words.pop(0)]
    assert not hasattr(command, "commands") or not words or words[0].startswith("-"), f"no command {words[:1]}"
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}
    unknown = [word for word in words if re.match(r"--?[a-z]", word) and word.partition("=")[0] not in known]
    assert not unknown, f"higgs-voice {command.name} has no option {unknown}"


CHECKS: dict[str, Callable[[list[str]], None]] = {"make": check_make, "higgs-voice": check_higgs_voice}


@pytest.mark.parametrize("block", BASH, ids=str)
def test_bash(block: Block, tmp_path: Path) -> None:
    for words in commands_of(block):
        if words[0] in CHECKS:
            CHECKS[words[0]](words[1:])
    if "run" in block.notes:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block.code],
            cwd=tmp_path,
            env={**os.environ, "PATH": path},
            capture_output=True,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=100,
            check=False,
        )
        assert done.returncode == 0, f"{block}\n{done.stdout}{done.stderr}"


def test_the_readme_shows_code_that_runs() -> None:
    assert [block for block in PYTHON if block.page.name == "README.md" and "not run" not in block.notes]


def test_the_readme_links_to_files_that_exist() -> None:
    missing = [
        f"{page.name}: {target}"
        for page in PAGES
        if page.is_file()
        for target in re.findall(r"\]\((?!https?:|mailto:|#)([^)\s#]+)", page.read_text())
        if not (page.parent / target).exists()
    ]
    assert not missing


PAGE = """
Text.

<!-- before:
x = 2
-->
```python
import asyncio
await asyncio.sleep(0)
assert x == 2
raise LookupError
```

<!-- not run: needs a server -->
```python
import no_such_module
```

```bash
$ cat notes.txt | X=1 .venv/bin/higgs-voice say - --sed 7  # a comment
make nothing ARGS="-k x"
```
"""


def test_blocks_are_found_and_faults_in_them_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, third = blocks_of(tmp_path / "page.md", PAGE)
    with pytest.raises(LookupError) as error:
        test_python(first, tmp_path, monkeypatch)
    assert error.traceback[-1].lineno + 1 == PAGE.splitlines().index("raise LookupError") + 1
    with pytest.raises(ModuleNotFoundError):
        test_python(second, tmp_path, monkeypatch)
    say, make = commands_of(third)[1:]
    assert say == ["higgs-voice", "say", "-", "--sed", "7"]
    with pytest.raises(AssertionError, match="nothing"):
        check_make(make[1:])
