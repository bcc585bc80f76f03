"""Higgs Audio v2 for LiveKit Agents: ``from livekit.plugins import higgs`` and ``tts=higgs.TTS()``."""

from livekit.agents import Plugin

from higgs_voice import Reference, Sampling, SessionSettings, Voice, Window
from higgs_voice.adapters.livekit import (
    TTS,
    ChunkedStream,
    EngineLoad,
    HeardTracker,
    SynthesizeStream,
    attach,
    load_fnc,
)

from .log import logger
from .version import __version__

__all__ = [
    "TTS",
    "ChunkedStream",
    "EngineLoad",
    "HeardTracker",
    "Reference",
    "Sampling",
    "SessionSettings",
    "SynthesizeStream",
    "Voice",
    "Window",
    "__version__",
    "attach",
    "load_fnc",
]


class HiggsPlugin(Plugin):
    """Registered on import. Nothing is downloaded and no model is loaded here: this runs in LiveKit's forkserver."""

    def __init__(self) -> None:
        super().__init__(__name__, __version__, __package__ or __name__, logger)


Plugin.register_plugin(HiggsPlugin())
