"""Streamed equals whole, batched equals alone, and the seams of the first pieces cannot be heard."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers import HiggsAudioV2TokenizerModel

from higgs_voice.codec import Decoder, DecodeStream, StreamSettings
from higgs_voice.codec.layers import Conv, DecoderLayers, Snake, Span, Up
from higgs_voice.codec.stream import pick_dtype
from higgs_voice.errors import SettingsError

HOP = 960
EXACT_FROM = 15 * HOP  # 0.6 s
TOLERANCE = 1e-5


def random_codes(frames: int, seed: int = 0, size: int = 256) -> NDArray[np.int16]:
    return np.random.default_rng(seed).integers(0, size, (8, frames)).astype(np.int16)


def drain(stream: DecodeStream) -> list[NDArray[np.float32]]:
    pieces: list[NDArray[np.float32]] = []
    while stream.ready:
        pieces.append(stream.pull())
        assert pieces[-1].size > 0
    assert stream.pull().size == 0
    return pieces


def streamed(decoder: Decoder, codes: NDArray[np.int16], cuts: list[int]) -> list[NDArray[np.float32]]:
    """Push `codes` in stretches that end at `cuts`, pulling whatever is ready after each."""
    stream = decoder.open()
    pieces: list[NDArray[np.float32]] = []
    for begin, end in zip([0, *cuts], [*cuts, codes.shape[1]], strict=True):
        stream.push(codes[:, begin:end])
        pieces += drain(stream)
    stream.finish()
    pieces += drain(stream)
    assert stream.ended
    return pieces


def transformers_decode(codec: HiggsAudioV2TokenizerModel, codes: NDArray[np.int16]) -> NDArray[np.float32]:
    with torch.inference_mode():
        return codec.decode(torch.from_numpy(codes.astype(np.int64))[None], return_dict=False)[0, 0].numpy()


@pytest.fixture(scope="module")
def tiny(tiny_codec: HiggsAudioV2TokenizerModel) -> Decoder:
    return Decoder(tiny_codec)


@pytest.mark.parametrize("frames", [1, 7, 60, 75])
def test_whole_decoding_is_that_of_transformers(
    decoder: Decoder, codec: HiggsAudioV2TokenizerModel, frames: int
) -> None:
    codes = random_codes(frames)
    whole = decoder.decode(codes)
    assert whole.dtype == np.float32
    assert whole.shape == (frames * HOP,)
    assert np.abs(whole).max() > 0.01
    np.testing.assert_allclose(whole, transformers_decode(codec, codes), atol=TOLERANCE)


def test_streamed_equals_whole_frame_by_frame(decoder: Decoder, speech: list[NDArray[np.int16]]) -> None:
    for codes in speech:
        pieces = streamed(decoder, codes, list(range(1, codes.shape[1])))
        sound, whole = np.concatenate(pieces), decoder.decode(codes)
        assert [piece.size // HOP for piece in pieces] == [2, 3, 4, 6, 8, 12, 12, 13]
        np.testing.assert_allclose(sound[EXACT_FROM:], whole[EXACT_FROM:], atol=TOLERANCE)
        assert np.abs(sound - whole).max() < 0.01


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(frames=st.integers(0, 80), cuts=st.lists(st.integers(0, 80), max_size=12), seed=st.integers(0, 9))
def test_streamed_equals_whole_however_it_is_pushed(tiny: Decoder, frames: int, cuts: list[int], seed: int) -> None:
    codes = random_codes(frames, seed)
    cuts = sorted(min(cut, frames) for cut in cuts)
    sound = np.concatenate([np.zeros(0, np.float32), *streamed(tiny, codes, cuts)])
    whole = tiny.decode(codes)
    assert sound.shape == whole.shape == (frames * HOP,)
    np.testing.assert_allclose(sound[EXACT_FROM:], whole[EXACT_FROM:], atol=TOLERANCE)


@pytest.mark.parametrize("frames", [0, 1, 2, 5, 6])
def test_an_utterance_shorter_than_the_look_ahead_is_exact(decoder: Decoder, frames: int) -> None:
    codes = random_codes(frames)
    pieces = streamed(decoder, codes, list(range(1, frames)))
    assert len(pieces) == (1 if frames else 0)
    sound = np.concatenate([np.zeros(0, np.float32), *pieces])
    assert sound.shape == (frames * HOP,)
    np.testing.assert_allclose(sound, decoder.decode(codes), atol=TOLERANCE)


def test_the_first_piece_comes_after_seven_frames(decoder: Decoder) -> None:
    stream = decoder.open()
    codes = random_codes(7)
    for frame in range(7):
        assert not stream.ready
        stream.push(codes[:, frame : frame + 1])
    assert stream.ready
    assert stream.pull().size == 2 * HOP
    assert (stream.received, stream.decoded, stream.ended) == (7, 2, False)


def test_the_same_codes_give_the_same_sound_whatever_the_pushes(
    decoder: Decoder, speech: list[NDArray[np.int16]]
) -> None:
    """Also before it is exact: a repeated seed repeats the sound."""
    one = np.concatenate(streamed(decoder, speech[0], list(range(1, 60))))
    burst = np.concatenate(streamed(decoder, speech[0], [59]))
    np.testing.assert_allclose(one, burst, atol=TOLERANCE)
    assert np.array_equal(one[: 7 * HOP], burst[: 7 * HOP])


def test_finishing_early_needs_no_look_ahead(decoder: Decoder) -> None:
    stream = decoder.open()
    stream.push(random_codes(25))
    stream.finish()
    stream.finish()
    np.testing.assert_allclose(np.concatenate(drain(stream)), decoder.decode(random_codes(25)), atol=TOLERANCE)


def test_a_long_burst_comes_in_bounded_pieces(tiny: Decoder) -> None:
    codes = random_codes(230)
    stream = tiny.open()
    stream.push(codes)
    pieces = drain(stream)
    stream.finish()
    pieces += drain(stream)
    assert max(piece.size for piece in pieces) <= tiny.settings.max_frames * HOP
    sound, whole = np.concatenate(pieces), tiny.decode(codes)
    np.testing.assert_allclose(sound[EXACT_FROM:], whole[EXACT_FROM:], atol=TOLERANCE)


def test_batched_equals_alone(tiny: Decoder) -> None:
    """Sessions at different places of their utterances, some of them with pieces of equal shape, one with nothing."""
    lengths = [40, 40, 41, 7, 3, 40, 0]
    codes = [random_codes(length, seed) for seed, length in enumerate(lengths)]
    alone, together = [tiny.open() for _ in lengths], [tiny.open() for _ in lengths]
    for stream, twin, each in zip(alone, together, codes, strict=True):
        stream.push(each)
        twin.push(each)
    together[5].finish()
    alone[5].finish()
    rounds = 0
    while any(stream.ready for stream in together):
        rounds += 1
        for stream, sound in zip(alone, tiny.decode_ready(together), strict=True):
            np.testing.assert_allclose(sound, stream.pull(), atol=TOLERANCE)
    assert rounds == 5
    assert not any(stream.ready for stream in alone)
    assert tiny.decode_ready([]) == []


def test_pieces_of_equal_shape_are_one_batch(tiny: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[int] = []
    run = Decoder._run

    def spy(self: Decoder, windows: list[NDArray[np.int64]], samples: Span) -> NDArray[np.float32]:
        batches.append(len(windows))
        return run(self, windows, samples)

    monkeypatch.setattr(Decoder, "_run", spy)
    streams = [tiny.open() for _ in range(4)]
    for stream, frames in zip(streams, (9, 7, 8, 16), strict=True):
        stream.push(random_codes(frames))
    streams[3].pull()
    batches.clear()
    tiny.decode_ready(streams)
    assert sorted(batches) == [1, 3]


def test_after_the_ramp_a_piece_sees_as_far_as_the_decoder(tiny: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """One frame less would be an error too small for float32 to show."""
    pieces: list[tuple[int, int, int]] = []
    run = Decoder._run

    def spy(self: Decoder, windows: list[NDArray[np.int64]], samples: Span) -> NDArray[np.float32]:
        pieces.append((samples.begin // HOP, len(windows[0][0]), samples.end // HOP))
        return run(self, windows, samples)

    monkeypatch.setattr(Decoder, "_run", spy)
    streamed(tiny, random_codes(70), list(range(1, 70)))
    looks = [(before, end - before, frames - end) for before, frames, end in pieces]
    assert looks[:4] == [(0, 2, 5), (2, 3, 5), (5, 4, 6), (9, 6, 7)]
    assert looks[4:] == [(10, 8, 10), (10, 12, 10), (10, 12, 10), (10, 12, 10), (10, 11, 0)]


@pytest.mark.parametrize("which", ["nano", "random"])
def test_seams_stay_below_minus_40_db(
    which: str, decoder: Decoder, random_codec: HiggsAudioV2TokenizerModel, speech: list[NDArray[np.int16]]
) -> None:
    """The error within 5 ms of a seam, against the sound there."""
    if which == "random":
        decoder = Decoder(random_codec)
        utterances = [random_codes(26, seed) for seed in range(2)]
    else:
        utterances = [codes[:, begin : begin + 26] for codes in speech for begin in (0, 20)]
    worst = -np.inf
    for codes in utterances:
        pieces = streamed(decoder, codes, list(range(1, codes.shape[1])))
        sound, whole = np.concatenate(pieces), decoder.decode(codes)
        for seam in np.cumsum([piece.size for piece in pieces[:4]]):
            near = slice(seam - 120, seam + 120)
            error = np.mean((sound[near] - whole[near]) ** 2) / np.mean(whole[near] ** 2)
            worst = max(worst, 10 * np.log10(error + 1e-20))
    assert worst < -40
    assert worst > -100, "the first pieces are exact: the test looks at nothing"


def test_the_reach_is_ten_frames_and_tight(decoder: Decoder, codec: HiggsAudioV2TokenizerModel) -> None:
    """Ten frames away a code is heard, eleven away it is not; measured in transformers' own decoder."""
    assert decoder.reach == 10
    torch.manual_seed(0)
    latents = torch.randn(1, codec.config.acoustic_model_config.hidden_size, 25, requires_grad=True)
    sound = codec.acoustic_decoder(latents)[0, 0]
    (gradient,) = torch.autograd.grad(sound[12 * HOP : 13 * HOP].abs().sum(), latents)
    heard = gradient[0].abs().amax(dim=0).nonzero()[:, 0].tolist()
    assert (heard[0], heard[-1]) == (12 - decoder.reach, 12 + decoder.reach)
    layers = DecoderLayers(codec.acoustic_decoder)
    for first, last in ((0, 0), (0, HOP - 1), (400, 401)):
        (gradient,) = torch.autograd.grad(
            codec.acoustic_decoder(latents)[0, 0][12 * HOP + first : 12 * HOP + last + 1].abs().sum(), latents
        )
        heard = gradient[0].abs().amax(dim=0).nonzero()[:, 0].tolist()
        assert layers.needs(Span(12 * HOP + first, 12 * HOP + last + 1)) == Span(heard[0], heard[-1] + 1)


