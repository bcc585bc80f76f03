"""The Grafana dashboard asks for what the server exports, and for all of it."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest

from higgs_voice.server.metrics import Metrics

ROOT = Path(__file__).resolve().parent.parent
BOARD = ROOT / "deploy" / "grafana" / "higgs-voice.json"
FROM_PROMETHEUS = {"up"}
_WORDS = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*(?=\{)")
_LABELS = re.compile(r'([a-z_]+)(?:=~|!=|!~|=)"')
_BY = re.compile(r"by \(([^)]*)\)")


def board() -> dict[str, Any]:
    return json.loads(BOARD.read_text())


def queries(dashboard: dict[str, Any]) -> list[str]:
    return [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


def exported() -> dict[str, set[str]]:
    """Names as they are scraped, with their labels."""
    names: dict[str, set[str]] = {}
    for metric in Metrics().registry.collect():
        labels = (
            {"reason"}
            if metric.name == "higgs_voice_chunks"
            else {"why"}
            if metric.name.endswith("refusals")
            else set()
        )
        match metric.type:
            case "counter":
                names[f"{metric.name}_total"] = labels
            case "histogram":
                for end in ("bucket", "sum", "count"):
                    names[f"{metric.name}_{end}"] = labels | ({"le"} if end == "bucket" else set())
            case _:
                names[metric.name] = labels
    return names


def unknown(expressions: list[str]) -> list[str]:
    """What is asked for and not there: metrics, and labels of those that are."""
    names, found = exported(), list[str]()
    for expression in expressions:
        asked = set(_WORDS.findall(expression))
        known = {"job", "instance"}.union(*(names.get(name, set()) for name in asked))
        labels = set(_LABELS.findall(expression)) | {
            label.strip() for group in _BY.findall(expression) for label in group.split(",")
        }
        found += [f"{name} in {expression}" for name in asked - set(names) - FROM_PROMETHEUS]
        found += [f"label {name} in {expression}" for name in labels - known]
        found += [] if asked else [f"no metric in {expression}"]
    return found


def test_every_query_is_over_what_we_export() -> None:
    assert unknown(queries(board())) == []


@pytest.mark.parametrize(
    "query",
    [
        "rate(higgs_voice_ttfa_bucket{}[1m])",
        'higgs_voice_chunks_total{cause="x"}',
        "sum by (room) (higgs_voice_load{})",
        "1",
    ],
)
def test_a_query_over_something_else_is_found(query: str) -> None:
    assert unknown([query])


def test_everything_we_export_is_on_the_board() -> None:
    asked = " ".join(queries(board()))
    missing = [
        metric.name for metric in Metrics().registry.collect() if metric.name not in asked and metric.type != "unknown"
    ]
    assert missing == []


def test_the_board_can_be_imported_anywhere() -> None:
    """No data source of one installation, no server's address; panels that do not lie on each other, ids given once."""
    dashboard = board()
    text = BOARD.read_text()
    assert "localhost" not in text
    assert "127.0.0.1" not in text
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        assert panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}"
        assert panel["targets"]
    for one, two in itertools.combinations([panel["gridPos"] for panel in panels], 2):
        apart = (
            one["x"] + one["w"] <= two["x"]
            or two["x"] + two["w"] <= one["x"]
            or one["y"] + one["h"] <= two["y"]
            or two["y"] + two["h"] <= one["y"]
        )
        assert apart
    assert {item["name"] for item in dashboard["templating"]["list"]} == {"datasource", "job", "instance"}
