"""The engines behind one Protocol, chosen by name."""

from __future__ import annotations

from typing import Any

from ..config import engine_kind
from ..conversation.synthesizer import Synthesizer
from ..errors import DependencyError, SettingsError


def create_backend(model: str = "nano", **options: Any) -> Synthesizer:
    """An engine by name; call its `start` before use. Nothing is loaded or connected here.

    ``nano`` (embedded), a hub id or a folder: the model in this process. ``boson:`` before a folder or
    hub id: boson_multimodal, in a process of its own. ``ws://host:port`` or ``wss://…``: a ``higgs-voice serve``
    elsewhere. ``fake``: deterministic tones. `options` go to the engine's constructor.
    Errors: `SettingsError` (unknown option), `DependencyError` (an extra is missing).
    """
    kind = engine_kind(model)
    try:
        if kind == "fake":
            from .fake import FakeSynthesizer

            return FakeSynthesizer(**options)
        if kind == "remote":
            from .remote import RemoteSynthesizer

            return RemoteSynthesizer(model, **options)
        if kind == "boson":
            from .boson import BosonSynthesizer

            return BosonSynthesizer(model, **options)
        from .local import LocalSynthesizer

        return LocalSynthesizer(model, **options)
    except TypeError as error:
        raise SettingsError(f"the engine for {model!r} cannot take these options: {error}") from error
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in ("torch", "torchaudio", "transformers", "soundfile", "tokenizers"):
            raise DependencyError(
                f"the engine for {model!r} needs {error.name}, which is not installed; run: "
                'pip install "higgs-voice[engine]", or use a server: model="ws://host:port"'
            ) from error
        raise


__all__ = ["create_backend"]
