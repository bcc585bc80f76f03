"""The model's forward pass over transformers' weights, for the shapes that serving needs.

`Forward.prefill` takes mixed rows of one context, `Forward.decode` one audio row for each of several, and `Forward.mixed` rows
of any kind and context, in shapes that do not depend on which they are. All run the same blocks: Llama attention, and two feed-forward paths with norms of their own, one for text rows and one for audio rows.
Where keys and values are stored and how attention reads them is the `Attend` that is passed in.

The projections that read the same input are stacked once. The model's own parameters become views of the stacks, so
nothing is held twice and the model class goes on working.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import CheckpointError
from .kv import Attend
from .linear import Int8Linear, Linear, steady


@dataclass(slots=True)
class Ffn:
    """One of a layer's two feed-forward paths."""

    norm_in: Tensor
    """[H] weight of the norm before attention, which the two kinds of rows have apart too."""
    norm_mid: Tensor
    """[H] weight of the norm before the feed-forward network."""
    gate_up: Linear
    """H to 2 I."""
    down: Linear
    """I to H."""


@dataclass(slots=True)
class Layer:
    """Weights of one block."""

    qkv: Linear
    """H to (heads_q + 2 heads_kv) * D."""
    out: Linear
    """heads_q * D to H."""
    text: Ffn
    audio: Ffn


Kinds = Literal["audio", "text"] | tuple[Tensor, Tensor]
"""Rows of one kind, or the indices of the audio and of the text rows."""


def _stack(*projections: Any) -> Linear:
    """Projections over the same input as one. The model's own weights become views of it."""
    weight = _joined([projection.weight for projection in projections])
    if not isinstance(projections[0], Int8Linear):
        return Linear(weight)
    return Linear(weight, _joined([projection.scale for projection in projections]), projections[0].dtype)


def _joined(parts: list[Tensor]) -> Tensor:
    """The parts one after another, in one tensor that they become views of."""
    if len(parts) == 1:
        return parts[0].data
    whole = torch.cat([part.data for part in parts])
    start = 0
    for part in parts:
        part.data = whole[start : start + part.shape[0]]
        start += part.shape[0]
    return whole


