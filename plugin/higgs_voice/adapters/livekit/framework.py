"""What is asked of the framework beyond its public interface, and its errors for ours."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from livekit.agents import APIConnectionError, APIError, APIStatusError, get_job_context
from livekit.agents.voice import AgentSession, io

from ...errors import (
    ConnectionLostError,
    EngineBusyError,
    EngineClosedError,
    EngineDiedError,
    HiggsVoiceError,
    RefusedError,
    SynthesisError,
)

log = logging.getLogger("livekit.plugins.higgs")

Session = AgentSession[Any]


CAPTURE_CANCELLED: type[io.PlaybackFinishedEvent] | None = getattr(io, "_CaptureCancelledEvent", None)
"""The event of an output that finishes a capture which was cancelled before it had taken any sound."""


def api_error(error: HiggsVoiceError, *, ended: bool = False) -> APIError:
    """The framework's error for ours: what may pass is tried again, what will not is not.

    ended: the conversation was closed on purpose; a stream that ran into that ends without an error.
    """
    match error:
        case EngineBusyError():
            return APIStatusError(str(error), status_code=429)
        case ConnectionLostError() | EngineDiedError():
            return APIConnectionError(str(error))
        case RefusedError():
            return APIStatusError(str(error), status_code=403)
        case EngineClosedError() if ended:
            return APIStatusError(str(error), status_code=499)
        case EngineClosedError():
            return APIConnectionError(str(error), retryable=False)
        case SynthesisError():
            return APIError(str(error), retryable=True)
        case _:
            return APIError(str(error), retryable=False)


def current_session() -> Session | None:
    """The session whose activity this runs in. The framework has no public way to ask, so that its absence is no error."""
    try:
        from livekit.agents.voice.agent_activity import (
            _AgentActivityContextVar,  # pyright: ignore[reportPrivateUsage]
        )

        activity = _AgentActivityContextVar.get(None)
    except ImportError:
        return None
    return activity.session if activity is not None else None


def current_handle() -> Any:
    try:
        from livekit.agents.voice.agent_activity import (
            _SpeechHandleContextVar,  # pyright: ignore[reportPrivateUsage]
        )

        return _SpeechHandleContextVar.get(None)
    except ImportError:
        return None


def is_probe() -> bool:
    """Whether this runs where the framework's `FallbackAdapter` finds out if a TTS works again: nobody hears what is said there."""
    return _runs_in("_recover_tts_task")


def is_joined() -> bool:
    """Whether this runs in the framework's `StreamAdapter`, which joins what it gets, a sentence at a time, into one stream."""
    return _runs_in("StreamAdapterWrapper._run.<locals>._synthesize")


def _runs_in(name: str) -> bool:
    """Whether the running task's coroutine is called so, or its qualified name ends so."""
    task = asyncio.current_task()
    return task is not None and f".{getattr(task.get_coro(), '__qualname__', '')}".endswith(f".{name}")


def job_session() -> Session | None:
    """The session of the job this runs in."""
    context = get_job_context(required=False)
    if context is None:
        return None
    try:
        return context.primary_session
    except RuntimeError:
        return None
