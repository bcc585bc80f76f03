"""How full an engine server is, for LiveKit's dispatch."""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from contextlib import suppress
from urllib.parse import unquote, urlunsplit

from ...errors import SettingsError
from ...wire import DEFAULT_PORT
from .options import servers_of

_POLL_S = 0.5


class EngineLoad:
    """How full a server is, for LiveKit's dispatch: ``AgentServer(load_fnc=EngineLoad("ws://gpu-1:8765"))``.

    The framework asks often and from a thread, so the answer is the last one of a thread that polls ``/v1/load``. A server that
    does not answer, or shuts down, is full.
    """

    def __init__(self, model: str = f"ws://127.0.0.1:{DEFAULT_PORT}", *, token: str | None = None) -> None:
        servers = servers_of(model)
        if not servers:
            raise SettingsError(f"the load is that of a server, ws://host:port, not of {model!r}")
        self._questions: list[tuple[str, str | None]] = []
        for item in servers:
            own, _, place = item.netloc.rpartition("@")
            scheme = "https" if item.scheme == "wss" else "http"
            url = urlunsplit(item._replace(scheme=scheme, netloc=place, path="/v1/load"))
            self._questions.append((url, unquote(own) or token))
        self._load = 1.0
        self._asked_at = 0.0
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def __call__(self) -> float:
        """0 … 1, at once (the very first call waits for an answer)."""
        with self._lock:
            self._asked_at = time.monotonic()
            if self._thread is None or not self._thread.is_alive():
                self._load = self._ask()
                self._thread = threading.Thread(target=self._poll, name="higgs load", daemon=True)
                self._thread.start()
        return self._load

    def _poll(self) -> None:
        """Until nobody has asked for a while."""
        while time.monotonic() - self._asked_at < 30.0:
            time.sleep(_POLL_S)
            self._load = self._ask()

    def _ask(self) -> float:
        """The load of the first server that answers: it is the one that new calls go to."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        for url, token in self._questions:
            request = urllib.request.Request(url)
            if token:
                request.add_header("Authorization", f"Bearer {token}")
            with suppress(OSError, ValueError, KeyError, TypeError), opener.open(request, timeout=2.0) as answer:
                return min(1.0, max(0.0, float(json.load(answer)["load"])))
        return 1.0


load_fnc = EngineLoad()
"""The load of the server on this machine's default port."""
