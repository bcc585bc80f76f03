"""Streaming decode that equals decoding everything at once.

The decoder is a stack of convolutions, so a sample depends on a bounded number of frames on either side of its own: its
reach. A piece of an utterance that is decoded with that many frames of context on both sides is, sample for sample, what
decoding the whole gives. The first pieces look ahead less, so that sound begins early: they are decoded as if the
utterance ended with what is there. What that costs is largest at a piece's end, where the next piece goes on with more
look-ahead: with 5 frames it is below -40 dB there, with 10 it is nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Self, cast

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import nn
from torch.nn import functional as F
from transformers import HiggsAudioV2TokenizerModel

from ..config import Settings
from ..errors import SettingsError
from .graphs import GraphedPieces, Shape
from .layers import DecoderLayers, Span

Samples = NDArray[np.float32]


class StreamSettings(Settings):
    """When a stream gives its pieces."""

    ramp: tuple[tuple[int, int], ...] = ((2, 5), (3, 5), (4, 6), (6, 7), (8, 10))
    """(frames, look-ahead) of the first pieces, in frames. The look-ahead may not shrink."""
    frames: int = Field(default=12, ge=1)
    """Frames of a piece after the ramp, which looks ahead as far as the decoder sees; when more are there, a piece takes a
    multiple of it."""
    max_frames: int = Field(default=50, ge=1)
    """Frames a piece takes at most, so that one stream does not hold up the others."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if any(frames < 1 or ahead < 0 for frames, ahead in self.ramp):
            raise ValueError("every piece of the ramp needs at least one frame and a look-ahead of zero or more")
        if any(after < before for (_, before), (_, after) in zip(self.ramp, self.ramp[1:], strict=False)):
            raise ValueError("the look-ahead of the ramp must not shrink")
        if self.max_frames < self.frames:
            raise ValueError(f"max_frames ({self.max_frames}) must not be below frames ({self.frames})")
        return self


def regular(settings: StreamSettings, reach: int, hop: int) -> set[Shape]:
    """The shapes of the pieces of an utterance that is decoded as it comes, but for its last ones, which may be of any length."""
    shapes: set[Shape] = set()
    done = 0
    ramp = [(frames, min(ahead, reach)) for frames, ahead in settings.ramp]
    while ramp or done < reach:
        frames, ahead = ramp.pop(0) if ramp else (settings.frames, reach)
        before = min(done, reach)
        shapes.add((before + frames + ahead, Span(before * hop, (before + frames) * hop)))
        done += frames
    shapes.add((2 * reach + settings.frames, Span(reach * hop, (reach + settings.frames) * hop)))
    return shapes


class DecodeStream:
    """The state of one utterance being decoded: its last frames, and how far the sound has come."""

    def __init__(self, decoder: Decoder, codes: NDArray[np.int64], done: int) -> None:
        self._decoder = decoder
        self._codes = codes  # [K, T] from frame `_first` on
        self._first = 0
        self._received = codes.shape[1]
        self._done = 0
        self._finished = False
        self._advance(done)

    @property
    def received(self) -> int:
        """Frames pushed."""
        return self._received

    @property
    def decoded(self) -> int:
        """Frames whose sound has been pulled."""
        return self._done

    @property
    def ended(self) -> bool:
        """Whether it is finished and all of its sound has been pulled."""
        return self._finished and self._done == self._received

    def push(self, frames: NDArray[np.integer]) -> None:
        """Append codes [K, n]. Codes outside of the codebook (BOS and EOS rows) are clipped to it."""
        if self._finished:
            raise RuntimeError("frames were pushed to a DecodeStream after finish()")
        codes = self._decoder.check(frames)
        self._codes = np.concatenate([self._codes, codes], axis=1)
        self._received += codes.shape[1]

    def finish(self) -> None:
        """No more frames: the rest needs no look-ahead any more; idempotent."""
        self._finished = True

    @property
    def ready(self) -> bool:
        """Whether `pull` would give sound."""
        return self._plan() is not None

    @property
    def shape(self) -> tuple[int, int, int] | None:
        """Of the next piece: frames before it, of it, and behind it that are looked at; None when nothing is ready. Pieces of
        one shape are decoded in one batch."""
        plan = self._plan()
        return (min(self._done, self._decoder.reach), *plan) if plan is not None else None

    def pull(self) -> Samples:
        """The next samples [n], float32; empty when nothing is ready. Repeat while `ready`."""
        return self._decoder.decode_ready([self])[0]

    def _plan(self) -> tuple[int, int] | None:
        """The next piece: (its frames, frames after it that are looked at)."""
        settings, reach = self._decoder.settings, self._decoder.reach
        left = self._received - self._done
        if self._finished:
            if left == 0:
                return None
            frames = min(left, settings.max_frames)
            return frames, min(reach, left - frames)
        start = 0
        for frames, ahead in settings.ramp:
            # By position alone, whatever else is there: the same codes give the same samples, however they were pushed.
            if self._done < start + frames:
                return (frames, min(ahead, reach)) if left >= frames + min(ahead, reach) else None
            start += frames
        frames = min(left - reach, settings.max_frames) // settings.frames * settings.frames
        return (frames, reach) if frames > 0 else None

    def _window(self, frames: int, ahead: int) -> tuple[NDArray[np.int64], int]:
        """Codes of a piece with its context, [K, n], and how many frames of context stand before the piece."""
        before = min(self._done, self._decoder.reach)
        begin = self._done - before - self._first
        return self._codes[:, begin : begin + before + frames + ahead], before

    def _advance(self, frames: int) -> None:
        self._done += frames
        drop = max(0, self._done - self._decoder.reach - self._first)
        self._codes = self._codes[:, drop:]
        self._first += drop


