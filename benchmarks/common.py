"""What the measurements share: the place, percentiles, the last JSON line. It ships with the package."""

from higgs_voice.bench.common import Place, Spread, emit, engine_for, ms

__all__ = ["Place", "Spread", "emit", "engine_for", "ms"]
