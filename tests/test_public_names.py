"""`higgs_voice/__init__.py` is the list of public names, and nothing else."""

from __future__ import annotations

import importlib
import types

import pytest

import higgs_voice

PUBLIC = [
    "ChunkReport",
    "ChunkerSettings",
    "HiggsVoiceError",
    "Lexicon",
    "Pauses",
    "PcmChunk",
    "Reference",
    "Sampling",
    "SessionSettings",
    "SessionStats",
    "Speech",
    "Synthesizer",
    "Voice",
    "VoiceSession",
    "Window",
    "Word",
    "__version__",
    "create_backend",
]


def test_the_public_names_are_these() -> None:
    """What users may import from the top. A name goes only with a deprecation, and comes only on purpose."""
    assert sorted(higgs_voice.__all__) == sorted(PUBLIC)


def test_every_public_name_resolves() -> None:
    missing = [name for name in higgs_voice.__all__ if not hasattr(higgs_voice, name)]
    assert not missing


def test_the_list_says_everything_once() -> None:
    assert len(set(higgs_voice.__all__)) == len(higgs_voice.__all__)
    assert higgs_voice.__all__


def test_nothing_else_is_public() -> None:
    others = [
        name
        for name, value in vars(higgs_voice).items()
        if not name.startswith("_")
        and name not in higgs_voice.__all__
        # Submodules appear as attributes once anything has imported them.
        and not (isinstance(value, types.ModuleType) and value.__name__ == f"higgs_voice.{name}")
        and name != "annotations"
    ]
    assert not others


def test_dir_shows_the_public_names() -> None:
    assert set(higgs_voice.__all__) <= set(dir(higgs_voice))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = higgs_voice.no_such_name  # type: ignore[attr-defined]


def test_version_is_that_of_the_distribution() -> None:
    from importlib.metadata import version

    assert higgs_voice.__version__ == importlib.import_module("higgs_voice._version").__version__
    assert version("higgs-voice") == higgs_voice.__version__
