"""One exception tree. Adapters translate it into their framework's (``ErrorFrame``, ``APIError``).

HiggsVoiceError
├── SettingsError (ValueError)     an unknown or impossible setting
├── DependencyError (ImportError)  an extra is not installed
├── VoiceError (ValueError)        a voice cannot be used as asked
│   ├── ClipError                  a reference clip: missing, not audio, empty, too long, not finite
│   └── VoiceFileError             a saved voice cannot be read
├── SnapshotError (ValueError)     a conversation's snapshot cannot be taken up
├── ModelError                     a checkpoint cannot be used
│   ├── ModelNotFoundError         nothing by that name
│   └── CheckpointError            found, but corrupt or of another kind
├── SynthesisError                 one chunk failed; the session goes on
│   ├── NoAudioError               the model ended at once, also with other seeds
│   ├── RunawayError               far more audio than the text can need
│   └── SilenceError               silence that would not end
├── EngineError                    the engine cannot serve
│   ├── EngineBusyError            at capacity: refused at once
│   ├── EngineClosedError          asked after close
│   └── EngineDiedError            the worker is gone; carries what killed it
└── RemoteError                    an engine across a process boundary
    ├── ConnectionLostError        no server, or the line broke for longer than the grace time
    ├── ProtocolError              a message that is not ours
    └── RefusedError               the server said no (token, limit, unknown voice)
"""

from __future__ import annotations


class HiggsVoiceError(Exception):
    """Everything this package raises on purpose."""


class SettingsError(HiggsVoiceError, ValueError):
    """An unknown or impossible setting; the message names the valid ones."""


class DependencyError(HiggsVoiceError, ImportError):
    """A part needs an extra that is not installed; the message says which command installs it."""


class VoiceError(HiggsVoiceError, ValueError):
    """A voice cannot be used as asked."""


class ClipError(VoiceError):
    """A reference clip cannot be used."""


class VoiceFileError(VoiceError):
    """A saved voice cannot be read."""


class SnapshotError(HiggsVoiceError, ValueError):
    """A conversation's snapshot is no snapshot, of another version, or of another engine's codes."""


class ModelError(HiggsVoiceError):
    """A checkpoint cannot be used."""


class ModelNotFoundError(ModelError):
    """There is no model by that name."""


class CheckpointError(ModelError):
    """A checkpoint was found and is corrupt, incomplete or of another kind."""


class SynthesisError(HiggsVoiceError):
    """One chunk could not be spoken as it should; the session goes on."""


class NoAudioError(SynthesisError):
    """The model ended before the first sound, also with other seeds."""


class RunawayError(SynthesisError):
    """The model went on far beyond what the text can need and was stopped."""


class SilenceError(SynthesisError):
    """The model produced silence that would not end and was stopped."""


class EngineError(HiggsVoiceError):
    """The engine cannot serve."""


class EngineBusyError(EngineError):
    """The engine is at its capacity; the request was refused at once."""


class EngineClosedError(EngineError):
    """The engine was closed before the request."""


class EngineDiedError(EngineError):
    """The engine's worker is gone; ``__cause__`` is what killed it."""


class RemoteError(HiggsVoiceError):
    """An engine across a process boundary could not be used."""


class ConnectionLostError(RemoteError):
    """No server answers, or the line broke for longer than the grace time."""


class ProtocolError(RemoteError):
    """A message on the wire is not of our protocol."""


class RefusedError(RemoteError):
    """The server refused: token, limit or unknown name."""
