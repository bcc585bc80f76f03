"""Pieces by graphs are the pieces without. No GPU here: a graph is a function that is called again on the tensors it was given."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import HiggsAudioV2TokenizerModel

from higgs_voice.backends.decoding import DecodeThread
from higgs_voice.captured import BUCKETS, bucket_of
from higgs_voice.codec import Decoder, StreamSettings
from higgs_voice.codec import graphs as module
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

    def capture(function: Callable[[], torch.Tensor], device: torch.device, memory: Any) -> Any:
        assert memory == ("memory" if graphs else None)
        graphs.append(Recorded(function))
        return graphs[-1], graphs[-1].out, graphs[-1].out.clone()

    monkeypatch.setattr(module, "capture", capture)
    return graphs


def decoder_of(codec: HiggsAudioV2TokenizerModel, *, graphs: bool, **settings: Any) -> Decoder:
    decoder = Decoder(codec, StreamSettings(**settings))
    decoder._pieces.disabled = not graphs
    return decoder


def some_codes(frames: int, seed: int) -> NDArray[np.int16]:
    return np.random.default_rng(seed).integers(0, 256, (8, frames)).astype(np.int16)


def said(decoder: Decoder, lengths: list[int]) -> list[NDArray[np.float32]]:
    """Utterances frame by frame, each beginning three frames after the one before."""
    streams = [decoder.open() for _ in lengths]
    codes = [some_codes(length, seed) for seed, length in enumerate(lengths)]
    sound: list[list[NDArray[np.float32]]] = [[] for _ in lengths]
    for step in range(max(lengths) + 3 * len(lengths) + 1):
        for n, stream in enumerate(streams):
            at = step - 3 * n
            if 0 <= at < lengths[n]:
                stream.push(codes[n][:, at : at + 1])
            elif at == lengths[n]:
                stream.finish()
        if step % 4 == 3 or step > max(lengths):
            while any(stream.ready for stream in streams):
                for pieces, piece in zip(sound, decoder.decode_ready(streams), strict=True):
                    pieces.append(piece)
    assert all(stream.ended for stream in streams)
    return [np.concatenate(pieces) for pieces in sound]


def test_pieces_by_graphs_are_the_pieces_without(
    tiny_codec: HiggsAudioV2TokenizerModel, captured: list[Recorded]
) -> None:
    lengths = [61, 40, 5, 33]
    plain = said(decoder_of(tiny_codec, graphs=False), lengths)
    assert not captured
    decoder = decoder_of(tiny_codec, graphs=True)
    for one, other in zip(plain, said(decoder, lengths), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    assert not decoder._pieces.disabled
    assert len(captured) > 5
    assert max(graph.replays for graph in captured) > 1
    np.testing.assert_allclose(decoder.decode(some_codes(61, 0))[-HOP:], plain[0][-HOP:], atol=1e-5)


def test_only_shapes_that_come_again_are_captured(
    tiny_codec: HiggsAudioV2TokenizerModel, captured: list[Recorded]
) -> None:
    """Endings may be of any length: they would fill the memory with graphs that are used once."""
    decoder = decoder_of(tiny_codec, graphs=True)
    for length in range(1, 6):  # nothing but an ending
        said(decoder, [length])
    assert not captured
    said(decoder, [70])
    assert len(captured) == len(decoder.settings.ramp) + 1
    said(decoder, [70])
    assert len(captured) == len(decoder.settings.ramp) + 1


def test_the_shapes_of_a_stream_are_known_beforehand(tiny_codec: HiggsAudioV2TokenizerModel) -> None:
    """Also with a ramp shorter than the decoder sees."""
    for settings in ({}, {"ramp": ((1, 5),), "frames": 4, "max_frames": 9}, {"ramp": (), "frames": 12}):
        decoder = decoder_of(tiny_codec, graphs=False, **settings)
        shapes = regular(decoder.settings, decoder.reach, HOP)
        for pushed in (1, 7, 60):
            stream = decoder.open()
            for begin in range(0, 180, pushed):
                stream.push(some_codes(180, 0)[:, begin : begin + pushed])
                while (shape := stream.shape) is not None:
                    before, frames, ahead = shape
                    samples = Span(before * HOP, (before + frames) * HOP)
                    assert (before + frames + ahead, samples) in shapes, (settings, shape)
                    stream._advance(frames)


def test_where_nothing_can_be_captured_sound_comes_all_the_same(
    tiny_codec: HiggsAudioV2TokenizerModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plain = said(decoder_of(tiny_codec, graphs=False), [30])[0]

    def fails(*_: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    def differs(function: Callable[[], torch.Tensor], *_: Any) -> Any:
        graph = Recorded(function)
        return graph, graph.out, graph.out + 0.01

    for capture in (fails, differs):
        monkeypatch.setattr(module, "capture", capture)
        decoder = decoder_of(tiny_codec, graphs=True)
        np.testing.assert_allclose(said(decoder, [30])[0], plain, atol=1e-5)
        assert decoder._pieces.disabled
    assert len([record for record in caplog.records if "cannot be captured" in record.message]) == 2


def test_all_shapes_are_captured_before_the_first_stream(
    tiny_codec: HiggsAudioV2TokenizerModel, captured: list[Recorded]
) -> None:
    decoder = decoder_of(tiny_codec, graphs=True, frames=12, max_frames=12)
    decoder.warm_up(3)
    shapes = len(decoder.settings.ramp) + 1
    assert len(captured) == 3 * shapes  # for one, two and four
    said(decoder, [61, 40, 33, 50])
    assert len(captured) == 3 * shapes
    captured.clear()
    asked: list[int] = []
    decoder_of(tiny_codec, graphs=True).warm_up(64, lambda: asked.append(0) is None and len(asked) > 2)
    assert len(captured) == 2
    assert (bucket_of(1), bucket_of(9), bucket_of(BUCKETS[-1] + 1)) == (1, 16, None)


@pytest.mark.parametrize("fails", [False, True])
def test_the_codecs_thread_makes_it_ready_on_its_own_gpu(
    tiny_codec: HiggsAudioV2TokenizerModel, fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On its own stream, before any sound; where that fails, the thread lives on."""
    seen: list[Any] = []
    done = threading.Event()

    class Current:
        def __enter__(self) -> None:
            seen.append("a stream of its own")

        def __exit__(self, *_: object) -> None:
            done.set()

    def warm_up(max_batch: int, should_stop: Callable[[], bool]) -> None:
        seen.append((max_batch, threading.current_thread().name, should_stop()))
        if fails:
            raise RuntimeError("out of memory")

    monkeypatch.setattr(torch.cuda, "set_device", seen.append)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: device)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: Current())
    decoder = Decoder(tiny_codec)
    monkeypatch.setattr(decoder, "warm_up", warm_up)
    thread = DecodeThread(decoder, torch.device("cuda", 1), max_batch=24)
    thread.start()
    thread.shutdown()
    assert done.is_set()
    assert seen == [torch.device("cuda", 1), "a stream of its own", (24, "higgs-voice codec", False)]
