"""The codec's decoder, evaluated for a stretch of samples and no more.

Decoding a window and throwing its margins away spends most of its time on margins. Here the layers are walked from the
waveform back to the frames first, to see which positions each of them has to give; then forward, each giving just those.
Near the waveform, where a layer sees little beyond its own position, next to nothing is computed twice. The arithmetic is that
of transformers' `DacDecoder` (with the output padding and without the tanh, as the Higgs codec has it), layer by layer.

Tensors are [B, positions, C]. On a CPU the channels of a position stand side by side, so that a convolution is a few matrix
products over rows where they are: nothing is unfolded, and no weight is rearranged at a call. On a GPU cuDNN convolves.
In bfloat16, which is for processors with matrix tiles (AMX), the products of the wide layers are taken in bfloat16 and summed
in float32; what is added up along the layers stays in float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import nn
from torch.nn import functional as F

WIDE = 128
"""Input channels from which a layer is computed in bfloat16, where that is asked for. Narrower ones too would take the error
against float32 from -50 to -48 dB."""


@dataclass(frozen=True, slots=True)
class Span:
    """Positions begin … end - 1 of one layer's output, counted from the start of the utterance."""

    begin: int
    end: int

    def within(self, length: int) -> Span:
        """The part that lies in an utterance of `length`."""
        return Span(max(0, self.begin), min(length, self.end))


class Layer(Protocol):
    """One step of the decoder on tensors [B, positions, C]."""

    rate: int
    """Positions of the output for one of the input."""

    def needs(self, out: Span) -> Span:
        """Input positions that `out` depends on; they may lie outside of the utterance."""
        ...

    def run(self, x: torch.Tensor, have: Span, out: Span) -> torch.Tensor:
        """The output at `out` from the input at `have`, which is `needs(out)` within the utterance."""
        ...


class Snake:
    """x + sin²(αx) / α, with an α for each channel."""

    def __init__(self, module: nn.Module) -> None:
        self.alpha = cast(torch.Tensor, module.alpha).detach().view(-1)  # [C]
        self.scale = (self.alpha + 1e-9).reciprocal()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        wave = (x * self.alpha).sin_()
        return torch.addcmul(x, wave.mul_(wave), self.scale)


class Taps:
    """y[t] = bias + sum over k of x[t + k * dilation] @ taps[k], for x [B, positions, C in] and taps [kernel, C in, C out].

    In bfloat16, on a CPU, the weights are laid out once for oneDNN, whose convolution takes them as they are.
    """

    def __init__(self, taps: torch.Tensor, bias: torch.Tensor, dilation: int, dtype: torch.dtype) -> None:
        self.taps, self.bias, self.dilation = taps.contiguous(), bias, dilation
        self._where = ([0, 0], [1, 1], [1, dilation], 1)  # padding, stride, dilation, groups
        self._packed: torch.Tensor | None = None
        if dtype == torch.bfloat16 and taps.shape[1] >= WIDE:
            weight = taps.permute(2, 1, 0)[:, :, None].to(dtype).contiguous()  # [C out, C in, 1, kernel]
            likely = [1, taps.shape[1], 1, 256]
            self._packed = torch.ops.mkldnn._reorder_convolution_weight(weight, *self._where, likely)
            self._bias = bias.to(dtype)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self._packed is not None:
            rows = x.to(torch.bfloat16)[:, None].permute(0, 3, 1, 2)  # [B, C in, 1, positions], channels last
            y = torch.ops.mkldnn._convolution_pointwise(
                rows, self._packed, self._bias, *self._where, "none", [], ""
            )  # [B, C out, 1, positions]
            return y.permute(0, 2, 3, 1)[:, 0].float()
        length = x.shape[1] - (len(self.taps) - 1) * self.dilation
        if x.device.type != "cpu":
            return self._together(x, length)
        y = x.new_empty(x.shape[0], length, self.taps.shape[2])
        for rows, out in zip(x, y, strict=True):
            torch.addmm(self.bias, rows[:length], self.taps[0], out=out)
            for place in range(1, len(self.taps)):
                begin = place * self.dilation
                out.addmm_(rows[begin : begin + length], self.taps[place])
        return y

    def _together(self, x: torch.Tensor, length: int) -> torch.Tensor:
        """The whole batch in one product for each tap: a GPU waits for launches."""
        y = torch.matmul(x[:, :length], self.taps[0]).add_(self.bias)
        for place in range(1, len(self.taps)):
            begin = place * self.dilation
            y += torch.matmul(x[:, begin : begin + length], self.taps[place])
        return y


class Conv:
    """Snake (or nothing) and a convolution that keeps the length; beyond the utterance its input is zero."""

    rate = 1

    def __init__(self, module: nn.Conv1d, snake: Snake | None = None, dtype: torch.dtype = torch.float32) -> None:
        self.weight, self.bias = module.weight.detach(), _bias(module)
        self.dilation = module.dilation[0]
        on_cpu = self.weight.device.type == "cpu"
        self.taps = Taps(self.weight.permute(2, 1, 0), self.bias, self.dilation, dtype) if on_cpu else None
        """None where cuDNN convolves."""
        self.left = int(module.padding[0])
        self.right = self.dilation * (module.kernel_size[0] - 1) - self.left
        self.snake = snake

    def needs(self, out: Span) -> Span:
        return Span(out.begin - self.left, out.end + self.right)

    def run(self, x: torch.Tensor, have: Span, out: Span) -> torch.Tensor:
        need = self.needs(out)
        if self.snake is not None:
            x = self.snake(x)
        x = _padded(x, have.begin - need.begin, need.end - have.end)
        if self.taps is not None:
            return self.taps(x)
        return F.conv1d(x.transpose(1, 2), self.weight, self.bias, dilation=self.dilation).transpose(1, 2)