@pytest.mark.parametrize("span", [(0, 1), (0, 960), (11_111, 11_112), (4321, 9876), (24_000, 24_960), (24_959, 24_960)])
def test_layers_give_any_stretch_of_samples(tiny: Decoder, span: tuple[int, int]) -> None:
    latents = torch.randn(2, 26, 128, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        whole = tiny._layers.run(latents, Span(0, 26 * HOP))
        part = tiny._layers.run(latents, Span(*span))
    torch.testing.assert_close(part, whole[:, slice(*span)], atol=TOLERANCE, rtol=0)


def test_a_batch_in_one_product_for_each_tap_is_each_alone(tiny: Decoder) -> None:
    """As it is on a GPU."""
    generator = torch.Generator().manual_seed(3)
    ups = [layer for layer in tiny._layers.layers if isinstance(layer, Up)]
    assert len(ups) == 5
    for up in ups:
        x = torch.randn(3, 9, up.taps.taps.shape[1], generator=generator)
        with torch.inference_mode():
            together = up.taps._together(x, 9 - (len(up.taps.taps) - 1))
            torch.testing.assert_close(together, up.taps(x), atol=TOLERANCE, rtol=0)


class _Alpha(torch.nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = torch.rand(1, channels, 1) + 0.5


def _at(layer: Conv | Up, x: torch.Tensor, out: Span) -> torch.Tensor:
    """A layer's output [B, n, C] at some positions of an utterance [B, T, C]."""
    have = layer.needs(out).within(x.shape[1])
    return layer.run(x[:, have.begin : have.end], have, out)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("kernel", "stride", "crop"), [(4, 2, 1), (6, 3, 2), (5, 2, 1), (3, 3, 0), (7, 3, 2), (8, 3, 1)]
)
def test_a_transposed_convolution_of_any_shape(kernel: int, stride: int, crop: int, bias: bool) -> None:
    """Also where the kernel is no multiple of the stride."""
    torch.manual_seed(kernel)
    module = torch.nn.ConvTranspose1d(6, 4, kernel, stride, padding=crop, bias=bias)
    snake = Snake(_Alpha(6))
    up, x = Up(module, snake), torch.randn(2, 9, 6)
    with torch.inference_mode():
        whole = module(snake(x).transpose(1, 2)).transpose(1, 2)
        for begin, end in ((0, whole.shape[1]), (0, 1), (7, 8), (5, 16)):
            torch.testing.assert_close(_at(up, x, Span(begin, end)), whole[:, begin:end], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("kernel", "dilation"), [(1, 1), (7, 1), (7, 9), (3, 2)])
def test_a_convolution_of_any_shape(kernel: int, dilation: int) -> None:
    torch.manual_seed(kernel)
    module = torch.nn.Conv1d(6, 4, kernel, dilation=dilation, padding=dilation * (kernel - 1) // 2, bias=kernel != 3)
    conv, x = Conv(module), torch.randn(2, 30, 6)
    with torch.inference_mode():
        whole = module(x.transpose(1, 2)).transpose(1, 2)
        for begin, end in ((0, 30), (0, 1), (14, 15), (3, 30)):
            torch.testing.assert_close(_at(conv, x, Span(begin, end)), whole[:, begin:end], atol=1e-5, rtol=0)


def _db(error: NDArray[np.float32], sound: NDArray[np.float32]) -> float:
    return float(10 * np.log10(np.square(error).mean() / np.square(sound).mean() + 1e-30))


def test_bfloat16_is_fifty_decibels_from_float32(
    codec: HiggsAudioV2TokenizerModel, decoder: Decoder, speech: list[NDArray[np.int16]]
) -> None:
    if not torch.cpu._is_amx_tile_supported():
        with pytest.raises(SettingsError, match="a CPU with AMX only"):
            Decoder(codec, dtype="bfloat16")
        return
    half = Decoder(codec, dtype="bfloat16")
    assert half.fingerprint == decoder.fingerprint
    for codes in speech:
        whole, other = decoder.decode(codes), half.decode(codes)
        assert -80 < _db(other - whole, whole) < -49
        sound = np.concatenate(streamed(half, codes, list(range(1, codes.shape[1]))))
        assert _db((sound - other)[EXACT_FROM:], other[EXACT_FROM:]) < -54
        for seam in (2 * HOP, 5 * HOP, 9 * HOP, 15 * HOP):
            near = slice(seam - 120, seam + 120)
            assert _db((sound - other)[near], other[near]) < -40
    alone, together = half.open(), [half.open() for _ in range(3)]
    for stream in (alone, *together):
        stream.push(speech[0][:, :20])
    expected = alone.pull()
    for sound in half.decode_ready(together):
        np.testing.assert_allclose(sound, expected, atol=TOLERANCE)


def test_what_the_codec_cannot_compute_in_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert pick_dtype("auto", cpu) == pick_dtype(torch.float32, torch.device("cuda")) == torch.float32
    with pytest.raises(SettingsError, match="not in 'float16'"):
        pick_dtype(torch.float16, cpu)
    with pytest.raises(SettingsError, match="AMX only"):
        pick_dtype("bfloat16", torch.device("cuda"))
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    with pytest.raises(SettingsError, match="AMX only"):
        pick_dtype("bfloat16", cpu)


def test_a_part_of_the_whole(tiny: Decoder) -> None:
    codes = random_codes(130)
    whole = tiny.decode(codes)
    for begin, end in ((0, 130), (0, 1), (129, 130), (13, 13), (17, 90)):
        np.testing.assert_allclose(tiny.decode(codes, begin, end), whole[begin * HOP : end * HOP], atol=TOLERANCE)
    with pytest.raises(ValueError, match="frames 5 to 131 do not lie within the 130 frames"):
        tiny.decode(codes, 5, 131)


def test_codes_outside_of_the_codebook_are_clipped(decoder: Decoder) -> None:
    codes = random_codes(12)
    wild = codes.copy()
    codes[:, 0], codes[3, 5] = 255, 0
    wild[:, 0], wild[3, 5] = 1025, -1
    assert np.array_equal(decoder.decode(wild), decoder.decode(codes))
    assert np.array_equal(np.concatenate(streamed(decoder, wild, [])), np.concatenate(streamed(decoder, codes, [])))


@pytest.mark.parametrize("codes", [np.zeros((7, 3), int), np.zeros(8, int), np.zeros((8, 3), np.float32)])
def test_codes_of_another_shape_are_refused(decoder: Decoder, codes: NDArray[np.int64]) -> None:
    with pytest.raises(ValueError, match=r"codes must be integers of shape \[8, n\]"):
        decoder.open().push(codes)


def test_nothing_can_be_pushed_after_the_end(decoder: Decoder) -> None:
    stream = decoder.open()
    stream.finish()
    with pytest.raises(RuntimeError, match="after finish"):
        stream.push(random_codes(1))


def test_what_is_kept_does_not_grow(tiny: Decoder) -> None:
    stream = tiny.open()
    for _ in range(30):
        stream.push(random_codes(10))
        drain(stream)
        assert stream._codes.shape[1] <= 2 * tiny.reach + tiny.settings.frames + 10


def test_the_fingerprint_is_that_of_the_sound(codec: HiggsAudioV2TokenizerModel, decoder: Decoder) -> None:
    assert Decoder(codec).fingerprint == decoder.fingerprint
    assert len(decoder.fingerprint) == 16

    def changed(tensor: torch.Tensor) -> bool:
        with torch.no_grad():
            before = tensor.clone()
            tensor.view(-1)[0] += 0.125
            try:
                return Decoder(codec).fingerprint != decoder.fingerprint
            finally:
                tensor.copy_(before)

    assert changed(codec.quantizer.quantizers[7].codebook.embed)
    assert changed(codec.quantizer.quantizers[0].project_out.bias)
    assert changed(codec.fc2.weight)
    assert changed(codec.acoustic_decoder.conv2.weight)
    # What only the encoder uses does not change what codes sound like.
    assert not changed(codec.acoustic_encoder.conv1.weight)
    assert not changed(codec.quantizer.quantizers[0].project_in.weight)


def test_threads_are_left_as_they_are(codec: HiggsAudioV2TokenizerModel) -> None:
    before = torch.get_num_threads(), torch.get_num_interop_threads(), torch.is_grad_enabled()
    Decoder(codec).decode(random_codes(2))
    assert (torch.get_num_threads(), torch.get_num_interop_threads(), torch.is_grad_enabled()) == before


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"ramp": ((0, 5),)}, "at least one frame"),
        ({"ramp": ((2, -1),)}, "at least one frame"),
        ({"ramp": ((2, 5), (2, 4))}, "must not shrink"),
        ({"frames": 0}, "frames"),
        ({"frames": 60}, "max_frames"),
        ({"pieces": 3}, "no setting 'pieces'"),
    ],
)
def test_impossible_settings_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        StreamSettings(**values)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("handed_over", range(0, 90, 7))
def test_a_stream_goes_on_where_another_one_was(tiny: Decoder, handed_over: int) -> None:
    codes = random_codes(90)
    first = tiny.open()
    first.push(codes[:, :handed_over])
    pieces: list[NDArray[np.float32]] = []
    while first.ready:
        pieces.append(first.pull())
    second = tiny.open(codes[:, :handed_over], first.decoded)
    second.push(codes[:, handed_over:])
    while second.ready:
        pieces.append(second.pull())
    second.finish()
    while second.ready:
        pieces.append(second.pull())
    assert second.ended
    whole = np.concatenate(streamed(tiny, codes, list(range(1, 90))))
    np.testing.assert_allclose(np.concatenate(pieces), whole, atol=TOLERANCE)


def test_sound_that_cannot_have_been_is_refused(tiny: Decoder) -> None:
    with pytest.raises(ValueError, match="sound of 4 frames"):
        tiny.open(random_codes(3), 4)
