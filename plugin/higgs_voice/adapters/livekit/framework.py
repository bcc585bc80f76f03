"""What is asked of the framework beyond its public interface, and its errors for ours."""

from __future__ import annotations

import logging
from typing import Any

from livekit.agents import APIConnectionError, APIError, APIStatusError, get_job_context
from livekit.agents.voice import AgentSession

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


def api_error(error: HiggsVoiceError) -> APIError:
    """The framework's error for ours: what may pass is tried again, what will not is not."""
    match error:
        case EngineBusyError():
            return APIStatusError(str(error), status_code=429)
        case ConnectionLostError() | EngineDiedError():
            return APIConnectionError(str(error))
        case RefusedError():
            return APIStatusError(str(error), status_code=403)
        case EngineClosedError():
            return APIStatusError(str(error), status_code=499)
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


def job_session() -> Session | None:
    """The session of the job this runs in."""
    context = get_job_context(required=False)
    if context is None:
        return None
    try:
        return context.primary_session
    except RuntimeError:
        return None
