"""boson_multimodal, transformers and ours on the same weights: prompts, logits, greedy codes, and how codes are drawn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from higgs_voice.config import Sampling
from higgs_voice.model.delay import revert_delay
from higgs_voice.model.loading import Loaded
from higgs_voice.model.prompt import PromptBuilder, Rows
from higgs_voice.model.runner import Runner
from higgs_voice.model.sampling import NOTHING, Sampler, filtered
from higgs_voice.serve_engine import HiggsAudioServeEngine, StreamingVoiceGenerator
from tests.model.oracle import Oracle, model_inputs
from tests.parity.kit import ARRAYS, CONTEXTS, CONVERSATIONS, FILTERS, PROMPTS, SPECIAL, Asked, Case, greedy_rows


@pytest.fixture(scope="module", params=["nano", "random"])
def checkpoint(request: pytest.FixtureRequest, asked: Asked) -> tuple[str, Loaded]:
    """The embedded voice, and the published model's shapes with random weights and few layers."""
    return request.param, getattr(asked, request.param)


@pytest.fixture(scope="module")
def runner(checkpoint: tuple[str, Loaded]) -> Runner:
    return Runner(checkpoint[1], max_rows=2048)


pytestmark = pytest.mark.timeout(600)  # the first test waits for the other environment


# Prompts


@pytest.mark.parametrize("case", PROMPTS, ids=lambda case: case.name)
def test_prompts_are_the_packages(case: Case, checkpoint: tuple[str, Loaded], asked: Asked) -> None:
    """Token for token, and code for code of the delayed audio rows."""
    name, loaded = checkpoint
    rows = case.rows(PromptBuilder(loaded.tokenizer, loaded.model.config))
    theirs = {part: asked.of(f"{name}/prompts/{case.name}/{part}") for part in ("tokens", "codes", "audio")}
    if name == "random":  # the codes of the cases are those of the small codebook; nothing else depends on it
        assert not (theirs["codes"] > 1025).any()
    np.testing.assert_array_equal(rows.audio, theirs["audio"])
    np.testing.assert_array_equal(rows.tokens[~rows.audio], theirs["tokens"][~rows.audio])
    np.testing.assert_array_equal(rows.codes, theirs["codes"])


def test_a_special_token_in_the_text_is_text_here_and_ends_the_message_there(
    checkpoint: tuple[str, Loaded], asked: Asked
) -> None:
    """The one prompt in which ours differs on purpose: text comes from a language model, or from its caller."""
    name, loaded = checkpoint
    builder = PromptBuilder(loaded.tokenizer, loaded.model.config)
    end = builder._tokenizer.id("<|eot_id|>")
    ours, theirs = SPECIAL.rows(builder).tokens, asked.of(f"{name}/prompts/{SPECIAL.name}/tokens")
    assert (theirs == end).sum() == 3
    assert (ours == end).sum() == 2


# Logits


@pytest.mark.parametrize("case", CONTEXTS, ids=lambda case: case.name)
def test_logits_along_a_forced_continuation(
    case: Case,
    checkpoint: tuple[str, Loaded],
    runner: Runner,
    asked: Asked,
    record_property: Callable[[str, object], None],
) -> None:
    name, loaded = checkpoint
    builder = runner.prompts
    forced = ARRAYS[f"forced/{name}"]
    whole = case.rows(builder) + Rows.of_audio(forced, builder.audio_token)
    boson = torch.from_numpy(asked.of(f"{name}/logits/{case.name}/logits"))
    with torch.inference_mode():
        given = loaded.model(**model_inputs(whole), use_cache=False).logits[0, -len(forced) :]
    transformers = given.float().view(boson.shape)
    slot = runner.pool.acquire()
    ours: list[torch.Tensor] = []
    for place in range(len(forced)):  # as it is generated: prefill, then row by row
        runner.align(slot, whole[: len(whole) - len(forced) + place + 1])
        ours.append(runner.logits(slot).clone())
    slot.release()
    stacked = torch.stack(ours)
    for one, other, between in (
        (boson, transformers, "boson and transformers"),
        (boson, stacked, "boson and ours"),
        (transformers, stacked, "transformers and ours"),
    ):
        worst = (one - other).abs().max().item()
        record_property(between, worst)
        print(f"{name}, {case.name}, {between}: largest error {worst:.1e} of logits up to {one.abs().max().item():.1f}")
        assert worst < 1e-3 if name == "random" else worst < 1e-4
    assert torch.equal(boson.argmax(-1), stacked.argmax(-1))