class Forward:
    """A `HiggsAudioV2ForConditionalGeneration` as three functions. Runs in inference mode; not thread-safe.

    Errors: `CheckpointError` when the model has parts that this does not compute.
    """

    def __init__(self, model: Any, *, positions: int = 2048) -> None:
        """``positions``: how far the rotary tables reach at first."""
        config = model.config
        if config.attention_bias or config.mlp_bias or config.hidden_act != "silu":
            raise CheckpointError(
                "this Higgs v2 checkpoint has biases or an activation other than silu, which no published one has; "
                "the engine cannot run it"
            )
        base = model.model
        self.config = config
        self.device: torch.device = base.embed_tokens.weight.device
        self.dtype: torch.dtype = base.embed_tokens.weight.dtype
        self.heads_q: int = config.num_attention_heads
        self.heads: int = config.num_key_value_heads
        self.head_dim: int = config.head_dim
        self.eps: float = config.rms_norm_eps
        self._eps = torch.tensor(self.eps)
        self.layers = [self._layer(layer) for layer in base.layers]
        self.norm: Tensor = base.norm.weight.data
        self.head = Linear(model.audio_lm_head.weight.data)
        self._packed = self.head.packed and all(
            linear.packed
            for layer in self.layers
            for linear in (layer.qkv, layer.out, layer.audio.gate_up, layer.audio.down)
        )
        self.embed_text: Tensor = base.embed_tokens.weight.data
        self.embed_audio: Tensor = base.embed_audio_tokens.embed_audio_tokens.weight.data
        self.offsets = torch.arange(config.num_codebooks, device=self.device) * config.codebook_size
        self._rotary = base.rotary_emb
        self.cos = self.sin = torch.empty(0)
        self.extend_positions(positions)

    @staticmethod
    def _layer(layer: Any) -> Layer:
        def ffn(mlp: Any, norm_in: Any, norm_mid: Any) -> Ffn:
            gate_up = _stack(mlp.gate_proj, mlp.up_proj)
            return Ffn(norm_in.weight.data, norm_mid.weight.data, gate_up, _stack(mlp.down_proj))

        attention = layer.self_attn
        return Layer(
            qkv=_stack(attention.q_proj, attention.k_proj, attention.v_proj),
            out=_stack(attention.o_proj),
            text=ffn(layer.mlp, layer.input_layernorm, layer.post_attention_layernorm),
            audio=ffn(layer.audio_mlp, layer.audio_input_layernorm, layer.audio_post_attention_layernorm),
        )

    def extend_positions(self, positions: int) -> None:
        """Make the rotary tables reach at least this many positions."""
        if positions > len(self.cos):
            self._extend(positions)

    @torch.inference_mode()
    def _extend(self, positions: int) -> None:
        ids = torch.arange(max(positions, 2 * len(self.cos)), device=self.device)[None]
        cos, sin = self._rotary(torch.empty(0, dtype=self.dtype, device=self.device), ids)
        half = self.head_dim // 2
        self.cos = cos[0, :, None].contiguous()  # [P, 1, D]
        self.sin = torch.cat((-sin[0, :, :half], sin[0, :, half:]), dim=-1)[:, None].contiguous()

    @torch.inference_mode()
    def prefill(self, tokens: Tensor, codes: Tensor, audio: Tensor, text: Tensor, past: int, attend: Attend) -> Tensor:
        """Hidden states [L, H] before the last norm.

        ``tokens`` [L], ``codes`` [L, K], ``audio`` and ``text`` the indices of the rows of each kind, ``past`` the position
        of the first row.
        """
        count = tokens.shape[0]
        self.extend_positions(past + count)
        kinds: Kinds
        if audio.shape[0] == count:
            x, kinds = self._embed_audio(codes), "audio"
        elif not audio.shape[0]:
            x, kinds = F.embedding(tokens, self.embed_text), "text"
        else:
            x = F.embedding(tokens, self.embed_text)
            x[audio] = self._embed_audio(codes[audio])
            kinds = (audio, text)
        return self._blocks(x, self.cos[past : past + count], self.sin[past : past + count], attend, kinds)

    @torch.inference_mode()
    def mixed(self, tokens: Tensor, codes: Tensor, audio: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """Hidden states [R, H] before the last norm, of rows that may be of several contexts.

        ``tokens`` [R] and ``codes`` [R, K], where a row has none any that the model knows; ``audio`` [R] which rows are audio;
        ``positions`` [R], which the rotary tables must reach already. Every row takes both paths and one is chosen, so nothing is
        waited for and shapes follow from R alone: it can be captured in a graph. Where reading weights is what takes the time, that
        costs no more than rows of both kinds do anyway.
        """
        cos, sin = (table.index_select(0, positions) for table in (self.cos, self.sin))
        audio = audio[:, None]
        x = torch.where(audio, self._embed_audio(codes), F.embedding(tokens, self.embed_text))
        for index, layer in enumerate(self.layers):
            h = torch.where(audio, self._normed(x, layer.audio.norm_in), self._normed(x, layer.text.norm_in))
            qkv = layer.qkv(h).view(x.shape[0], -1, self.head_dim)
            x = layer.out.added(attend(index, qkv, cos, sin), x)
            x = torch.where(audio, self._feed(x, layer.audio), self._feed(x, layer.text))
        return x

    @torch.inference_mode()
    def decode(self, codes: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """Logits [B, K, V] in float32 after one audio row [B, K] for each context, at ``positions`` [B].

        The rotary tables must reach the positions already.
        """
        rows = codes.shape[0]
        if self.head.steadied and (more := steady(rows, self._packed) - rows):
            # Here, and not by every projection anew. The rows behind are the first one again.
            codes, positions = (
                torch.cat((codes, codes[:1].expand(more, -1))),
                torch.cat((positions, positions[:1].expand(more))),
            )
        cos, sin = (table.index_select(0, positions) for table in (self.cos, self.sin))
        return self.decode_embedded(self._embed_audio(codes), cos, sin, attend)[:rows]

    @torch.inference_mode()
    def decode_embedded(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        """`decode` from what the layers take: embedded rows [B, H], and the rotary tables at their positions [B, 1, D]."""
        return self.logits(self._blocks(x, cos, sin, attend, "audio"))

    @torch.inference_mode()
    def decode_fused(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend, ahead: bool = False) -> Tensor:
        """`decode_embedded` in six launches a layer where that takes twelve, for `FEW_ROWS` rows at most, by Triton's kernels.

        The same sums in another order, and fewer of them rounded: a norm's scale, the gate and its product stay in float32. ``ahead``: each
        launch begins while the one before ends, where the GPU can.
        """
        eps = self.eps
        for index, layer in enumerate(self.layers):
            ffn = layer.audio
            qkv = layer.qkv.fused(x, norm=ffn.norm_in, eps=eps, ahead=ahead)
            x = layer.out.fused(attend(index, qkv.view(len(x), -1, self.head_dim), cos, sin), residual=x, ahead=ahead)
            h = ffn.gate_up.fused(x, norm=ffn.norm_mid, eps=eps, gated=True, ahead=ahead)
            x = ffn.down.fused(h, residual=x, ahead=ahead)
        x = self.head.fused(x, norm=self.norm, eps=eps, dtype=torch.float32, ahead=ahead)
        return x.view(x.shape[0], self.config.num_codebooks, self.config.codebook_size)

    def logits(self, x: Tensor) -> Tensor:
        """Hidden states [R, H] to logits [R, K, V] in float32."""
        x = self.head(self._normed(x, self.norm))
        return x.view(x.shape[0], self.config.num_codebooks, self.config.codebook_size).float()

    def _embed_audio(self, codes: Tensor) -> Tensor:
        return F.embedding(codes + self.offsets, self.embed_audio).sum(dim=1)

    def _blocks(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend, kinds: Kinds) -> Tensor:
        """All layers over [R, H]."""
        shape = self.norm.shape
        rows = x.shape[0]
        for index, layer in enumerate(self.layers):
            if isinstance(kinds, str):
                ffn = layer.audio if kinds == "audio" else layer.text
                h = self._normed(x, ffn.norm_in)
                qkv = layer.qkv(h).view(rows, -1, self.head_dim)
                x = self._feed(layer.out.added(attend(index, qkv, cos, sin), x), ffn)
                continue
            h = F.rms_norm(x, shape, None, self.eps)
            for which, ffn in zip(kinds, (layer.audio, layer.text), strict=True):
                h[which] *= ffn.norm_in
            qkv = layer.qkv(h).view(rows, -1, self.head_dim)
            x = layer.out.added(attend(index, qkv, cos, sin), x)
            for which, ffn in zip(kinds, (layer.audio, layer.text), strict=True):
                x[which] = self._feed(x[which], ffn)
        return x

    def _normed(self, x: Tensor, weight: Tensor) -> Tensor:
        """Root-mean-square norm of [R, H]."""
        if self.device.type != "cpu" or self.dtype != torch.float32:
            return F.rms_norm(x, weight.shape, weight, self.eps)
        # On a CPU torch's own is many operations behind one name.
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return x * torch.addcmul(self._eps, length, length, value=1 / x.shape[-1]).rsqrt_() * weight

    def _feed(self, x: Tensor, ffn: Ffn) -> Tensor:
        h = ffn.gate_up(self._normed(x, ffn.norm_mid))
        gate, up = h.chunk(2, dim=-1)
        return ffn.down.added(F.silu(gate) * up, x)