class Up:
    """Snake and a transposed convolution: a short convolution that gives, at each position, a whole stride of outputs."""

    def __init__(self, module: nn.ConvTranspose1d, snake: Snake, dtype: torch.dtype = torch.float32) -> None:
        weight = module.weight.detach()  # [C in, C out, kernel]
        self.rate = module.stride[0]
        self.kernel = module.kernel_size[0]
        self.crop = int(module.padding[0])
        self.channels = weight.shape[1]
        self.reach = -(-self.kernel // self.rate) - 1  # positions back that an output depends on
        whole = F.pad(weight, (0, (self.reach + 1) * self.rate - self.kernel))
        taps = whole.unflatten(2, (self.reach + 1, self.rate)).permute(2, 0, 3, 1).flatten(2)
        # [reach + 1, C in, rate * C out], the position furthest back first.
        self.taps = Taps(taps.flip(0), _bias(module).repeat(self.rate), 1, dtype)
        self.snake = snake

    def needs(self, out: Span) -> Span:
        # Input i reaches the outputs o with 0 <= o + crop - i * rate < kernel.
        first = -((self.kernel - 1 - self.crop - out.begin) // self.rate)
        return Span(first, (out.end - 1 + self.crop) // self.rate + 1)

    def run(self, x: torch.Tensor, have: Span, out: Span) -> torch.Tensor:
        first, last = (out.begin + self.crop) // self.rate, (out.end - 1 + self.crop) // self.rate
        x = _padded(self.snake(x), have.begin - (first - self.reach), last + 1 - have.end)
        y = self.taps(x).reshape(x.shape[0], -1, self.channels)
        begin = out.begin + self.crop - first * self.rate
        return y[:, begin : begin + out.end - out.begin]


class Residual:
    """x plus two convolutions of it, the second one without neighbours."""

    rate = 1

    def __init__(self, module: nn.Module, dtype: torch.dtype = torch.float32) -> None:
        self.wide = Conv(cast(nn.Conv1d, module.conv1), Snake(cast(nn.Module, module.snake1)), dtype)
        self.point = Conv(cast(nn.Conv1d, module.conv2), Snake(cast(nn.Module, module.snake2)), dtype)

    def needs(self, out: Span) -> Span:
        return self.wide.needs(out)

    def run(self, x: torch.Tensor, have: Span, out: Span) -> torch.Tensor:
        y = self.point.run(self.wide.run(x, have, out), out, out)
        return y.add_(x[:, out.begin - have.begin : out.end - have.begin])


class DecoderLayers:
    """The layers of an `acoustic_decoder`, in order. On a GPU most weights are shared with it, on a CPU they are copies."""

    def __init__(self, decoder: nn.Module, dtype: torch.dtype = torch.float32) -> None:
        """``dtype``: bfloat16 takes the products of wide layers in it, on a CPU."""
        self.layers: list[Layer] = [Conv(cast(nn.Conv1d, decoder.conv1), None, dtype)]
        for block in cast(nn.ModuleList, decoder.block):
            snake = Snake(cast(nn.Module, block.snake1))
            self.layers.append(Up(cast(nn.ConvTranspose1d, block.conv_t1), snake, dtype))
            for unit in (block.res_unit1, block.res_unit2, block.res_unit3):
                self.layers.append(Residual(cast(nn.Module, unit), dtype))
        self.layers.append(Conv(cast(nn.Conv1d, decoder.conv2), Snake(cast(nn.Module, decoder.snake1)), dtype))
        self.hop = 1
        for layer in self.layers:
            self.hop *= layer.rate
        frame = self.needs(Span(0, self.hop))
        self.reach = max(-frame.begin, frame.end - 1)
        """Frames on either side of a frame that its samples depend on."""

    def needs(self, samples: Span) -> Span:
        """Frames that samples depend on; they may lie outside of the utterance."""
        for layer in reversed(self.layers):
            samples = layer.needs(samples)
        return samples

    def run(self, latents: torch.Tensor, samples: Span) -> torch.Tensor:
        """`samples` of an utterance of T frames, from its latents [B, T, C]: [B, n].

        The latents may also be a stretch of a longer utterance, if it holds `needs(samples)` as far as they exist: its ends
        are then out of sight of the samples, or they are the utterance's own.
        """
        spans, length = [samples], latents.shape[1] * self.hop
        for layer in reversed(self.layers):
            length //= layer.rate
            spans.append(layer.needs(spans[-1]).within(length))
        spans.reverse()
        x = latents[:, spans[0].begin : spans[0].end]
        for layer, have, out in zip(self.layers, spans, spans[1:], strict=False):
            x = layer.run(x, have, out)
        return x[..., 0]


def _bias(module: nn.Conv1d | nn.ConvTranspose1d) -> torch.Tensor:
    return module.weight.new_zeros(module.out_channels) if module.bias is None else module.bias.detach()


def _padded(x: torch.Tensor, left: int, right: int) -> torch.Tensor:
    """Zeros before and behind the positions; padding by nothing would copy."""
    return F.pad(x, (0, 0, left, right)) if left or right else x
