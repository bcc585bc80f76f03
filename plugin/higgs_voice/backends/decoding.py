"""The thread that turns codes into sound, beside the one that steps the model.

While the codec decodes, the model takes its next steps; on a GPU the codec has a CUDA stream of its own. Frames come in from
the worker's thread and never wait. What is ready is decoded piece after piece: first the streams that have the least sound
left to play, and, on a GPU, with them whoever has a piece of the same shape, in one batch. On a CPU a batch takes as long as its
pieces one after another, so they go one after another, and who has ample sound waits while another stream with little of it is about to
have a piece ready.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ..audio import FRAME_RATE
from ..codec import Decoder, DecodeStream
from ..codec.graphs import pieces_stream
from ..conversation.synthesizer import Codes
from ..errors import EngineBusyError, EngineDiedError

log = logging.getLogger("higgs_voice.decoding")

COMFORTABLE_S, AMPLE_S = 0.25, 1.0
"""Seconds buffered: with less a stream is not kept waiting, with more it waits for such a one. The scheduler's, on a CPU, too."""
RECONSIDER_S = 0.01
SPARE = 0.9
"""Share of the time that the codec may be busy before streams have to wait for it."""


class SoundStream(Protocol):
    """A stream of which sound is made. Called on the codec's thread."""

    decode: DecodeStream
    closed: bool
    """Nobody wants any more of it. May become true at any time."""

    def view(self) -> tuple[float, float]:
        """Seconds buffered and seconds waiting."""
        ...

    def send(self, samples: NDArray[np.float32]) -> None:
        """More sound [n]."""
        ...

    def finish(self) -> None:
        """All of its sound has been sent."""
        ...

    def fail(self, error: Exception) -> None:
        """There will be no more sound."""
        ...

    def ended(self, reason: str, error: Exception | None) -> None:
        """As the worker's `Listener` has it: here, that it was stopped."""
        ...