# Greedy codes


@pytest.mark.parametrize("case", CONTEXTS, ids=lambda case: case.name)
def test_greedy_rows_of_a_chunk(case: Case, checkpoint: tuple[str, Loaded], runner: Runner, asked: Asked) -> None:
    name, loaded = checkpoint
    theirs = asked.of(f"{name}/greedy/{case.name}/rows")
    prompt = case.rows(runner.prompts)
    transformers = Oracle(loaded).generate(prompt, max_new_tokens=24)
    rows = greedy_rows(runner, prompt, 24)
    shortest = min(len(theirs), len(transformers), len(rows))
    assert shortest >= 20
    np.testing.assert_array_equal(rows[:shortest], theirs[:shortest])
    np.testing.assert_array_equal(transformers[:shortest], theirs[:shortest])


@pytest.mark.parametrize("conversation", CONVERSATIONS, ids=lambda item: item["name"])
async def test_ten_chunks_in_a_window_of_three(conversation: dict[str, Any], asked: Asked) -> None:
    """The package prefills everything for every chunk; ours keeps what it has. The codes are the same.

    That ours are transformers' on such conversations is held by tests/backends/test_local.py.
    """
    serve = HiggsAudioServeEngine("nano", "nano", device="cpu")
    voice = StreamingVoiceGenerator(
        serve, conversation["scene"], conversation["speakers"], generation_chunk_buffer_size=conversation["window"]
    )
    oracle, builder = Oracle(asked.nano), PromptBuilder(asked.nano.tokenizer, asked.nano.model.config)
    for place, text in enumerate(conversation["texts"]):
        before = [*zip(conversation["texts"][max(0, place - 3) : place], voice.generated_audio_ids, strict=True)]
        async for _ in voice.generate_streaming([text], temperature=0.0, ras_win_len=None, max_new_tokens=300):
            pass
        ours = voice.generated_audio_ids[-1].numpy()
        theirs = asked.of(f"nano/greedy/{conversation['name']}/{place}")
        np.testing.assert_array_equal(ours, theirs, err_msg=text)
        speakers = (f"SPEAKER0: {conversation['speakers']}",) if conversation["speakers"] else ()
        prompt = Rows.concat(
            [
                builder.prefix("Generate audio following instruction.", conversation["scene"], speakers),
                *(builder.exchange(said, codes.numpy().astype(np.int16)) for said, codes in before),
                builder.opening(text),
            ]
        )
        if place % 3 == 0:
            rows = oracle.generate(prompt, max_new_tokens=300)
            frames = np.stack([rows[1 + book : 1 + book + ours.shape[1], book] for book in range(8)])
            np.testing.assert_array_equal(frames, ours, err_msg=text)
    serve.close()


def test_an_end_in_another_codebook_is_the_originals(asked: Asked) -> None:
    """The package fills the codebooks before the one that said EOS, transformers begins a staircase at codebook 0. From then on
    the rows that are fed differ, and with them what the codebooks say that are still speaking: ours is the package's."""
    config: Any = asked.rigged.model.config
    bos, eos = config.audio_stream_bos_id, config.audio_stream_eos_id
    runner = Runner(asked.rigged, max_rows=2048)
    prompt = CONTEXTS[0].rows(runner.prompts)
    theirs = asked.of("rigged/greedy/end/rows").astype(np.int16)
    transformers = Oracle(asked.rigged).generate(prompt, max_new_tokens=200)
    ours = greedy_rows(runner, prompt, 200)
    first = int((theirs == eos).any(axis=1).argmax())
    assert (theirs[first] == eos).nonzero()[0].tolist() == [0, 1, 2, 3]
    assert (transformers[first] == eos).nonzero()[0].tolist() == [3]
    # Ours ends with the first row of EOS alone. The package's ends when codebook 7 is due: one row before that, or one after it
    # where the codebooks said EOS sooner than they had to.
    shared = min(len(ours), len(theirs))
    np.testing.assert_array_equal(ours[:shared], theirs[:shared])
    over = [*ours[shared:], *theirs[shared:]]
    assert len(over) <= 1
    assert all((row == eos).all() for row in over)
    assert len(transformers) > len(ours)
    frames = revert_delay(theirs, bos=bos, eos=eos)
    assert frames.shape[1] > 5
    # As the documented example cuts it: the frame with BOS and the last one go.
    documented = np.stack([theirs[book : len(theirs) - 7 + book, book] for book in range(8)])[:, 1:-1]
    np.testing.assert_array_equal(frames, documented[:, : frames.shape[1]])
    # A frame in which a codebook said EOS sooner than it had to is the example's, which clips it, and not ours.
    assert (documented[:, frames.shape[1] :] == eos).any(axis=0).all()
    np.testing.assert_array_equal(revert_delay(ours, bos=bos, eos=eos), frames)


