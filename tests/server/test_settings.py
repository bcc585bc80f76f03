"""What an operator may set, and the table that says so."""

from __future__ import annotations

import re
from pathlib import Path

from higgs_voice.server.settings import LIMITS, ServerSettings

PAGE = Path(__file__).parents[2] / "docs" / "operating.md"


def test_the_table_has_every_limit_with_its_default() -> None:
    text = PAGE.read_text().partition("## The limits of a server")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)`[^|]* \| (\S+) \| .{15,} \|$", text, re.MULTILINE)
    assert dict(rows) == {name: _written(ServerSettings.model_fields[name].default) for name in LIMITS}
    assert [name for name, _ in rows] == list(LIMITS)


def _written(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}"
