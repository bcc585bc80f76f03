"""The codec's thread: what it gives is what a stream gives alone, in whatever company, and nothing of it is left behind."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from higgs_voice.backends.decoding import DecodeThread
from higgs_voice.codec import Decoder
from higgs_voice.errors import EngineDiedError
from higgs_voice.model.loading import load

WAIT_S = 30


class Listener:
    """A stream that keeps what it hears."""

    def __init__(self, decoder: Decoder, buffered_s: float = 0.0, waiting_s: float = 0.0) -> None:
        self.decode = decoder.open()
        self.closed = False
        self.buffered_s, self.waiting_s = buffered_s, waiting_s
        self.heard: list[NDArray[np.float32]] = []
        self.endings: list[Any] = []
        self.over = threading.Event()
        self.on_sound: Callable[[], None] = lambda: None

    def view(self) -> tuple[float, float]:
        return self.buffered_s, self.waiting_s

    def send(self, samples: NDArray[np.float32]) -> None:
        self.heard.append(samples)
        self.on_sound()

    def finish(self) -> None:
        self._over("finished")

    def fail(self, error: Exception) -> None:
        self.closed = True
        self._over(error)

    def ended(self, reason: str, error: Exception | None) -> None:
        self._over(reason)

    def _over(self, ending: Any) -> None:
        self.endings.append(ending)
        self.over.set()

    @property
    def sound(self) -> NDArray[np.float32]:
        return np.concatenate(self.heard) if self.heard else np.zeros(0, np.float32)


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return Decoder(load("nano", device="cpu", dtype="float32").codec)


@pytest.fixture(params=[pytest.param(False, id="one by one"), pytest.param(True, id="together")])
def codec(decoder: Decoder, request: pytest.FixtureRequest) -> Iterator[DecodeThread]:
    thread = DecodeThread(decoder, torch.device("cpu"), together=request.param)
    thread.start()
    yield thread
    thread.shutdown()
    assert not any(thread.name == "higgs-voice codec" for thread in threading.enumerate())


def some_codes(frames: int, seed: int = 0) -> NDArray[np.int16]:
    return np.random.default_rng(seed).integers(0, 256, (8, frames)).astype(np.int16)


def piece_by_piece(decoder: Decoder, codes: NDArray[np.int16]) -> NDArray[np.float32]:
    """The sound of codes that arrive one by one and are decoded as soon as can be."""
    stream, pieces = decoder.open(), list[NDArray[np.float32]]()
    for frame in range(codes.shape[1]):
        stream.push(codes[:, frame : frame + 1])
        while stream.ready:
            pieces.append(stream.pull())
    stream.finish()
    while stream.ready:
        pieces.append(stream.pull())
    return np.concatenate(pieces)


def held(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event, list[list[Any]]]:
    """The decoder waits at each batch until the first event is set, and says by the second that it does; what it decoded."""
    go, waits, batches = threading.Event(), threading.Event(), list[list[Any]]()
    decode_ready = decoder.decode_ready

    def slow(streams: Any) -> Any:
        waits.set()
        assert go.wait(WAIT_S)
        batches.append(list(streams))
        return decode_ready(streams)

    monkeypatch.setattr(decoder, "decode_ready", slow)
    return go, waits, batches


def test_streams_together_sound_as_each_does_alone(decoder: Decoder, codec: DecodeThread) -> None:
    streams = [Listener(decoder) for _ in range(3)]
    codes = [some_codes(frames, seed) for seed, frames in enumerate((61, 40, 5))]
    at = [0, 0, 0]
    while any(at[n] < codes[n].shape[1] for n in range(3)):
        for n, step in enumerate((1, 7, 2)):
            if at[n] < codes[n].shape[1]:
                codec.push(streams[n], codes[n][:, at[n] : at[n] + step])
                at[n] += step
    for stream in streams:
        codec.end(stream)
    for stream, each in zip(streams, codes, strict=True):
        assert stream.over.wait(WAIT_S)
        assert stream.endings == ["finished"]
        np.testing.assert_allclose(stream.sound, piece_by_piece(decoder, each), atol=1e-5)


def test_who_runs_dry_comes_first_and_equal_pieces_go_together(
    decoder: Decoder, codec: DecodeThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, waits, batches = held(decoder, monkeypatch)
    first, calm, urgent, third = (
        Listener(decoder),
        Listener(decoder, 2.0),
        Listener(decoder, 0.1),
        Listener(decoder, 0.5),
    )
    for stream in (first, urgent):  # or `calm` would wait for what they have next
        stream.on_sound = lambda stream=stream: setattr(stream, "buffered_s", 0.5)
    codec.push(first, some_codes(7))
    assert waits.wait(WAIT_S)
    codec.push(calm, some_codes(3))
    codec.end(calm)
    codec.push(third, some_codes(7))
    codec.push(urgent, some_codes(7))
    go.set()
    assert calm.over.wait(WAIT_S)
    if codec._together:
        assert batches == [[first.decode], [third.decode, urgent.decode], [calm.decode]]
    else:
        assert batches == [[first.decode], [urgent.decode], [third.decode], [calm.decode]]


def test_of_two_chunks_of_one_listener_the_earlier_comes_first(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, waits, batches = held(decoder, monkeypatch)
    codec = DecodeThread(decoder, torch.device("cpu"))
    codec.start()
    left = iter(range(1000))  # less at every look, as by a clock
    first, second = Listener(decoder), Listener(decoder)
    for stream in (first, second):
        stream.view = lambda: (0.501 - 1e-6 * next(left), 0.0)
    try:
        codec.push(first, some_codes(7))
        assert waits.wait(WAIT_S)
        codec.push(first, some_codes(5))
        codec.push(second, some_codes(7))
        codec.end(second)
        go.set()
        assert second.over.wait(WAIT_S)
    finally:
        codec.shutdown()
    assert batches[:3] == [[first.decode], [first.decode], [second.decode]]


@pytest.mark.parametrize("why", ["it has sound", "it is given up", "nobody takes it"])
def test_who_has_ample_sound_waits_for_a_stream_with_little(decoder: Decoder, why: str) -> None:
    codec = DecodeThread(decoder, torch.device("cpu"))
    codec.start()
    short, rich = Listener(decoder, 0.1), Listener(decoder, 2.0)
    heard, order = threading.Event(), list[str]()
    short.on_sound = lambda: order.append("short")
    rich.on_sound = lambda: (order.append("rich"), heard.set())
    try:
        codec.push(short, some_codes(6))  # one frame less than its first piece takes
        codec.push(rich, some_codes(7))
        assert not heard.wait(0.3)
        if why == "it has sound":
            codec.push(short, some_codes(1))
            short.buffered_s = 0.5
        elif why == "it is given up":
            short.closed = True
        else:
            short.waiting_s = 5.0
        assert heard.wait(WAIT_S)
        assert order == (["short", "rich"] if why == "it has sound" else ["rich"])
    finally:
        codec.shutdown()


def test_where_equal_pieces_are_decoded_together(decoder: Decoder) -> None:
    assert not DecodeThread(decoder, torch.device("cpu"))._together
    assert DecodeThread(decoder, torch.device("cuda"))._together


def test_of_a_closed_stream_nothing_more_is_decoded(
    decoder: Decoder, codec: DecodeThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, waits, batches = held(decoder, monkeypatch)
    left, other = Listener(decoder), Listener(decoder)
    codec.push(left, some_codes(60))
    assert waits.wait(WAIT_S)
    left.closed = True
    codec.push(other, some_codes(9))
    codec.end(other)
    go.set()
    assert other.over.wait(WAIT_S)
    assert sum(left.decode in batch for batch in batches) == 1  # the piece that had begun


def test_a_failing_codec_ends_its_streams_and_speaks_on(
    decoder: Decoder, codec: DecodeThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:

        def broken(_: Any) -> Any:
            raise RuntimeError("an illegal memory access was encountered")

        patch.setattr(decoder, "decode_ready", broken)
        lost = Listener(decoder)
        codec.push(lost, some_codes(9))
        assert lost.over.wait(WAIT_S)
    assert isinstance(lost.endings[0], EngineDiedError)
    assert "illegal memory access" in str(lost.endings[0])
    stream = Listener(decoder)
    codec.push(stream, some_codes(9))
    codec.end(stream)
    assert stream.over.wait(WAIT_S)
    assert len(stream.sound) == 9 * decoder.hop


def test_a_shutdown_ends_every_stream(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    go, waits, batches = held(decoder, monkeypatch)
    codec = DecodeThread(decoder, torch.device("cpu"))
    codec.start()
    decoding, queued = Listener(decoder), Listener(decoder)
    codec.push(decoding, some_codes(30))
    assert waits.wait(WAIT_S)
    codec.push(queued, some_codes(9))
    codec.end(queued)
    closing = threading.Thread(target=codec.shutdown)
    closing.start()
    while not codec._closing:
        pass
    go.set()
    closing.join(WAIT_S)
    assert decoding.endings == queued.endings == ["stopped"]
    assert len(batches) == 1


def test_it_learns_what_a_frame_costs(decoder: Decoder, codec: DecodeThread) -> None:
    assert codec.capacity is None
    stream = Listener(decoder)
    codec.push(stream, some_codes(120))
    codec.end(stream)
    assert stream.over.wait(WAIT_S)
    assert codec.frame_s > 0
    assert codec.capacity == pytest.approx(0.9 / 25 / codec.frame_s)