# Drawing


def exact(scores: torch.Tensor, history: np.ndarray, sampling: Sampling) -> np.ndarray:
    """The distribution [K, V] of what our sampler draws, found by handing it every code's own stretch of (0, 1)."""
    books, size = scores.shape
    # No code of the vocabulary is the end here: an end that one codebook draws would change what stands in the others.
    sampler = Sampler(1, books, size, bos=size, eos=size + 1, device=torch.device("cpu"))
    shape = (1, 1, 1)
    top_k = torch.full(shape, min(sampling.top_k or size, size))
    p, order = filtered(scores[None], torch.full(shape, sampling.temperature), top_k, torch.full(shape, sampling.top_p))
    p = p.double() / p.double().sum(-1, keepdim=True)
    first = torch.zeros(books, size, dtype=torch.float64).scatter_(1, order[0], p[0])
    raw = scores.double().softmax(-1)
    upper = p[0].cumsum(-1)
    redrawn = torch.zeros(books, size, dtype=torch.float64)
    # The second number picks the raw distribution's most probable code, which shows a redraw unless it is the code itself.
    likely = raw.argsort(-1, descending=True)[:, :2]
    raw_upper = raw.cumsum(-1)
    for rank in range(size):
        codes = order[0, :, rank]
        middle = (upper[:, rank] - p[0, :, rank] / 2).float().clamp(max=1 - 2**-22)  # of what cannot be drawn: anything
        mark = torch.where(likely[:, 0] == codes, likely[:, 1], likely[:, 0])
        second = (raw_upper - raw / 2).gather(1, mark[:, None])[:, 0].float()
        sampler.begin(0, sampling, np.zeros((0, books), dtype=np.int16), 0)
        past = torch.full((sampler.window, books), NOTHING)
        past[-history.shape[1] :] = torch.from_numpy(history.T.astype(np.int64))
        sampler.ints[0, sampler.history :] = past.reshape(-1)
        sampler.ints[0, 0] = 100  # rows produced: the delay pattern forces nothing
        sampler.uniforms[0, 99 % 64] = torch.stack([middle, second], dim=1)
        drawn = sampler.sample(scores[None], sampler.lines([0], [sampling]))[0]
        possible = p[0, :, rank] > 1e-6  # a stretch that a float32 can hit
        assert ((drawn == codes) | (drawn == mark))[possible].all()
        redrawn[torch.arange(books), codes] = ((drawn == mark) & possible).double()
    again = (first * redrawn).sum(1, keepdim=True)
    return (first * (1 - redrawn) + again * raw).numpy()


@pytest.mark.parametrize("place", range(len(FILTERS)), ids=lambda place: str(FILTERS[place]))
def test_codes_are_drawn_with_the_packages_probabilities(place: int, asked: Asked) -> None:
    temperature, top_k, top_p, window, repeats = FILTERS[place]
    sampling = Sampling(
        temperature=temperature, top_k=top_k, top_p=top_p, ras_win_len=window, ras_win_max_num_repeat=repeats
    )
    name = f"sampling{place}"
    theirs = asked.of(f"nano/sampling/{name}/p")
    ours = exact(torch.from_numpy(ARRAYS[f"{name}/scores"]), ARRAYS[f"{name}/history"], sampling)
    np.testing.assert_allclose(theirs.sum(axis=1), 1.0, atol=1e-5)
    np.testing.assert_allclose(ours, theirs, atol=2e-6)