class DecodeThread:
    """See the module. `push`, `end` and `shutdown` may be called from any thread."""

    def __init__(
        self,
        decoder: Decoder,
        device: torch.device,
        *,
        threads: int = 1,
        max_batch: int = 16,
        together: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``max_batch``: for how many streams at once the decoder is made ready on a GPU. ``together``: whether equal pieces are
        decoded in a batch; None is yes on a GPU and no on a CPU."""
        self._decoder = decoder
        self._device = device
        self._threads = threads
        self._max_batch = max_batch
        self._together = device.type == "cuda" if together is None else together
        self._clock = clock
        self._wake = threading.Condition()
        self._arrived: deque[tuple[SoundStream, Codes | None]] = deque()
        self._streams: dict[SoundStream, bool] = {}
        """Streams that may have a piece ready, and whether all of their frames are here."""
        self._holding = False
        """Whether a piece is ready and waits for another stream's."""
        self._closing = False
        self._busy_s = self._frames = 0.0
        self._thread = threading.Thread(target=self._run, name="higgs-voice codec", daemon=True)

    # Any thread

    def start(self) -> None:
        self._thread.start()

    def push(self, stream: SoundStream, codes: Codes) -> None:
        """Codes [K, n] of a stream, behind those before."""
        self._put(stream, codes)

    def end(self, stream: SoundStream) -> None:
        """A stream has all of its frames; `SoundStream.finish` follows when they have been decoded."""
        self._put(stream, None)

    def shutdown(self, timeout_s: float = 5.0) -> None:
        """End the thread and wait for it; what is not decoded yet is dropped."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    @property
    def frame_s(self) -> float:
        """Seconds that a frame takes, by the recent ones; 0 until one was decoded."""
        return self._busy_s / self._frames if self._frames else 0.0

    @property
    def capacity(self) -> float | None:
        """Streams whose sound can be made in the time that they play; None until two seconds were decoded."""
        return SPARE / (FRAME_RATE * self.frame_s) if self._frames >= 2 * FRAME_RATE else None

    def _put(self, stream: SoundStream, codes: Codes | None) -> None:
        with self._wake:
            self._arrived.append((stream, codes))
            self._wake.notify()

    # The codec's thread

    def _run(self) -> None:
        torch.set_num_threads(self._threads)
        with contextlib.ExitStack() as stack:
            if self._device.type == "cuda":
                try:
                    torch.cuda.set_device(self._device)
                    stack.enter_context(torch.cuda.stream(pieces_stream(self._device)))
                    self._decoder.warm_up(self._max_batch, lambda: self._closing)
                except Exception:  # what cannot be done now is done, or fails, when it is needed
                    log.exception("the codec could not be warmed up")
            while not self._closing:
                try:
                    if self._round():
                        continue
                except Exception as error:  # noqa: BLE001 - told to the streams; the thread lives on
                    self._failed(list(self._streams), error)
                with self._wake:
                    if not self._arrived and not self._closing:
                        # Nobody says when the stream that is waited for is given up.
                        self._wake.wait(RECONSIDER_S if self._holding else None)
        self._take()
        for stream in self._streams:
            stream.ended("stopped", None)
        self._streams.clear()

    def _round(self) -> bool:
        """Decode one batch; False when nothing is ready."""
        self._take()
        ready = self._due()
        if ready:
            self._decode(ready)
        return bool(ready)

    def _take(self) -> None:
        """Move what has arrived to its streams."""
        with self._wake:
            arrived = list(self._arrived)
            self._arrived.clear()
        for stream, codes in arrived:
            if stream.closed:
                continue
            self._streams[stream] = codes is None
            if codes is not None:
                stream.decode.push(codes)

    def _due(self) -> list[SoundStream]:
        """The streams of the next batch; those that are over are forgotten."""
        ready: list[SoundStream] = []
        for stream, ended in list(self._streams.items()):
            if stream.closed:
                del self._streams[stream]
                continue
            if ended and not stream.decode.ready:
                # Not before: the first pieces must not look further ahead only because this thread came to them late.
                stream.decode.finish()
            if stream.decode.ready:
                ready.append(stream)
            elif ended:
                del self._streams[stream]
                stream.finish()
        self._holding = False
        if not ready:
            return []
        views = {stream: stream.view() for stream in self._streams}
        # By hundredths of a second: a session's chunks have one listener, and the earlier of equals comes first.
        first = min(ready, key=lambda stream: int(views[stream][0] * 100))
        if self._together:
            return [stream for stream in ready if stream.decode.shape == first.decode.shape]
        short = any(left < COMFORTABLE_S and waiting < AMPLE_S for left, waiting in views.values())
        self._holding = views[first][0] > AMPLE_S and short
        return [] if self._holding else [first]

    def _decode(self, streams: list[SoundStream]) -> None:
        began = self._clock()
        try:
            sounds = self._decoder.decode_ready([stream.decode for stream in streams])
        except Exception as error:  # noqa: BLE001 - told to these streams; the others go on
            self._failed(streams, error)
            return
        for stream, sound in zip(streams, sounds, strict=True):
            stream.send(sound)
        frames = sum(sound.size for sound in sounds) / self._decoder.hop
        keep = 0.5 ** (frames / (20 * FRAME_RATE))  # twenty seconds of sound ago counts for a half
        self._busy_s = keep * self._busy_s + self._clock() - began
        self._frames = keep * self._frames + frames

    def _failed(self, streams: list[SoundStream], error: Exception) -> None:
        """These streams end with an error; the others go on."""
        if isinstance(error, torch.OutOfMemoryError):
            told: Exception = EngineBusyError(
                "the device's memory is full; close a session or make the context smaller"
            )
        else:
            log.error("the codec failed; its streams end", exc_info=error)
            told = EngineDiedError(f"the engine's codec failed: {type(error).__name__}: {error}")
        told.__cause__ = error
        for stream in streams:
            self._streams.pop(stream, None)
            stream.fail(told)
