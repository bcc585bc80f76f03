"""Weights in eight bits: what they are, that ours and the model class compute the same of them, and what they cost."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from higgs_voice.captured import BUCKETS
from higgs_voice.errors import SettingsError
from higgs_voice.model import loading
from higgs_voice.model.forward import Forward
from higgs_voice.model.linear import FEW_ROWS, Int8Linear, Linear, quantize
from higgs_voice.model.loading import Loaded, load
from higgs_voice.model.runner import Runner
from tests.model.oracle import next_logits
from tests.model.test_forward import mixed, pool_for, run


@pytest.fixture(scope="module")
def eight(tiny: Any) -> Any:
    """The tiny model in eight bits, and the ones that were."""
    model = copy.deepcopy(tiny)
    quantize(model.model.layers)
    return model


@pytest.fixture(scope="module")
def nano_eight() -> Loaded:
    return load("nano", device="cpu", dtype="float32", weight_dtype="int8")


def test_each_output_is_rounded_to_its_own_scale() -> None:
    weight = (
        torch.randn(5, 300, generator=torch.Generator().manual_seed(0))
        * torch.tensor([1e-3, 1.0, 7.0, 0.0, 50.0])[:, None]
    )
    made = Int8Linear(weight)
    assert made.weight.dtype == torch.int8
    back = made.weight.float() * made.scale[:, None]
    largest = weight.abs().amax(dim=1, keepdim=True)
    assert ((back - weight).abs() <= largest / 254 * 1.001).all()
    assert made.weight.abs().amax(dim=1).tolist() == [127, 127, 127, 0, 127]
    x = torch.randn(3, 300)
    torch.testing.assert_close(made(x), x @ back.t(), atol=1e-3, rtol=1e-5)


def test_every_projection_of_a_layer_and_nothing_else(eight: Any, tiny: Any) -> None:
    names = [name for name, module in eight.named_modules() if isinstance(module, Int8Linear)]
    assert len(names) == 10 * len(eight.model.layers)
    assert {name.split(".")[3] for name in names} == {"self_attn", "mlp", "audio_mlp"}
    assert not any(isinstance(module, torch.nn.Linear) for module in eight.model.layers.modules())
    for part in ("embed_tokens.weight", "norm.weight"):
        assert torch.equal(eight.model.get_parameter(part), tiny.model.get_parameter(part))
    assert torch.equal(eight.audio_lm_head.weight, tiny.audio_lm_head.weight)


@pytest.mark.parametrize("piece", [7, 64])
def test_ours_is_the_model_class_over_the_same_weights(eight: Any, tiny: Any, piece: int) -> None:
    rows = mixed(eight.config, 90, seed=piece)
    found = run(Forward(eight), pool_for(eight), rows, piece)
    torch.testing.assert_close(found, next_logits(eight, rows), atol=1e-4, rtol=0)
    assert (found - next_logits(tiny, rows)).abs().max() > 1e-3


def test_the_model_class_shares_the_stacks(eight: Any) -> None:
    layer = eight.model.layers[1]
    Forward(eight)
    for parts in (
        (layer.self_attn.q_proj, layer.self_attn.v_proj),
        (layer.audio_mlp.gate_proj, layer.audio_mlp.up_proj),
    ):
        for name in ("weight", "scale"):
            one, other = (getattr(part, name).untyped_storage().data_ptr() for part in parts)
            assert one == other, name


def test_nano_in_eight_bits_stays_near(nano: Loaded, nano_eight: Loaded, codes: Any) -> None:
    """Teacher-forced logits behind several hundred rows: the same largest codes but for a few, a small error."""
    exact, near = Runner(nano, max_rows=2048), Runner(nano_eight, max_rows=2048)
    logits: list[torch.Tensor] = []
    for runner in (exact, near):
        slot = runner.pool.acquire()
        runner.align(
            slot,
            runner.prompts.prefix("Hi.", None, (), [("Clip.", codes(200))]) + runner.prompts.opening("No, it is not."),
        )
        logits.append(runner.logits(slot))
    error = float((logits[1] - logits[0]).abs().max() / logits[0].std())
    assert 0 < error < 0.15, error


def test_who_shares_the_batch_does_not_matter(nano_eight: Loaded, codes: Any) -> None:
    """A row's logits are the same bits alone and beside others, here as with the model's own weights."""
    runner = Runner(nano_eight, max_rows=2048)
    slots: list[Any] = []
    for text in ("No.", "It is not.", "Yes, of course."):
        slots.append(runner.pool.acquire())
        runner.align(
            slots[-1], runner.prompts.prefix("Hi.", None, (), [("Clip.", codes(20))]) + runner.prompts.opening(text)
        )
        slots[-1].reserve(slots[-1].length + 1)

    def decode(which: list[int]) -> torch.Tensor:
        some = [slots[index] for index in which]
        lengths = [slot.length for slot in some]
        lines, positions = torch.tensor([slot.index for slot in some]), torch.tensor(lengths)
        row = torch.full((len(some), 8), runner.bos)
        return runner.forward.decode(row, positions, runner.pool.decode(some, lengths, lines, positions))

    whole = decode([0, 1, 2])
    for which in ([0], [2], [2, 0]):
        assert torch.equal(decode(which), whole[which])


def test_random_shapes_in_eight_bits(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The layers are made whole numbers once their random weights are there."""
    given: list[Any] = []

    def seen(layers: Any) -> None:
        given.append(layers)
        raise ZeroDivisionError

    model = copy.deepcopy(tiny)
    monkeypatch.setattr(loading, "_random", lambda *_: model)
    monkeypatch.setattr(loading, "quantize", seen)
    with pytest.raises(ZeroDivisionError):
        loading.random_model(device="cpu", weight_dtype="int8")
    assert given == [model.model.layers]
    assert not torch.equal(model.model.layers[0].mlp.down_proj.weight, tiny.model.layers[0].mlp.down_proj.weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_types_of_what_is_around_stay(tiny: Any, dtype: torch.dtype) -> None:
    model = copy.deepcopy(tiny).to(dtype)
    quantize(model.model.layers)
    assert model.model.layers[0].self_attn.q_proj.dtype == dtype
    forward = Forward(model)
    assert {forward.dtype, forward.layers[0].audio.down.weight.dtype} == {dtype}
    x = torch.randn(3, 192, dtype=dtype)
    assert forward.layers[0].qkv(x).dtype == dtype


def test_a_weight_dtype_that_cannot_be_had_is_one_sentence() -> None:
    for make in (load, loading.random_model):
        with pytest.raises(SettingsError, match=r"in its own type \(auto\) or in int8, not in 'int4'"):
            make(weight_dtype="int4")


def test_no_step_on_a_gpu_converts_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not of the largest batch either, which one kernel does not hold; what has more rows is a prefill."""
    pytest.importorskip("triton", reason="Triton has no build for this platform")
    from higgs_voice.model import kernels

    made = Int8Linear(torch.randn(6, 40))
    linear, sizes = Linear(made.weight, made.scale), list[int]()
    linear.weight, linear._scale = made.weight, made.scale  # as it is on a GPU

    def project(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, more: torch.Tensor | None) -> torch.Tensor:
        sizes.append(len(x))
        product = x @ (weight.float() * scale[:, None]).t()
        return product if more is None else product + more

    monkeypatch.setattr(kernels, "project", project)
    for rows in (*BUCKETS, BUCKETS[-1] + 1):
        x, residual = torch.randn(rows, 40), torch.randn(rows, 6)
        sizes.clear()
        torch.testing.assert_close(linear(x), made(x))
        torch.testing.assert_close(linear.added(x, residual), made(x) + residual)
        assert sum(sizes) == (2 * rows if rows <= BUCKETS[-1] else 0)
        assert max(sizes, default=0) <= FEW_ROWS


def test_on_a_processor_they_are_floats_again() -> None:
    """There is no quicker product there; the numbers are those of the eight bits."""
    made = Int8Linear(torch.randn(6, 40))
    linear, x, residual = Linear(made.weight, made.scale), torch.randn(3, 40), torch.randn(3, 6)
    torch.testing.assert_close(linear(x), made(x))
    torch.testing.assert_close(linear.added(x, residual), made(x) + residual)
