"""What an operator may set."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from pydantic import Field, field_validator, model_validator

from ..config import Settings
from ..errors import SettingsError
from ..wire import DEFAULT_PORT


class ServerSettings(Settings):
    """A server's address, door and limits. Every limit has its own refusal, which says what it is."""

    host: str = "127.0.0.1"
    port: int = Field(default=DEFAULT_PORT, ge=0, le=65535)
    """0 takes a free one."""
    token: str | None = Field(default=None, min_length=8, repr=False)
    """Bearer token that every request must carry; needed for any host but loopback."""
    voices: Path | None = None
    """Folder of voices that requests may name."""

    max_connections: int = Field(default=64, ge=1)
    max_sessions: int = Field(default=64, ge=1)
    """Sessions of all clients together."""
    admit_beyond_capacity: bool = False
    """Take new sessions although the engine's measured pace says that speech would then have gaps."""
    speaking_share: float = Field(default=0.6, gt=0.0, le=1.0)
    """Part of the time in which a session speaks: so many sessions share the engine's capacity."""
    max_streams: int = Field(default=16, ge=1)
    """Chunks spoken at once that count as full load; more are accepted and wait in the engine's queue."""
    max_text: int = Field(default=4096, ge=1)
    """Characters of one chunk, and of one HTTP request."""
    max_clip_s: float = Field(default=30.0, gt=0.0)
    max_chunks_per_minute: int = Field(default=600, ge=1)
    """Of one client."""
    max_requests_per_minute: int = Field(default=120, ge=1)
    """HTTP requests for speech, of all callers together."""
    max_http_streams: int = Field(default=8, ge=1)
    """HTTP answers spoken at once."""
    stall_s: float = Field(default=60.0, gt=0.0)
    """How long an HTTP caller may take nothing of its answer before it is hung up on; a player that is full pauses too."""
    max_window_s: float = Field(default=30.0, gt=0.0)
    """Audio that a client may have sent ahead of what it took."""
    max_store_mb: float = Field(default=16.0, gt=0.0)
    """Exchanges kept for one client, so that it need not send them again."""

    grace_s: float = Field(default=30.0, ge=0.0)
    """How long the sessions of a broken connection are kept."""
    drain_s: float = Field(default=25.0, ge=0.0)
    """How long a shutdown waits for what is being said. Closing the connections takes up to 3 s more: orchestrators kill after
    30 s, unless told otherwise."""
    quiet_s: float = Field(default=2.0, ge=0.0)
    """A shutdown waits no longer once nothing has been spoken for this time: a turn's next chunk comes within it, but for an LLM
    that pauses longer."""
    ping_s: float = Field(default=10.0, gt=0.0)
    log_text: bool = False
    """Whether log lines hold the text of what is spoken, which may repeat what a caller said."""

    @field_validator("token", mode="before")
    @classmethod
    def _sendable(cls, token: object) -> object:
        """Secrets are often files with a line feed at their end; what is left must fit in a header."""
        token = token.strip() if isinstance(token, str) else token
        if isinstance(token, str) and not (token.isascii() and token.isprintable()):
            raise ValueError("a token goes into an HTTP header: only printable ASCII characters")
        return token

    @model_validator(mode="after")
    def _guarded(self) -> Self:
        if self.token is None and not is_loopback(self.host):
            raise ValueError(
                f"host {self.host!r} is reached from other machines, so a token is needed: set one of 8 characters or more "
                "(--token, or the environment's HIGGS_VOICE_TOKEN), or use 127.0.0.1"
            )
        return self


LIMITS = tuple(
    name for name in ServerSettings.model_fields if name not in ("host", "port", "token", "voices", "log_text")
)
"""What `--limit` may set; docs/operating.md says what each means."""


def parse_limits(words: Iterable[str]) -> dict[str, str]:
    """`NAME=VALUE` as it is written on a command line; `ServerSettings` reads the values.

    Errors: `SettingsError`, which names the limits.
    """
    limits: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or name not in LIMITS:
            what = f"there is no limit {name!r}" if equals else f"--limit takes NAME=VALUE, not {word!r}"
            raise SettingsError(f"{what}; the limits are: {', '.join(LIMITS)}")
        limits[name] = value.strip()
    return limits


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
