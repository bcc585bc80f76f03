"""Pieces by graphs are the pieces without. No GPU here: a graph is a function that is called again on the tensors it was given."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import HiggsAudioV2TokenizerModel

from higgs_voice import captured as captured_module
from higgs_voice.backends.decoding import DecodeThread, SoundStream
from higgs_voice.captured import BUCKETS, bucket_of
from higgs_voice.codec import Decoder, StreamSettings
from higgs_voice.codec import graphs as module
from higgs_voice.codec.graphs import LARGEST, PRIORITY, TOLERANCE
from higgs_voice.codec.layers import Span
from higgs_voice.codec.stream import regular

HOP = 960


class Recorded:
    """What stands for a CUDA graph."""

    def __init__(self, function: Callable[[], torch.Tensor]) -> None:
        self._function = function
        self.out = function()
        self.replays = 0

    def replay(self) -> None:
        self.out.copy_(self._function())
        self.replays += 1

    def pool(self) -> str:
        return "memory"


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> list[Recorded]:
    """What was captured."""
    graphs: list[Recorded] = []

    def capture(function: Callable[[], torch.Tensor], device: torch.device, memory: Any, priority: int) -> Any:
        assert (memory, priority) == ("memory" if graphs else None, PRIORITY)
        graphs.append(Recorded(function))
        return graphs[-1], graphs[-1].out, graphs[-1].out.clone()

    monkeypatch.setattr(module, "capture", capture)
    return graphs


def decoder_of(codec: HiggsAudioV2TokenizerModel, **settings: Any) -> Decoder:
    return Decoder(codec, StreamSettings(**settings))


def warm(decoder: Decoder, max_batch: int, should_stop: Callable[[], bool] = lambda: False) -> Decoder:
    """As on a GPU."""
    with torch.inference_mode():
        decoder._pieces.warm_up(max_batch, should_stop)
    return decoder


def some_codes(frames: int, seed: int) -> NDArray[np.int16]:
    return np.random.default_rng(seed).integers(0, 256, (8, frames)).astype(np.int16)


def said(decoder: Decoder, lengths: list[int]) -> list[NDArray[np.float32]]:
    """Utterances frame by frame, three of which begin together."""
    streams = [decoder.open() for _ in lengths]
    codes = [some_codes(length, seed) for seed, length in enumerate(lengths)]
    sound: list[list[NDArray[np.float32]]] = [[] for _ in lengths]
    for step in range(max(lengths) + 3 * len(lengths) + 1):
        for n, stream in enumerate(streams):
            at = step - 3 * (n // 3)
            if 0 <= at < lengths[n]:
                stream.push(codes[n][:, at : at + 1])
            elif at == lengths[n]:
                stream.finish()
        while any(stream.ready for stream in streams):
            for pieces, piece in zip(sound, decoder.decode_ready(streams), strict=True):
                pieces.append(piece)
    assert all(stream.ended for stream in streams)
    return [np.concatenate(pieces) for pieces in sound]


def test_pieces_by_graphs_are_the_pieces_without(
    tiny_codec: HiggsAudioV2TokenizerModel, captured: list[Recorded]
) -> None:
    """Alone, together, and beside what pads a batch; all regular ones are by graphs, and no graph is made on the way."""
    lengths = [61, 49, 33, 50]
    decoder = decoder_of(tiny_codec)
    plain = said(decoder, lengths)
    assert not captured
    shapes = len(decoder.settings.ramp) + 1
    warm(decoder, 3)
    assert len(captured) == 3 * shapes  # for four, two and one
    assert [graph.replays for graph in captured] == [1] * len(captured)
    for one, other in zip(plain, said(decoder, lengths), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    assert len(captured) == 3 * shapes
    by_size = [captured[n * shapes : (n + 1) * shapes] for n in range(3)]
    assert all(any(graph.replays > 1 for graph in size) for size in by_size)
    assert all(any(graph.replays > 1 for graph in shape) for shape in zip(*by_size, strict=True))


def test_whole_decoding_is_not_by_the_streams_graphs(
    tiny_codec: HiggsAudioV2TokenizerModel, captured: list[Recorded]
) -> None:
    """Another thread may ask for it at any time."""
    decoder = warm(decoder_of(tiny_codec, ramp=(), frames=50, max_frames=50), 1)
    assert (70, Span(10 * HOP, 60 * HOP)) in decoder._pieces.shapes
    decoder.decode(some_codes(150, 0))  # the middle piece has that very shape
    assert [graph.replays for graph in captured] == [1] * len(captured)


def test_the_shapes_of_a_stream_are_known_beforehand(tiny_codec: HiggsAudioV2TokenizerModel) -> None:
    """Also with a ramp shorter than the decoder sees. Endings may be of any length: they are none of them."""
    for settings in ({}, {"ramp": ((1, 5),), "frames": 4, "max_frames": 9}, {"ramp": (), "frames": 12}):
        decoder = decoder_of(tiny_codec, **settings)
        shapes = regular(decoder.settings, decoder.reach, HOP)
        met = set[Any]()
        stream, codes = decoder.open(), some_codes(120, 0)
        for frame in range(120):
            stream.push(codes[:, frame : frame + 1])
            while (shape := stream.shape) is not None:
                before, frames, ahead = shape
                met.add((before + frames + ahead, Span(before * HOP, (before + frames) * HOP)))
                stream._advance(frames)
        assert met == shapes, settings


def test_where_nothing_can_be_captured_sound_comes_all_the_same(
    tiny_codec: HiggsAudioV2TokenizerModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plain = said(decoder_of(tiny_codec), [30])[0]

    def fails(*_: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    class Deaf(Recorded):
        def replay(self) -> None:
            """It gives what it gave when it was captured."""

    def deaf(function: Callable[[], torch.Tensor], *_: Any) -> Any:
        graph = Deaf(function)
        return graph, graph.out, graph.out.clone()

    made: list[Recorded] = []

    def fails_later(function: Callable[[], torch.Tensor], *_: Any) -> Any:
        if len(made) == 2:
            raise RuntimeError("operation not permitted when stream is capturing")
        made.append(Recorded(function))
        return made[-1], made[-1].out, made[-1].out.clone()

    for capture in (fails, deaf, fails_later):
        monkeypatch.setattr(module, "capture", capture)
        decoder = warm(decoder_of(tiny_codec), 2)
        np.testing.assert_allclose(said(decoder, [30])[0], plain, atol=1e-5)
        assert not decoder._pieces._graphs
    assert len([record for record in caplog.records if "cannot be captured" in record.message]) == 3


def test_the_largest_is_captured_first_and_left_out_where_memory_ends(
    tiny_codec: HiggsAudioV2TokenizerModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those after it find room in its memory; a graph that has none does not cost the others."""
    sizes: list[tuple[int, int]] = []

    def capture(function: Callable[[], torch.Tensor], *_: Any) -> Any:
        sizes.append(tuple(function().shape))
        if sizes[-1][0] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        graph = Recorded(function)
        return graph, graph.out, graph.out.clone()

    monkeypatch.setattr(module, "capture", capture)
    decoder = warm(decoder_of(tiny_codec), 4)
    shapes = len(decoder.settings.ramp) + 1
    assert [size for size, _ in sizes[::shapes]] == [4, 2, 1]
    assert sizes[0][1] == 12 * HOP
    assert len(decoder._pieces._graphs) == 2 * shapes
    plain = said(decoder_of(tiny_codec), [40, 40, 40])
    for one, other in zip(plain, said(decoder, [40, 40, 40]), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_other_kernels_are_not_other_sound(
    tiny_codec: HiggsAudioV2TokenizerModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TF32 differs by some 1e-4 from float32, and may be what only one of the two was given."""

    class Near(Recorded):
        def replay(self) -> None:
            super().replay()
            self.out += 2e-4

    def capture(function: Callable[[], torch.Tensor], *_: Any) -> Any:
        graph = Near(function)
        return graph, graph.out, graph.out.clone()

    monkeypatch.setattr(module, "capture", capture)
    decoder = warm(decoder_of(tiny_codec), 1)
    assert len(decoder._pieces._graphs) == len(decoder.settings.ramp) + 1
    plain = said(decoder_of(tiny_codec), [30])[0]
    assert 1e-4 < np.abs(said(decoder, [30])[0] - plain).max() < TOLERANCE < np.abs(plain).max() / 20


def test_how_much_is_captured(tiny_codec: HiggsAudioV2TokenizerModel, captured: list[Recorded]) -> None:
    shapes = len(StreamSettings().ramp) + 1
    asked: list[int] = []
    warm(decoder_of(tiny_codec), 64, lambda: asked.append(0) is None and len(asked) > 2)
    assert [len(graph.out) for graph in captured] == [LARGEST] * 2  # it was told to stop before the third
    captured.clear()
    warm(decoder_of(tiny_codec), 2)
    assert [len(graph.out) for graph in captured] == [2] * shapes + [1] * shapes
    decoder_of(tiny_codec).warm_up(2)  # on a CPU
    assert len(captured) == 2 * shapes
    assert (bucket_of(1), bucket_of(2), bucket_of(9), bucket_of(BUCKETS[-1] + 1)) == (1, 2, 16, None)


@pytest.mark.parametrize("fails", [False, True])
def test_the_codecs_thread_makes_it_ready_on_its_own_gpu(
    tiny_codec: HiggsAudioV2TokenizerModel, fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a stream of its own, before any sound; where that fails, the thread lives on."""
    seen: list[Any] = []

    class Current:
        def __enter__(self) -> None:
            seen.append("entered")

        def __exit__(self, *_: object) -> None:
            seen.append("left")

    def warm_up(max_batch: int, should_stop: Callable[[], bool]) -> None:
        seen.append((max_batch, threading.current_thread().name, should_stop()))
        if fails:
            raise RuntimeError("out of memory")

    monkeypatch.setattr(captured_module, "_streams", {})
    monkeypatch.setattr(torch.cuda, "set_device", seen.append)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device, priority: seen.append(priority))
    monkeypatch.setattr(torch.cuda, "stream", lambda _: Current())
    decoder = Decoder(tiny_codec)
    monkeypatch.setattr(decoder, "warm_up", warm_up)
    thread = DecodeThread(decoder, torch.device("cuda", 1), max_batch=24)
    thread.start()
    ended = threading.Event()

    class Listener:
        closed, decode, finish = False, decoder.open(), staticmethod(ended.set)

    thread.end(cast(SoundStream, Listener()))
    assert ended.wait(30.0)
    thread.shutdown()
    device = torch.device("cuda", 1)
    assert seen == [device, -1, "entered", (24, "higgs-voice codec", False), "left"]


def test_a_capture_leaves_the_thread_on_its_stream_and_others_in_peace(monkeypatch: pytest.MonkeyPatch) -> None:
    """One at a time, on one stream for each GPU and priority, in the mode in which other threads may go on; also where it fails."""
    current: list[Any] = ["the thread's own"]
    calls: list[Any] = []

    class Stream:
        def __init__(self, device: Any, priority: int = 0) -> None:
            self.device = device
            self.priority = priority

        def wait_stream(self, other: Any) -> None:
            pass

    class Own(Stream):
        pass

    own = Own("cuda:0")
    current[0] = own

    class On:
        def __init__(self, stream: Any) -> None:
            self.stream = stream

        def __enter__(self) -> None:
            self.before, current[0] = current[0], self.stream

        def __exit__(self, *_: object) -> None:
            current[0] = self.before

    class Graph:
        def replay(self) -> None:
            calls.append("replayed")

    class Capturing:
        def __init__(self, graph: Any, pool: Any, stream: Any, capture_error_mode: str) -> None:
            assert captured_module._one_at_a_time.locked()
            calls.append((pool, stream.device, stream.priority, capture_error_mode))
            self.stream = stream

        def __enter__(self) -> None:
            current[0] = self.stream

        def __exit__(self, *_: object) -> None:
            if calls[0][0] == "fails":
                raise RuntimeError(
                    "the capture was invalidated"
                )  # and the thread is still on the stream of the capture
            current[0] = own

    monkeypatch.setattr(captured_module, "_streams", {})
    for name, value in {
        "current_stream": lambda device: current[0],
        "set_stream": lambda stream: current.__setitem__(0, stream),
        "Stream": Stream,
        "stream": On,
        "synchronize": lambda device: None,
        "CUDAGraph": Graph,
        "graph": Capturing,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    one, two = torch.device("cuda", 0), torch.device("cuda", 1)
    _, out, expected = captured_module.capture(lambda: torch.ones(2), one, "pool")
    assert torch.equal(out, expected)
    assert current[0] is own
    captured_module.capture(lambda: torch.ones(2), one)
    captured_module.capture(lambda: torch.ones(2), two)
    captured_module.capture(lambda: torch.ones(2), two, None, -1)
    assert calls == [
        ("pool", one, 0, "thread_local"),
        "replayed",
        (None, one, 0, "thread_local"),
        "replayed",
        (None, two, 0, "thread_local"),
        "replayed",
        (None, two, -1, "thread_local"),
        "replayed",
    ]
    assert len(captured_module._streams) == 3
    assert captured_module.stream_of(two, "codec", -1) is captured_module.stream_of(two, "codec", -1)
    assert len(set(captured_module._streams.values())) == 4
    calls.clear()
    with pytest.raises(RuntimeError, match="invalidated"):
        captured_module.capture(lambda: torch.ones(2), one, "fails")
    assert current[0] is own
    assert not captured_module._one_at_a_time.locked()
