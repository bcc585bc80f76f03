"""The codec's decoder, evaluated for a stretch of samples and no more.

Decoding a window and throwing its margins away spends most of its time on margins. Here the layers are walked from the
waveform back to the frames first, to see which positions each of them has to give; then forward, each giving just those.
Near the waveform, where a layer sees little beyond its own position, next to nothing is computed twice. The arithmetic is that
of transformers' `DacDecoder` (with the output padding and without the tanh, as the Higgs codec has it), layer by layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import nn
from torch.nn import functional as F


@dataclass(frozen=True, slots=True)
class Span:
    """Positions begin … end - 1 of one layer's output, counted from the start of the utterance."""

    begin: int
    end: int

    def within(self, length: int) -> Span:
        """The part that lies in an utterance of `length`."""
        return Span(max(0, self.begin), min(length, self.end))


class Layer(Protocol):
    """One step of the decoder on tensors [B, C, positions]."""

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
        self.alpha = cast(torch.Tensor, module.alpha).detach()  # [1, C, 1]
        self.scale = (self.alpha + 1e-9).reciprocal()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        wave = (x * self.alpha).sin_()
        return torch.addcmul(x, wave.mul_(wave), self.scale)


class Conv:
    """Snake (or nothing) and a convolution that keeps the length; beyond the utterance its input is zero."""

    rate = 1

    def __init__(self, module: nn.Conv1d, snake: Snake | None = None) -> None:
        self.weight, self.bias = module.weight.detach(), _bias(module)
        self.dilation = module.dilation[0]
        self.left = int(module.padding[0])
        self.right = self.dilation * (module.kernel_size[0] - 1) - self.left
        self.snake = snake

    def needs(self, out: Span) -> Span:
        return Span(out.begin - self.left, out.end + self.right)

    def run(self, x: torch.Tensor, have: Span, out: Span) -> torch.Tensor:
        need = self.needs(out)
        if self.snake is not None:
            x = self.snake(x)
        if need != have:  # padding by nothing would copy
            x = F.pad(x, (have.begin - need.begin, need.end - have.end))
        return F.conv1d(x, self.weight, self.bias, dilation=self.dilation)


class Up:
    """Snake and a transposed convolution, as one matrix product and a sum of what overlaps: quicker on a CPU."""

    def __init__(self, module: nn.ConvTranspose1d, snake: Snake) -> None:
        weight = module.weight.detach()  # [C in, C out, kernel]
        self.weight = weight.permute(1, 2, 0).reshape(-1, weight.shape[0]).contiguous()  # [C out * kernel, C in]
        self.bias = _bias(module)
        self.rate = module.stride[0]
        self.kernel = module.kernel_size[0]
        self.crop = int(module.padding[0])
        self.snake = snake

    def needs(self, out: Span) -> Span:
        # Input i reaches the outputs o with 0 <= o + crop - i * rate < kernel.
        first = -((self.kernel - 1 - self.crop - out.begin) // self.rate)
        return Span(first, (out.end - 1 + self.crop) // self.rate + 1)

    def run(self, x: torch.Tensor, have: Span, out: Span) -> torch.Tensor:
        length = (x.shape[-1] - 1) * self.rate + self.kernel
        parts = torch.matmul(self.weight, self.snake(x))  # [B, C out * kernel, positions]
        y = F.fold(parts, (1, length), (1, self.kernel), stride=(1, self.rate))[:, :, 0]  # [B, C out, length]
        first = have.begin * self.rate - self.crop  # position of y's first sample
        y = y[..., out.begin - first : out.end - first]
        return y if self.bias is None else y + self.bias[:, None]


class Residual:
    """x plus two convolutions of it, the second one without neighbours."""

    rate = 1

    def __init__(self, module: nn.Module) -> None:
        self.wide = Conv(cast(nn.Conv1d, module.conv1), Snake(cast(nn.Module, module.snake1)))
        self.point = Conv(cast(nn.Conv1d, module.conv2), Snake(cast(nn.Module, module.snake2)))

    def needs(self, out: Span) -> Span:
        return self.wide.needs(out)

    def run(self, x: torch.Tensor, have: Span, out: Span) -> torch.Tensor:
        y = self.point.run(self.wide.run(x, have, out), out, out)
        return y.add_(x[..., out.begin - have.begin : out.end - have.begin])


class DecoderLayers:
    """The layers of an `acoustic_decoder`, in order. Weights are shared with it, not copied."""

    def __init__(self, decoder: nn.Module) -> None:
        self.layers: list[Layer] = [Conv(cast(nn.Conv1d, decoder.conv1))]
        for block in cast(nn.ModuleList, decoder.block):
            self.layers.append(Up(cast(nn.ConvTranspose1d, block.conv_t1), Snake(cast(nn.Module, block.snake1))))
            self.layers += [
                Residual(cast(nn.Module, unit)) for unit in (block.res_unit1, block.res_unit2, block.res_unit3)
            ]
        self.layers.append(Conv(cast(nn.Conv1d, decoder.conv2), Snake(cast(nn.Module, decoder.snake1))))
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
        """`samples` of an utterance of T frames, from its latents [B, C, T]: [B, n].

        The latents may also be a stretch of a longer utterance, if it holds `needs(samples)` as far as they exist: its ends
        are then out of sight of the samples, or they are the utterance's own.
        """
        spans, length = [samples], latents.shape[-1] * self.hop
        for layer in reversed(self.layers):
            length //= layer.rate
            spans.append(layer.needs(spans[-1]).within(length))
        spans.reverse()
        x = latents[..., spans[0].begin : spans[0].end]
        for layer, have, out in zip(self.layers, spans, spans[1:], strict=False):
            x = layer.run(x, have, out)
        return x[:, 0]


def _bias(module: nn.Conv1d | nn.ConvTranspose1d) -> torch.Tensor | None:
    return None if module.bias is None else module.bias.detach()
