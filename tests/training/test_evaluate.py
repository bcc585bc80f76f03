"""What the voice's evaluation publishes of how its speech ended."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from higgs_voice import Voice, Window
from training import evaluate
from training.evaluate import Said, last_line, runaways

SECOND = np.full(24_000, 0.1, np.float32)


def said(*reasons: str) -> Said:
    return Said(np.tile(SECOND, 2), reasons)


class Speaker:
    """Says what it is given, one conversation after another."""

    def __init__(self, *conversations: list[Said]) -> None:
        self.conversations = list(conversations)
        self.engine = SimpleNamespace(encode=self.same, decode=self.same)

    async def same(self, value: Any) -> Any:
        return value

    async def conversation(self, texts: list[str], voice: Voice | None, window: Window | None = None) -> list[Said]:
        return self.conversations.pop(0)


def test_what_did_not_end_by_itself_is_counted() -> None:
    turns = [said("eos"), said("eos", "eos"), said("eos", "runaway"), said("silence", "collapse"), said("length")]
    assert runaways(turns) == {"count": 3, "of": 5}
    assert runaways([]) == {"count": 0, "of": 0}


async def test_both_conversations_say_how_their_turns_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "embeddings", lambda clips: np.ones((len(clips), 256)) / 16)
    monkeypatch.setattr(evaluate, "flite", lambda text, voice: SECOND)
    monkeypatch.setattr(evaluate, "plot", lambda curves: None)
    speaker: Any = Speaker([said("eos")] * 5, [said("eos")] * 4 + [said("runaway")])
    report = await evaluate.consistency(speaker, ["Yes."] * 5)
    line = last_line({"voice": report})
    assert line["runaways"] == {
        "sentences": None,
        "turns": {"count": 0, "of": 5},
        "turns_without_context": {"count": 1, "of": 5},
    }
    assert line["similarity_slope"] == 0.0


async def test_the_sentences_say_how_they_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "flite", lambda text, voice: SECOND)
    monkeypatch.setattr(evaluate, "recognized", lambda audio: "yes")
    monkeypatch.setitem(sys.modules, "jiwer", SimpleNamespace(wer=lambda *_: 0.5, cer=lambda *_: 0.5))
    speaker: Any = Speaker([said("eos")], [said("length")], [said("eos", "runaway")])
    report = await evaluate.word_error(speaker, ["Yes."] * 3)
    assert report["ended_otherwise"] == 2
    assert last_line({"words": report})["runaways"]["sentences"] == {"count": 2, "of": 3}


def test_the_last_line_keeps_its_names() -> None:
    assert list(last_line({})) == [
        "wer_ratio",
        "codec_wer_ratio",
        "similarity_slope",
        "clone_accuracy",
        "rtf_one_core",
        "runaways",
    ]
    report = {"words": {"wer_ratio": 1.23456, "rtf_one_core": 0.25}, "clone": {"clone_accuracy": 1.0}}
    assert list(last_line(report).values())[:-1] == [1.2346, None, None, 1.0, 0.25]
