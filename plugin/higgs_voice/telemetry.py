"""What operators look at: log lines with a call id, and OpenTelemetry spans of a turn. `docs/operating.md` lists both.

Neither carries what was said, by anyone, unless `SessionSettings.log_text` asks for it: fields are numbers, ids and names of
classes. Logging is Python's own; nothing here configures it but `configure`, which entry points call. Spans go through
`opentelemetry-api` where it is installed, and nowhere where it is not or has no SDK.
"""

from __future__ import annotations

import functools
import importlib
import json
import logging
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

FIELDS = "higgs_voice"
"""Attribute of a log record that holds its fields."""
_SEPARATOR = "~"
Value = str | int | float | bool | None


# Logs


def event(log: logging.Logger, name: str, *, level: int = logging.INFO, **fields: Value) -> None:
    """One line: what happened, and its fields. `call_id` is one of them wherever there is a call."""
    if log.isEnabledFor(level):
        known = {key: round(value, 4) if isinstance(value, float) else value for key, value in fields.items()}
        known = {key: value for key, value in known.items() if value is not None}
        said = " ".join(f"{key}={_plain(value)}" for key, value in known.items())
        log.log(level, "%s", f"{name} {said}" if said else name, extra={FIELDS: {"event": name, **known}})


class JsonFormatter(logging.Formatter):
    """A JSON object a line: ``time`` (UTC), ``level``, ``logger``, ``event`` and its fields, or ``message`` for lines of others."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        fields = getattr(record, FIELDS, None)
        if isinstance(fields, dict):
            line |= fields
        else:
            line["message"] = record.getMessage()
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def configure(
    style: Literal["text", "json"] = "text", *, level: int | str = logging.INFO, stream: TextIO | None = None
) -> None:
    """Send the log lines of this package and of its web server to `stream` (standard error). For entry points; libraries
    leave logging to them."""
    handler = logging.StreamHandler(stream or sys.stderr)
    plain = logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    handler.setFormatter(JsonFormatter() if style == "json" else plain)
    for name, least in (("higgs_voice", level), ("uvicorn", logging.WARNING)):
        log = logging.getLogger(name)
        for old in log.handlers[:]:
            log.removeHandler(old)
        log.addHandler(handler)
        log.setLevel(least)
        log.propagate = False


def session_name(call_id: str, unique: str) -> str:
    """A session's id that carries its call's id: a call may have several sessions, also on one engine."""
    return f"{call_id}{_SEPARATOR}{unique}"


def call_of(session_id: str) -> str:
    """The call that a session's id carries; the id itself if it carries none."""
    return session_id.rpartition(_SEPARATOR)[0] or session_id


def _plain(value: Value) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if not text or any(char in text for char in ' "=\n\r') else text


# Spans


@functools.cache
def load_tracing() -> Any:
    """`opentelemetry.trace`, or None. Its import takes tens of milliseconds, so a session asks before its first turn."""
    try:
        return importlib.import_module("opentelemetry.trace")
    except ImportError:
        return None


def under(span: Any) -> AbstractContextManager[Any]:
    """For frameworks that keep their span to themselves: a turn that begins in here hangs under it. None does nothing."""
    api = load_tracing()
    return nullcontext() if span is None or api is None else api.use_span(span, end_on_exit=False)


@dataclass(slots=True, eq=False)
class TurnTrace:
    """The spans of one turn, under the span that was current when it began.

    ``higgs_voice.turn`` holds ``higgs_voice.text`` (first token to first chunk), for each chunk ``higgs_voice.chunk`` with
    ``higgs_voice.first_pcm`` in it (request to first sound), and ``higgs_voice.playout`` (first sound taken, for as long as
    it was heard). The turn ends when it was both generated and heard. All methods may be called in any order and again.
    """

    call_id: str
    speech_id: str
    _trace: Any = field(default_factory=load_tracing)
    _turn: Any = None
    _context: Any = None
    _text: Any = None
    _text_done: bool = False
    _chunk: Any = None
    _first: Any = None
    _playout: Any = None
    _playing_since: int = 0
    _sounded: bool = False
    _generated: bool = False
    _heard: bool = False

    def __post_init__(self) -> None:
        if self._trace is not None:
            self._turn = self._begin("higgs_voice.turn", None)
            self._context = self._trace.set_span_in_context(self._turn)

    def text(self) -> None:
        """Text came in."""
        if self._turn is not None and self._text is None and not self._text_done:
            self._text = self._begin("higgs_voice.text", self._context)

    def cut(self) -> None:
        """A chunk was cut from the text."""
        self._text_done = True
        self._text = _ended(self._text)

    def chunk(self, number: int, characters: int, text: str | None = None) -> None:
        """A chunk was given to the engine."""
        if self._turn is not None:
            given: dict[str, Value] = {"higgs_voice.chunk": number, "higgs_voice.characters": characters}
            if text is not None:
                given["higgs_voice.text"] = text
            self._chunk = self._begin("higgs_voice.chunk", self._context, given)
            self._first = self._begin("higgs_voice.first_pcm", self._trace.set_span_in_context(self._chunk), given)

    def first_pcm(self) -> None:
        self._sounded = True
        self._first = _ended(self._first)

    def chunk_ended(self, error: BaseException | None = None, **values: Value) -> None:
        """The engine has ended the present chunk."""
        self._first = _ended(self._first)
        if self._chunk is not None:
            self._set(self._chunk, error, values)
            self._chunk = _ended(self._chunk)

    def taken(self) -> None:
        """The listener's side took the first sound."""
        if self._turn is not None and self._playout is None and not self._heard:
            self._playing_since = time.time_ns()
            self._playout = self._begin("higgs_voice.playout", self._context)

    def heard(self, seconds: float) -> None:
        """It is known how much was heard."""
        if self._heard:
            return
        self._heard = True
        if self._playout is not None:
            self._playout.set_attribute("higgs_voice.heard_s", seconds)
            self._playout.end(min(time.time_ns(), self._playing_since + int(seconds * 1e9)))
            self._playout = None
        self._close()

    def ended(self, error: BaseException | None = None, **values: Value) -> None:
        """Generation is over."""
        if self._generated or self._turn is None:
            return
        self._generated = True
        self.chunk_ended(error)
        self.cut()
        self._set(self._turn, error, values)
        self._close()

    def close(self) -> None:
        """Nothing more will be known."""
        self._playout = _ended(self._playout)
        self.ended()
        self._heard = True
        self._close()

    def _close(self) -> None:
        if self._generated and (self._heard or not self._sounded):
            self._heard = True
            self._turn = _ended(self._turn)

    def _begin(self, name: str, context: Any, given: dict[str, Any] | None = None) -> Any:
        ids = {"higgs_voice.call_id": self.call_id, "higgs_voice.speech_id": self.speech_id}
        return self._trace.get_tracer("higgs_voice").start_span(name, context=context, attributes=ids | (given or {}))

    def _set(self, span: Any, error: BaseException | None, values: dict[str, Value]) -> None:
        for key, value in values.items():
            if value is not None:
                span.set_attribute(f"higgs_voice.{key}", value)
        if error is not None:
            span.set_attribute("error.type", type(error).__name__)
            span.set_status(self._trace.StatusCode.ERROR)


def _ended(span: Any) -> None:
    if span is not None:
        span.end()


def kind_of(error: BaseException | None) -> str | None:
    """An error as a field: its class. What it says may hold text, if it is not one of ours."""
    return type(error).__name__ if error is not None else None
