"""Higgs Audio v2 as a LiveKit Agents TTS: one voice for a whole `AgentSession`.

    session = AgentSession(tts=higgs.TTS(model="ws://127.0.0.1:8765"), ...)
    await session.start(agent, room=ctx.room)
    higgs.attach(session)  # in a job it attaches itself; elsewhere this line does

The classes are translators: chunking, the rolling context and generation are `VoiceSession`'s. Each `stream()` is one speech
of the conversation that belongs to the `AgentSession` it was called for, whichever agent speaks.

**What was heard.** Every frame carries the id of its speech. `HeardTracker` stands on top of the session's audio output,
sees which speech is being captured, and tells the conversation how far it was played when the output says so. Frames that a
wrapper makes anew (`FallbackAdapter`, `StreamAdapter`) have lost the id, and are matched with the speeches in order. Where the
tracker cannot stand, so are the output's ``playback_finished`` events. A speech whose frames never
reached the output (synthesis ahead of time that was thrown away) leaves no trace. Used without an `AgentSession`, what
was generated counts as played at the pace of the clock.
"""

from __future__ import annotations

import importlib

from ...errors import DependencyError

try:
    importlib.import_module("livekit.agents")
except ModuleNotFoundError as error:
    raise DependencyError(
        f'the LiveKit plugin needs {error.name}, which is not installed; run: pip install "higgs-voice[livekit]"'
    ) from error

from .heard import HeardTracker, attach
from .load import EngineLoad, load_fnc
from .streams import ChunkedStream, SynthesizeStream
from .tts import TTS

__all__ = ["TTS", "ChunkedStream", "EngineLoad", "HeardTracker", "SynthesizeStream", "attach", "load_fnc"]
