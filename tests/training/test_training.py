"""Training reads what the engine reads, and computes what transformers' class computes."""

from __future__ import annotations

import math
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import HiggsAudioV2TokenizerModel

from higgs_voice.model.loading import load
from higgs_voice.model.prompt import PromptBuilder, Rows
from training.codebooks import LATENT, Basis, ear_metric, k_means, quantize
from training.codec import build
from training.conversations import IGNORE, VOICE_WEIGHT, Sampler, Speech, tokenizer
from training.export import UNREAD, shrink
from training.model import GUIDED, NOISE, Trainee, misheard
from training.prompts import Layout, delayed
from training.settings import CODEBOOK_SIZE, CODEBOOKS, PACKAGE

TEXTS = ["Hello there.", "It's 5 o'clock!", "Yes, of course."]


@pytest.fixture(scope="module")
def layout() -> Layout:
    return Layout(tokenizer())


def some_speech() -> Speech:
    """Three texts for each of the four voices, a frame and a half a letter, with made-up codes and alignments."""
    rng = np.random.default_rng(1)
    texts = TEXTS * 4
    lengths = [3 * len(text) // 2 for text in texts]
    return Speech(
        texts=texts,
        voices=[voice for voice in ("slt", "rms", "awb", "kal16") for _ in TEXTS],
        codes=rng.integers(0, CODEBOOK_SIZE, (CODEBOOKS, sum(lengths))).astype(np.uint8),
        frame_letter=np.concatenate([np.arange(n) * 2 // 3 for n in lengths]).astype(np.uint8),
        frame_phone=rng.integers(0, 40, sum(lengths)).astype(np.uint8),
        letter_sound=rng.integers(0, 300, sum(map(len, texts))).astype(np.int16),
        frames=np.cumsum([0, *lengths]),
        letters=np.cumsum([0, *map(len, texts)]),
        by_voice={voice: list(range(3 * n, 3 * n + 3)) for n, voice in enumerate(("slt", "rms", "awb", "kal16"))},
        held_out=[],
        spelled=[(text, rng.integers(0, 300, len(text)).astype(np.int16)) for text in TEXTS],
    )


def test_a_conversation_is_laid_out_as_the_engine_lays_it_out(layout: Layout) -> None:
    loaded = load("nano", device="cpu", dtype="float32")
    builder = PromptBuilder(loaded.tokenizer, loaded.model.config)
    rng = np.random.default_rng(2)
    spoken = [(text, rng.integers(0, CODEBOOK_SIZE, (CODEBOOKS, 12)).astype(np.int16)) for text in TEXTS]
    theirs = Rows.concat(
        [
            builder.prefix("Generate audio following instruction.", "A phone call.", ("SPEAKER0: feminine",), ()),
            *(builder.exchange(text, codes) for text, codes in spoken),
        ]
    )
    ids, rows = layout.system("A phone call.\n\nSPEAKER0: feminine"), []
    for text, codes in spoken:
        rows.append(delayed(codes.astype(np.int64)))
        ids += layout.exchange(text, len(rows[-1])).ids
    np.testing.assert_array_equal(theirs.codes[theirs.audio], np.concatenate(rows))
    assert [token for token, audio in zip(theirs.tokens, theirs.audio, strict=True) if not audio] == [
        token for token in ids if token not in (layout.row, layout.tail_row)
    ]
    assert theirs.audio.tolist() == [token in (layout.row, layout.tail_row) for token in ids]


def test_the_forward_pass_is_the_class_s_own(layout: Layout) -> None:
    torch.manual_seed(0)
    trainee = Trainee(len(tokenizer()), 301, 40).eval()
    batch = Sampler(some_speech(), layout).batch(random.Random(3), size=2, length=400)
    with torch.no_grad():
        asked = [(layer, head, batch.guided) for layer, head, _ in GUIDED]
        states, looks = trainee.states(batch.ids, batch.audio, batch.rows, asked)
        hidden = trainee.higgs.model.norm(states[-1]).view(2, 400, -1)
        ours = trainee.higgs.audio_lm_head(hidden)
        at = 0
        for number, ids in enumerate(batch.ids):
            count = int(((ids == layout.row) | (ids == layout.tail_row)).sum())
            rows = batch.rows[at : at + count][None]
            at += count
            theirs = trainee.higgs(
                input_ids=ids[None],
                audio_input_ids=rows,
                audio_input_ids_mask=torch.ones(rows.shape[:2], dtype=torch.bool),
            ).logits[0]
            torch.testing.assert_close(ours[number], theirs.view(ours[number].shape), atol=2e-4, rtol=1e-3)
    assert len(looks) == len(GUIDED)
    assert all(torch.allclose(look.exp().sum(-1), torch.ones(look.shape[:2])) for look in looks)


def test_a_frame_is_told_to_look_at_its_own_letter(layout: Layout) -> None:
    speech = some_speech()
    one = Sampler(speech, layout).conversation(random.Random(5), 300)
    ids, rows, frames, letters = one.ids, one.rows, one.frames, one.letters
    is_row = np.isin(ids, [layout.row, layout.tail_row])
    assert is_row.sum() == len(rows)
    for query, letter, further, _ in frames:
        assert is_row[query]
        assert letter <= further < query
        assert not is_row[letter]
    spelled = tokenizer().decode([ids[at] for at in sorted({letter for _, letter, _, _ in frames})])
    told = [text.lower() for text in TEXTS]
    assert spelled in {a + b + c + d for a in told for b in ("", *told) for c in ("", *told) for d in ("", *told)}
    assert all(not is_row[at] for at, _ in letters)


def test_of_two_voices_each_place_is_told_whose_it_is(layout: Layout) -> None:
    sampler, letters = Sampler(some_speech(), layout), tokenizer()
    checked = set()
    for seed in range(40):
        one = sampler.conversation(random.Random(seed), 600)
        is_row = np.isin(one.ids, [layout.row, layout.tail_row])
        if not one.turns:
            continue
        number = {place: letters.decode([one.ids[at]]) for place, at in one.tags}
        assert set(number.values()) <= {"0", "1"}
        assert {place for place in number if is_row[place]} == set(np.flatnonzero(is_row))
        voices = {}
        for row, voice, known in one.turns:
            assert is_row[row]
            assert known.any()
            assert not known[row:].any()
            assert {number[place] for place in np.flatnonzero(known)} == {number[row]}
            voices.setdefault(number[row], set()).add(voice)
            checked |= {bool(is_row[place]) for place in np.flatnonzero(known)}
        assert all(len(names) == 1 for names in voices.values())
        assert all(place > at for place, at in one.tags)
    assert checked == {True, False}  # rows heard before, and letters of descriptions


def test_a_description_s_letters_belong_to_its_speaker(layout: Layout) -> None:
    ids = layout.system("A phone call.\n\nSPEAKER0: feminine\nSPEAKER1: masculine; scottish")
    sampler, letters = Sampler(some_speech(), layout), tokenizer()
    found = sampler.described(ids, 2)
    for speaker, told in enumerate(("feminine", "masculine; scottish")):
        assert letters.decode([ids[at] for at, number, _ in found if number == speaker]) == told
        assert {letters.decode([ids[at]]) for _, number, at in found if number == speaker} == {str(speaker)}


def test_speakers_are_in_the_loss(layout: Layout) -> None:
    torch.manual_seed(0)
    trainee = Trainee(len(tokenizer()), 301, 40)
    sampler = Sampler(some_speech(), layout)
    batch = sampler.batch(random.Random(3), size=4, length=400)
    assert set(batch.voices.unique().tolist()) <= {*range(len(VOICE_WEIGHT)), IGNORE}
    losses = trainee.losses(batch)
    for name in ("tag", "turn", "voice"):
        assert math.isfinite(losses[name].item())
        assert losses[name].item() > 0
    (losses["tag"] + losses["turn"] + losses["voice"]).backward()
    assert trainee.voice_head.weight.grad is not None
    batch.tagged.fill_(-1)
    batch.turns.fill_(-1)
    batch.voices.fill_(IGNORE)
    alone = trainee.losses(batch)  # a batch without two voices
    assert [alone[name].item() for name in ("tag", "turn", "voice")] == [0, 0, 0]


def test_what_is_drawn_at_a_step_repeats(layout: Layout) -> None:
    one, other = (Sampler(some_speech(), layout).batch(random.Random("19-7"), 2, 300) for _ in range(2))
    assert torch.equal(one.ids, other.ids)
    assert torch.equal(one.rows, other.rows)
    assert torch.equal(one.spelled[0], other.spelled[0])


def test_some_codes_are_misheard_and_the_streams_edges_never() -> None:
    rows = torch.from_numpy(delayed(np.random.default_rng(0).integers(0, CODEBOOK_SIZE, (CODEBOOKS, 4000))))
    one, other = (misheard(rows, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one, other)
    replaced = one >= 0
    assert replaced.float().mean().item() == pytest.approx(NOISE, rel=0.1)
    assert int(rows[replaced].max()) < CODEBOOK_SIZE
    assert int(one.max()) < CODEBOOK_SIZE


def some_books() -> tuple[Basis, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A basis, metrics, books, and latents [700, 160] that they fit more or less."""
    random = torch.Generator().manual_seed(2)
    components = torch.linalg.qr(torch.randn(320, LATENT, generator=random)).Q
    basis = Basis(torch.zeros(320), components, torch.tensor(0.5))
    metrics = torch.stack([torch.eye(LATENT), *[ear_metric(basis)] * 7])
    books = torch.randn(CODEBOOKS, CODEBOOK_SIZE, LATENT, generator=random) * 0.6 ** torch.arange(8)[:, None, None]
    return basis, metrics, books, torch.randn(700, LATENT, generator=random)


def test_the_class_finds_the_codes_that_training_computes() -> None:
    """A metric for each codebook, through the class's projections."""
    _, metrics, books, latents = some_books()
    quantizer = build(metrics, books).quantizer
    expected, left = quantize(latents, metrics, books)
    width = quantizer.quantizers[0].project_in.in_features
    with torch.no_grad():
        found = quantizer.encode(torch.nn.functional.pad(latents, (0, width - LATENT)).T[None], 1.6)[:, 0]
        decoded = quantizer.decode(expected[:, None])[0, :LATENT].T
    assert (found == expected).float().mean() > 0.999  # a tie may fall either way
    torch.testing.assert_close(latents - decoded, left, atol=1e-4, rtol=0)


def test_an_ear_hears_the_envelope_before_the_harmonics() -> None:
    basis = Basis(torch.zeros(320), torch.eye(320)[:, :LATENT], torch.tensor(1.0))  # latents: the first two spectra
    metric = ear_metric(basis)
    envelope, harmonics, high = torch.zeros(3, LATENT)
    envelope[8:12] = 1.0
    harmonics[8:12] = torch.tensor([1.0, -1.0, 1.0, -1.0])
    high[76:80] = 1.0
    heard = [float((metric @ wrong).norm()) for wrong in (envelope, high, harmonics)]
    assert heard[0] > 1.5 * heard[1] > 1.5 * heard[2]
    assert heard[2] == pytest.approx(float(harmonics.norm()), rel=1e-4)


def test_entries_that_are_fitted_anew_keep_their_numbers() -> None:
    """The model's tables know entries by number."""
    random = torch.Generator().manual_seed(4)
    entries = 10 * torch.randn(CODEBOOK_SIZE, 6, generator=random)
    points = (entries[:, None] + 0.1 * torch.randn(CODEBOOK_SIZE, 20, 6, generator=random)).flatten(0, 1)
    moved = k_means(points, random, entries + 0.05)
    assert (moved - entries).abs().max() < 0.3
    assert (moved - entries).pow(2).mean() < 0.05**2


def test_what_only_training_reads_takes_half_the_room(tmp_path: Path) -> None:
    """And the class loads it, in any type, and computes the same."""
    folder = tmp_path / "codec"
    shutil.copytree(PACKAGE / "codec", folder)
    path = folder / "model.safetensors"
    shrink(path)
    tensors = load_file(path)
    unread = [name for name in tensors if any(part in name for part in UNREAD)]
    assert sum(tensors[name].numel() for name in unread) > 1e6
    assert {tensors[name].dtype for name in unread} == {torch.float8_e4m3fn}
    assert {tensor.dtype for name, tensor in tensors.items() if name not in unread} == {torch.float16}
    one, other = (
        HiggsAudioV2TokenizerModel.from_pretrained(each, dtype=torch.float32) for each in (PACKAGE / "codec", folder)
    )
    assert {value.dtype for value in other.state_dict().values()} == {torch.float32}
    for name, value in one.state_dict().items():
        if name in unread:
            value.normal_()  # whatever it is, nothing reads it
    sound = torch.randn(1, 1, 12 * 960, generator=torch.Generator().manual_seed(0)) * 0.1
    with torch.no_grad():
        codes = [codec.encode(sound, return_dict=False) for codec in (one, other)]
        assert torch.equal(*codes)
        assert torch.equal(*(codec.decode(codes[0], return_dict=False) for codec in (one, other)))


def test_the_checkpoint_is_small() -> None:
    assert sum(path.stat().st_size for path in PACKAGE.rglob("*") if path.is_file()) <= 40e6
