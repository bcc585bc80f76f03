"""Our forward pass against the model class."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from higgs_voice.errors import CheckpointError
from higgs_voice.model import linear as linear_module
from higgs_voice.model.forward import Forward
from higgs_voice.model.kv import ContiguousPool, KvPool, KvShape, PagedPool
from higgs_voice.model.linear import Linear
from higgs_voice.model.prompt import Rows
from tests.model.oracle import next_logits


def mixed(config: Any, length: int, seed: int) -> Rows:
    """Text and audio rows in stretches of random length."""
    rng = np.random.default_rng(seed)
    parts: list[Rows] = []
    while sum(map(len, parts)) < length:
        count = int(rng.integers(1, 20))
        if rng.random() < 0.5:
            parts.append(Rows.of_text(rng.integers(3, 240, size=count).astype(np.int32), config.num_codebooks))
        else:
            codes = rng.integers(0, config.codebook_size, size=(count, config.num_codebooks)).astype(np.int16)
            parts.append(Rows.of_audio(codes, config.audio_token_id))
    return Rows.concat(parts)[:length]


def run(forward: Forward, pool: KvPool, rows: Rows, piece: int) -> torch.Tensor:
    """Next-step logits [K, V] after prefilling rows into a new slot."""
    slot = pool.acquire()
    slot.reserve(len(rows))
    hidden = torch.empty(0)
    for start in range(0, len(rows), piece):
        part = rows[start : start + piece]
        hidden = forward.prefill(
            torch.from_numpy(part.tokens.astype(np.int64)),
            torch.from_numpy(part.codes.astype(np.int64)),
            torch.from_numpy(np.flatnonzero(part.audio)),
            torch.from_numpy(np.flatnonzero(~part.audio)),
            slot.length,
            pool.prefill(slot, len(part)),
        )
        slot.append(part)
    return forward.logits(hidden[-1:])[0]


def pool_for(model: Any, kind: type[KvPool] = ContiguousPool) -> KvPool:
    config = model.config
    shape = KvShape(
        config.num_hidden_layers,
        config.num_key_value_heads,
        config.head_dim,
        torch.float32,
        torch.device("cpu"),
        config.num_codebooks,
    )
    return kind(shape, max_rows=4096, max_slots=8)


POOLS = [ContiguousPool, PagedPool]


@pytest.mark.parametrize("kind", POOLS)
@pytest.mark.parametrize("piece", [1, 7, 64, 500])
def test_mixed_rows_of_the_published_configuration(tiny: Any, piece: int, kind: type[KvPool]) -> None:
    rows = mixed(tiny.config, 90, seed=piece)
    expected = next_logits(tiny, rows)
    assert expected.std() > 0.3
    torch.testing.assert_close(run(Forward(tiny), pool_for(tiny, kind), rows, piece), expected, atol=1e-4, rtol=0)


def test_positions_reach_as_far_as_the_context(tiny: Any) -> None:
    rows = mixed(tiny.config, 150, seed=3)
    forward = Forward(tiny, positions=16)
    torch.testing.assert_close(run(forward, pool_for(tiny), rows, 40), next_logits(tiny, rows), atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", POOLS)
def test_decoding_equals_prefilling(tiny: Any, kind: type[KvPool]) -> None:
    rows = mixed(tiny.config, 60, seed=5)
    forward, pool = Forward(tiny), pool_for(tiny, kind)
    run(forward, pool, rows, 64)
    run(forward, pool, rows[:23], 64)
    slots = list(pool._slots.values())
    audio = mixed(tiny.config, 400, seed=6)
    audio = audio[audio.audio][:12]
    contexts = [rows, rows[:23]]
    for start in range(0, 12, 2):
        codes = torch.from_numpy(audio.codes[start : start + 2].astype(np.int64))
        for slot in slots:
            slot.reserve(slot.length + 1)
        positions = torch.tensor([slot.length for slot in slots])
        lines = torch.tensor([slot.index for slot in slots])
        logits = forward.decode(codes, positions, pool.decode(slots, [slot.length for slot in slots], lines, positions))
        for index, slot in enumerate(slots):
            fed = audio[start + index : start + index + 1]
            slot.append(fed)
            contexts[index] = contexts[index] + fed
            torch.testing.assert_close(logits[index], next_logits(tiny, contexts[index]), atol=1e-4, rtol=0)


def test_nano(runner: Any, oracle: Any, codes: Any) -> None:
    rows = runner.prompts.prefix("Hi.", "Here.", ("SPEAKER0: warm",), [("Clip.", codes(30))])
    rows += runner.prompts.exchange("One.", codes(12, seed=1)) + runner.prompts.opening("Two.")
    torch.testing.assert_close(
        run(runner.forward, pool_for(runner.loaded.model), rows, 64), oracle.logits(rows), atol=1e-4, rtol=0
    )


def test_the_model_class_shares_the_stacked_weights(tiny: Any) -> None:
    forward = Forward(tiny)
    attention = tiny.model.layers[1].self_attn
    assert (
        attention.k_proj.weight.untyped_storage().data_ptr()
        == forward.layers[1].qkv.weight.untyped_storage().data_ptr()
    )


def test_a_checkpoint_with_biases_is_refused(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny.config, "attention_bias", True)
    with pytest.raises(CheckpointError, match="biases"):
        Forward(tiny)


@pytest.mark.parametrize("packed", [True, False])
def test_a_rows_bits_do_not_depend_on_how_many_there_are(packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the processor: one with AVX2 alone has other kernels for few rows, and for the last ones of 7, 14, 31, 32, 37, …"""
    if not packed:
        monkeypatch.setattr(linear_module, "_pack", lambda weight: None)
    generator = torch.Generator().manual_seed(0)
    weight = (torch.randn(96, 700, generator=generator) * 0.05).half().float()
    x, residual = torch.randn(80, 700, generator=generator), torch.randn(80, 96, generator=generator)
    linear = Linear(weight)
    whole, added = linear(x), linear.added(x, residual)
    for rows in range(1, 80):
        assert torch.equal(linear(x[:rows]), whole[:rows]), rows
        assert torch.equal(linear.added(x[:rows], residual[:rows]), added[:rows]), rows
        assert torch.equal(linear(x[-rows:]), whole[-rows:]), rows