class Decoder:
    """The codec's decoder, for any number of streams; one thread drives the streams, and any thread may `decode`."""

    def __init__(
        self,
        codec: HiggsAudioV2TokenizerModel,
        settings: StreamSettings | None = None,
        *,
        dtype: torch.dtype | str = torch.float32,
    ) -> None:
        """The weights are taken as they are: on the codec's device, in float32 for equality to 1e-5; to 1e-3 on a GPU, where
        convolutions multiply in TF32 unless ``torch.backends.cudnn.allow_tf32`` is off. ``dtype``: see `pick_dtype`."""
        self.dtype = pick_dtype(dtype, codec.device)
        self.settings = settings or StreamSettings()
        self.num_codebooks = int(codec.config.num_quantizers)
        self.codebook_size = int(codec.config.codebook_size)
        self.hop = int(codec.config.hop_length)
        """Samples a frame."""
        self._layers = DecoderLayers(codec.acoustic_decoder, self.dtype)
        self._table = _codebooks(codec)
        rows = torch.arange(self.num_codebooks, device=self._table.device)[:, None] * self.codebook_size  # [K, 1]
        # Not a method: what is captured would refer to this and this to it, and memory go when the collector comes by.
        self._sound = partial(_sound, self._layers, self._table, rows, codec.fc2.bias.detach())
        self.reach = self._layers.reach
        """Frames on either side that a sample depends on."""
        self.fingerprint = fingerprint(codec)
        device = self._table.device
        shapes = regular(self.settings, self.reach, self.hop)
        self._pieces = GraphedPieces(self._sound, shapes, self.num_codebooks, device)

    def warm_up(self, max_batch: int, should_stop: Callable[[], bool] = lambda: False) -> None:
        """On a GPU, capture what pieces of streams take, for batches up to this size; on the thread and the stream that decode.
        ``should_stop`` is asked before each. Nothing to do on a CPU."""
        if self._table.device.type == "cuda":
            with torch.inference_mode():
                self._pieces.warm_up(max_batch, should_stop)

    def check(self, frames: NDArray[np.integer]) -> NDArray[np.int64]:
        """Codes [K, n] as int64, clipped to the codebook."""
        codes = np.asarray(frames)
        if codes.ndim != 2 or codes.shape[0] != self.num_codebooks or not np.issubdtype(codes.dtype, np.integer):
            raise ValueError(
                f"codes must be integers of shape [{self.num_codebooks}, n], not {codes.dtype} {list(codes.shape)}"
            )
        return np.clip(codes, 0, self.codebook_size - 1).astype(np.int64)

    def decode(self, codes: NDArray[np.integer], begin: int = 0, end: int | None = None) -> Samples:
        """Decode codes [K, T] whole: float32 [T * hop]. Codes outside of the codebook are clipped to it.

        With `begin` and `end`, only the sound of those frames of the whole: float32 [(end - begin) * hop].
        """
        checked = self.check(codes)
        total = checked.shape[1]
        last = total if end is None else end
        if not 0 <= begin <= last <= total:
            raise ValueError(f"frames {begin} to {last} do not lie within the {total} frames given")
        sound = np.empty((last - begin) * self.hop, dtype=np.float32)
        for start in range(begin, last, self.settings.max_frames):  # pieces bound the memory
            stop = min(start + self.settings.max_frames, last)
            first = max(0, start - self.reach)
            samples = Span((start - first) * self.hop, (stop - first) * self.hop)
            # Not by graphs, whose tensors are the streams': another thread may ask for this.
            with torch.inference_mode():
                window = torch.from_numpy(checked[None, :, first : stop + self.reach]).to(self._table.device)
                piece = self._sound(window, samples)[0].cpu().numpy()
            sound[(start - begin) * self.hop : (stop - begin) * self.hop] = piece
        return sound

    def open(self, codes: NDArray[np.integer] | None = None, done: int = 0) -> DecodeStream:
        """A stream for one utterance; its first and last samples are those of the utterance decoded alone.

        With ``codes`` [K, n], what was pushed before, to another one; ``done``: frames whose sound was pulled there.
        """
        begun = self.check(codes) if codes is not None else np.zeros((self.num_codebooks, 0), dtype=np.int64)
        if not 0 <= done <= begun.shape[1]:
            raise ValueError(f"sound of {done} frames cannot have come from {begun.shape[1]}")
        return DecodeStream(self, begun, done)

    def decode_ready(self, streams: Sequence[DecodeStream]) -> list[Samples]:
        """The next piece of every stream (empty where nothing is ready), pieces of equal shape in one batch."""
        out = [np.zeros(0, dtype=np.float32) for _ in streams]
        groups: dict[tuple[int, int, int], list[tuple[int, NDArray[np.int64]]]] = {}
        for place, stream in enumerate(streams):
            plan = stream._plan()  # pyright: ignore[reportPrivateUsage]
            if plan is not None:
                window, before = stream._window(*plan)  # pyright: ignore[reportPrivateUsage]
                key = (window.shape[1], before * self.hop, (before + plan[0]) * self.hop)
                groups.setdefault(key, []).append((place, window))
        for (_, begin, end), group in groups.items():
            sounds = self._run([window for _, window in group], Span(begin, end))
            for (place, _), sound in zip(group, sounds, strict=True):
                out[place] = sound
                streams[place]._advance((end - begin) // self.hop)  # pyright: ignore[reportPrivateUsage]
        return out

    def _run(self, windows: Sequence[NDArray[np.int64]], samples: Span) -> Samples:
        """`samples` of windows of codes [B][K, n], each a stream of its own: [B, samples]."""
        with torch.inference_mode():
            return self._pieces(np.stack(windows), samples).to("cpu", copy=True).numpy()


def _sound(
    layers: DecoderLayers,
    table: torch.Tensor,
    rows: torch.Tensor,
    bias: torch.Tensor,
    codes: torch.Tensor,
    samples: Span,
) -> torch.Tensor:
    """`samples` of codes [B, K, n] on the device: float32 [B, samples], there too. ``table``: see `_codebooks`; ``rows`` [K, 1] where in
    it each codebook begins."""
    latents = F.embedding(codes + rows, table).sum(dim=1) + bias  # [B, n, C]
    return layers.run(latents, samples).float()


def pick_dtype(dtype: torch.dtype | str, device: torch.device) -> torch.dtype:
    """In what the decoder multiplies: float32; bfloat16, on a CPU that has matrix tiles for it (AMX); ``auto`` is float32.

    On a GPU float32 is TF32 where torch is set so, see `Decoder`. bfloat16 is quicker, and the sound differs from float32's by an error about 50 dB below it. Errors: `SettingsError`.
    """
    name = str(dtype).removeprefix("torch.")
    if name in ("auto", "float32"):
        return torch.float32
    if name != "bfloat16":
        raise SettingsError(f"the codec computes in float32 or bfloat16, not in {name!r}")
    if device.type != "cpu" or not torch.cpu._is_amx_tile_supported() or not torch.backends.mkldnn.is_available():  # pyright: ignore[reportPrivateUsage]
        raise SettingsError(
            "the codec computes in bfloat16 on a CPU with AMX only; this engine's device has none: use float32"
        )
    return torch.bfloat16


def _codebooks(codec: HiggsAudioV2TokenizerModel) -> torch.Tensor:
    """What each code of each codebook adds to a frame's latent, [K * codebook size, C].

    The quantizer adds up one projected vector a codebook and `fc2` is linear, so both can be applied to the codebooks once.
    """
    added: list[torch.Tensor] = []
    with torch.no_grad():
        for each in codec.quantizer.quantizers:
            embed = cast(torch.Tensor, cast(nn.Module, each.codebook).embed)  # [codebook size, codebook dimension]
            added.append(F.linear(cast(nn.Linear, each.project_out)(embed), codec.fc2.weight))
    return torch.cat(added)


def fingerprint(codec: HiggsAudioV2TokenizerModel) -> str:
    """A short hash of the weights that turn codes into sound: equal for codecs whose codes mean the same sound."""
    digest = hashlib.sha256()
    for module in (codec.quantizer, codec.fc2, codec.acoustic_decoder):
        for name, tensor in sorted(module.state_dict().items()):
            if name.endswith(("cluster_size", "embed_avg", "inited")) or "project_in" in name:
                continue  # bookkeeping of the training, and the encoder's side
            digest.update(f"{name} {list(tensor.shape)}".encode())
            digest.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
