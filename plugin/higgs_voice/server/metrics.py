"""Numbers for Prometheus, in a registry of the server's own."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0)
_RATIOS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.5, 2.0, 4.0)


class Metrics:
    """One server's counters. `observe_*` methods take seconds."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.ttfa = Histogram(
            "higgs_voice_ttfa_seconds", "From a chunk's text to its first audio", buckets=_SECONDS, registry=registry
        )
        self.rtf = Histogram(
            "higgs_voice_rtf", "Seconds of work for a second of audio", buckets=_RATIOS, registry=registry
        )
        self.connections = Gauge("higgs_voice_connections", "Open websockets", registry=registry)
        self.sessions = Gauge("higgs_voice_sessions", "Open sessions", registry=registry)
        self.streams = Gauge("higgs_voice_streams", "Chunks being spoken", registry=registry)
        self.queue = Gauge("higgs_voice_queue", "Chunks that wait for their first audio", registry=registry)
        self.load = Gauge("higgs_voice_load", "0 is idle, 1 is full", registry=registry)
        self.capacity = Gauge(
            "higgs_voice_capacity",
            "Streams that the engine can speak at once without gaps, as measured; 0 while unknown",
            registry=registry,
        )
        self.kv_bytes = Gauge("higgs_voice_kv_bytes", "Memory that the sessions' KV caches hold", registry=registry)
        self.chunks = Counter("higgs_voice_chunks", "Chunks by how they ended", ["reason"], registry=registry)
        self.audio = Counter("higgs_voice_audio_seconds", "Audio made", registry=registry)
        self.interruptions = Counter("higgs_voice_interruptions", "Chunks stopped by their client", registry=registry)
        self.underruns = Counter(
            "higgs_voice_underruns", "Times that audio left later than a listener needed it", registry=registry
        )
        self.refusals = Counter("higgs_voice_refusals", "Requests refused", ["why"], registry=registry)
        self.resumptions = Counter("higgs_voice_resumptions", "Connections taken up again", registry=registry)

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)