@pytest.mark.parametrize("rows", [1, 2, 5, 17])
def test_packed_weights_lose_nothing(rows: int) -> None:
    """Where every weight is a float16 number; a row's bits do not depend on how many rows there are."""
    torch.manual_seed(0)
    weight = (torch.randn(96, 700) * 0.05).half().float()
    linear, x, residual = Linear(weight), torch.randn(17, 700), torch.randn(17, 96)
    assert linear.packed == (torch.backends.quantized.engine in ("x86", "fbgemm"))
    whole = linear(x)
    torch.testing.assert_close(whole, (x.double() @ weight.double().t()).float(), atol=1e-5, rtol=0)
    torch.testing.assert_close(linear.added(x, residual), whole + residual, atol=1e-5, rtol=0)
    if linear.packed:
        assert torch.equal(linear(x[:rows]), whole[:rows])


def test_weights_that_float16_does_not_hold_stay_as_they_are() -> None:
    weight = (torch.randn(8, 16, generator=torch.Generator().manual_seed(0))).half().float()
    x = torch.randn(3, 16)
    for spoilt in (1 / 3, 1e-9, 1e6):
        weight[3, 5] = spoilt
        linear = Linear(weight)
        assert not linear.packed
        assert linear.bytes == weight.numel() * 4
        assert torch.equal(linear(x), torch.nn.functional.linear(x, weight))
        torch.testing.assert_close(linear.added(x, linear(x)), 2 * linear(x))


def test_nano_is_read_as_float16(runner: Any) -> None:
    """Its checkpoint holds float16 numbers."""
    if torch.backends.quantized.engine in ("x86", "fbgemm"):
        assert runner.forward.head.packed
        assert all(
            layer.qkv.packed and layer.audio.down.packed and layer.text.down.packed for layer in runner.forward.layers
        )
        assert runner.forward.head.bytes == runner.forward.head.weight.numel() * 2
