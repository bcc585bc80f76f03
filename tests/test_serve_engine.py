"""The documented API: names, defaults, the delay pattern over joins, the buffers, and the documented examples as they stand."""

from __future__ import annotations

import asyncio
import base64
import gc
import inspect
import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from higgs_voice.audio import HOP, load_clip, write_wav  # noqa: E402
from higgs_voice.backends.fake import FakeSynthesizer  # noqa: E402
from higgs_voice.backends.local import LocalSynthesizer  # noqa: E402
from higgs_voice.conversation.synthesizer import FinishReason, SpeakRequest  # noqa: E402
from higgs_voice.errors import ClipError, ModelNotFoundError, SettingsError  # noqa: E402
from higgs_voice.model.delay import build_delay  # noqa: E402
from higgs_voice.serve_engine import (  # noqa: E402
    AudioContent,
    ChatMLSample,
    HiggsAudioServeEngine,
    HiggsAudioStreamerDelta,
    Message,
    StreamingVoiceGenerator,
    TextContent,
    revert_delay_pattern,
)

BOS, EOS = 1024, 1025


def serve_over(engine: FakeSynthesizer) -> HiggsAudioServeEngine:
    """A serve engine with no model behind it."""
    serve = HiggsAudioServeEngine.__new__(HiggsAudioServeEngine)
    serve._open(engine)
    return serve


@pytest.fixture
def fake() -> FakeSynthesizer:
    return FakeSynthesizer(frames_per_event=1)


@pytest.fixture
def serve(fake: FakeSynthesizer) -> Iterator[HiggsAudioServeEngine]:
    with serve_over(fake) as engine:
        yield engine


@pytest.fixture(scope="module")
def nano() -> Iterator[HiggsAudioServeEngine]:
    with HiggsAudioServeEngine("nano", "nano", device="cpu") as engine:
        yield engine


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "clip.wav"
    tone = 8000 * np.sin(np.arange(24000) * 2 * np.pi * 220 / 24000)
    write_wav(path, tone.astype("<i2").tobytes())
    return path


async def deltas_of(stream: AsyncIterator[HiggsAudioStreamerDelta]) -> list[HiggsAudioStreamerDelta]:
    return [delta async for delta in stream]


def rows_of(deltas: list[HiggsAudioStreamerDelta]) -> list[torch.Tensor]:
    return [delta.audio_tokens for delta in deltas if delta.audio_tokens is not None]


def kept(rows: list[torch.Tensor], codebook_size: int = BOS) -> np.ndarray:
    """What documented example 4 keeps: [K, T]."""
    return revert_delay_pattern(torch.stack(rows, dim=1)).clip(0, codebook_size - 1)[:, 1:-1].numpy()


# Names and defaults


def test_streaming_has_the_documented_parameters() -> None:
    parameters = inspect.signature(HiggsAudioServeEngine.generate_streaming_with_context).parameters
    assert [(p.name, p.default) for p in parameters.values()][1:] == [
        ("text_chunks", inspect.Parameter.empty),
        ("scene_prompt", None),
        ("speaker_descriptions", None),
        ("ref_audio_paths", None),
        ("generation_chunk_buffer_size", 5),
        ("max_new_tokens", 2048),
        ("temperature", 0.7),
        ("top_k", None),
        ("top_p", 0.95),
        ("stop_strings", None),
        ("force_audio_gen", True),
        ("ras_win_len", 7),
        ("ras_win_max_num_repeat", 2),
        ("seed", None),
    ]
    assert inspect.isasyncgenfunction(HiggsAudioServeEngine.generate_streaming_with_context)


def test_the_other_names_have_the_documented_parameters() -> None:
    def names(call: Any) -> list[str]:
        return list(inspect.signature(call).parameters)

    constructor = [
        "model_name_or_path",
        "audio_tokenizer_name_or_path",
        "tokenizer_name_or_path",
        "device",
        "torch_dtype",
    ]
    assert names(HiggsAudioServeEngine) == [*constructor, "kv_cache_lengths"]
    generate = ["self", "chat_ml_sample", "max_new_tokens", "temperature", "top_k", "top_p", "stop_strings"]
    generate += ["force_audio_gen", "ras_win_len", "ras_win_max_num_repeat", "seed"]
    assert names(HiggsAudioServeEngine.generate) == generate
    assert names(HiggsAudioServeEngine.generate_delta_stream) == generate
    voice = ["serve_engine", "scene_prompt", "speaker_descriptions", "ref_audio_paths", "generation_chunk_buffer_size"]
    assert names(StreamingVoiceGenerator) == voice
    assert names(HiggsAudioStreamerDelta) == ["text", "text_tokens", "audio_tokens", "finish_reason"]


# The delay pattern


def delayed(*chunks: np.ndarray) -> torch.Tensor:
    rows = [build_delay(codes.astype(np.int16), bos=BOS, eos=EOS) for codes in chunks]
    return torch.from_numpy(np.concatenate(rows).T.astype(np.int64))


@pytest.mark.parametrize("lengths", [(1,), (5,), (30,), (1, 1), (3, 40, 2), (20, 7, 8, 9)])
def test_reverting_gives_the_chunks_one_after_another(lengths: tuple[int, ...]) -> None:
    rng = np.random.default_rng(sum(lengths))
    chunks = [rng.integers(0, BOS, (8, length)) for length in lengths]
    codes = revert_delay_pattern(delayed(*chunks)).clip(0, BOS - 1)[:, 1:-1]
    assert np.array_equal(codes.numpy(), np.concatenate(chunks, axis=1))


def test_reverting_is_not_taken_in_by_codes_that_look_like_a_beginning() -> None:
    chunks = [np.zeros((8, 30)), np.full((8, 30), BOS - 1), np.full((8, 9), 7)]
    codes = revert_delay_pattern(delayed(*chunks)).clip(0, BOS - 1)[:, 1:-1]
    assert np.array_equal(codes.numpy(), np.concatenate(chunks, axis=1))


def test_reverting_a_stretch_from_the_middle_gives_its_frames() -> None:
    chunk = np.random.default_rng(0).integers(0, BOS, (8, 60))
    stretch = delayed(chunk)[:, 11:41]
    assert np.array_equal(revert_delay_pattern(stretch).numpy(), chunk[:, 10:33])


def test_every_stretch_of_a_stream_can_be_reverted() -> None:
    """A player that cuts the stream into pieces of 64 rows meets joins anywhere."""
    rng = np.random.default_rng(1)
    chunks = [rng.integers(0, BOS, (8, length)) for length in (12, 3, 30)]
    stream, codes = delayed(*chunks), np.concatenate(chunks, axis=1)
    frames = {tuple(column) for column in codes.T}
    for begin in range(0, stream.shape[1], 2):
        for end in range(begin + 1, stream.shape[1] + 1, 3):
            found = revert_delay_pattern(stream[:, begin:end])[:, 1:-1].numpy()
            assert {tuple(column) for column in found.T} <= frames, (begin, end)


def test_too_few_columns_are_no_frame() -> None:
    assert revert_delay_pattern(torch.zeros((8, 7), dtype=torch.int64)).shape == (8, 0)
    with pytest.raises(SettingsError, match="codebooks, length"):
        revert_delay_pattern(torch.zeros(8, dtype=torch.int64))


# Streaming


async def test_deltas_are_the_chunks_delayed_rows(serve: HiggsAudioServeEngine, fake: FakeSynthesizer) -> None:
    texts = ["Hello there.", "A", "And this is the last one."]
    deltas = await deltas_of(serve.generate_streaming_with_context(texts))
    codes = [fake.codes_for(text, max(2, round(len(text) * 1.5))) for text in texts]
    expected = np.concatenate([build_delay(item, bos=BOS, eos=EOS) for item in codes])
    assert np.array_equal(torch.stack(rows_of(deltas)).numpy(), expected)
    assert np.array_equal(kept(rows_of(deltas)), np.concatenate(codes, axis=1))
    assert all(delta.text is None and delta.text_tokens is None for delta in deltas)
    assert all(row.shape == (8,) and row.dtype == torch.int64 for row in rows_of(deltas))


async def test_rows_come_with_the_frames(fake: FakeSynthesizer) -> None:
    """No row waits for a later one: each frame brings a row."""
    frames: list[int] = []
    fake = FakeSynthesizer(frames_per_event=1, pace=lambda request, sent: frames.append(sent))
    with serve_over(fake) as serve:
        stream = serve.generate_streaming_with_context(["Hello there, you."])
        for number in range(1, 12):
            await anext(stream)
            assert len(frames) == max(1, number - 1)
        await stream.aclose()


async def test_finish_reason_is_on_the_last_delta_only(serve: HiggsAudioServeEngine) -> None:
    deltas = await deltas_of(serve.generate_streaming_with_context(["One here.", "Two here.", " "]))
    assert [delta.finish_reason for delta in deltas] == [None] * (len(deltas) - 1) + ["stop"]
    assert deltas[-1].audio_tokens is not None
    assert [delta.finish_reason for delta in await deltas_of(serve.generate_streaming_with_context([" ", ""]))] == [
        "stop"
    ]


async def test_the_prompt_is_the_documented_one(serve: HiggsAudioServeEngine, fake: FakeSynthesizer) -> None:
    texts = [f"Number {number}." for number in range(5)]
    stream = serve.generate_streaming_with_context(
        texts,
        scene_prompt="Quiet room.",
        speaker_descriptions=["SPEAKER0: warm", "SPEAKER1: deep"],
        generation_chunk_buffer_size=2,
        seed=3,
        temperature=0.0,
        ras_win_len=None,
        top_k=20,
        max_new_tokens=500,
    )
    await deltas_of(stream)
    heard = [[item.text for item in request.context.exchanges] for request in fake.requests]
    assert heard == [texts[max(0, place - 2) : place] for place in range(5)]
    for request in fake.requests:
        assert request.context.voice.system == "Generate audio following instruction."
        assert request.context.voice.scene == "Quiet room.\n\nSPEAKER0: warm\nSPEAKER1: deep"
        assert request.context.voice is fake.requests[0].context.voice
        sampling = request.sampling
        assert (sampling.seed, sampling.temperature, sampling.ras_win_len, sampling.top_k) == (3, 0.0, None, 20)
        assert (sampling.max_new_tokens, request.pcm) == (500, False)
    assert len({request.session_id for request in fake.requests}) == 1
    nexts = [
        request.next_context and [item.text for item in request.next_context.exchanges] for request in fake.requests
    ]
    assert nexts == [None, None, texts[1:2], texts[2:3], texts[3:4]]


async def test_one_description_becomes_a_speaker_line(serve: HiggsAudioServeEngine, fake: FakeSynthesizer) -> None:
    await deltas_of(serve.generate_streaming_with_context(["Hi."], speaker_descriptions="masculine;professional"))
    assert fake.requests[0].context.voice.scene == "SPEAKER0: masculine;professional"


@pytest.mark.parametrize(("size", "left"), [(0, []), (1, ["c."]), (None, ["a.", "b.", "c."])])
async def test_buffers_hold_what_is_in_the_context(
    serve: HiggsAudioServeEngine, fake: FakeSynthesizer, size: int | None, left: list[str]
) -> None:
    generator = StreamingVoiceGenerator(serve, generation_chunk_buffer_size=size)
    await deltas_of(generator.generate_streaming(["a.", "b."]))
    await deltas_of(generator.generate_streaming(["c."]))
    assert [message.content for message in generator.generation_messages[::2]] == left
    assert [message.role for message in generator.generation_messages] == ["user", "assistant"] * len(left)
    expected = [fake.codes_for(text, 3) for text in left]
    assert all(np.array_equal(a.numpy(), b) for a, b in zip(generator.generated_audio_ids, expected, strict=True))


async def test_emptied_buffers_begin_a_new_context(serve: HiggsAudioServeEngine, fake: FakeSynthesizer) -> None:
    generator = StreamingVoiceGenerator(serve)
    await deltas_of(generator.generate_streaming(["One.", "Two."]))
    generator.generated_audio_ids.clear()
    generator.generation_messages = []
    await deltas_of(generator.generate_streaming(["Three.", "Four."]))
    assert [[item.text for item in request.context.exchanges] for request in fake.requests[2:]] == [[], ["Three."]]
    generator.generation_messages.clear()
    with pytest.raises(SettingsError, match="buffers do not fit"):
        await deltas_of(generator.generate_streaming(["Five."]))


async def test_text_chunks_may_be_an_async_iterator(serve: HiggsAudioServeEngine, fake: FakeSynthesizer) -> None:
    asked: list[int] = []

    async def source() -> AsyncIterator[str]:
        for number in range(3):
            asked.append(len(fake.requests))
            yield f"Part {number}."

    deltas = await deltas_of(serve.generate_streaming_with_context(source()))
    assert asked == [0, 1, 2]
    assert [request.text for request in fake.requests] == ["Part 0.", "Part 1.", "Part 2."]
    assert [delta.finish_reason for delta in deltas if delta.finish_reason] == ["stop"]


async def test_one_string_is_one_chunk(serve: HiggsAudioServeEngine, fake: FakeSynthesizer) -> None:
    await deltas_of(serve.generate_streaming_with_context("Not a list."))
    assert [request.text for request in fake.requests] == ["Not a list."]


async def test_leaving_the_loop_stops_the_model(serve: HiggsAudioServeEngine, fake: FakeSynthesizer) -> None:
    stream = serve.generate_streaming_with_context(["A long text that would take a while to say.", "More."])
    async for _ in stream:
        break
    assert fake.active
    del stream
    gc.collect()
    while fake.active:
        await asyncio.sleep(0)
    assert fake.steps < 10


async def test_closing_the_stream_has_stopped_the_model_when_it_returns(
    serve: HiggsAudioServeEngine, fake: FakeSynthesizer
) -> None:
    for stream in (
        serve.generate_streaming_with_context(["A long text that would take a while to say.", "More."]),
        serve.generate_delta_stream(ChatMLSample([Message("user", "A long text that would take a while to say.")])),
    ):
        await anext(stream)
        assert fake.active
        await stream.aclose()
        assert not fake.active


async def test_what_a_guard_stopped_is_not_kept(caplog: pytest.LogCaptureFixture) -> None:
    def script(request: SpeakRequest) -> FinishReason | None:
        return {"Bad.": FinishReason.RUNAWAY, "None.": FinishReason.COLLAPSE}.get(request.text)

    fake = FakeSynthesizer(script=script)
    with serve_over(fake) as serve:
        generator = StreamingVoiceGenerator(serve)
        deltas = await deltas_of(generator.generate_streaming(["Good.", "Bad.", "None.", "Fine.", "Bad."]))
        assert [message.content for message in generator.generation_messages[::2]] == ["Good.", "Fine."]
        assert deltas[-1].finish_reason == "runaway"
        assert "scripted" in caplog.text
        # Its sound was given out all the same, and joins to what follows.
        assert kept(rows_of(deltas)).shape == (8, 8 + 6 + 8 + 6)
        (only,) = await deltas_of(generator.generate_streaming(["None."]))
        assert (only.audio_tokens, only.finish_reason) == (None, "collapse")


async def test_a_context_beyond_the_models_limit_is_cut(caplog: pytest.LogCaptureFixture) -> None:
    fake = FakeSynthesizer(max_positions=600)
    with serve_over(fake) as serve:
        texts = ["This is a text of forty characters, okay."] * 8
        await deltas_of(serve.generate_streaming_with_context(texts, generation_chunk_buffer_size=None))
    counts = [len(request.context.exchanges) for request in fake.requests]
    assert max(counts) < 7
    assert counts[-1] > 0
    assert "positions" in caplog.text
    for request in fake.requests:
        assert fake.count_rows(request.context, request.text) < 600


async def test_what_has_no_effect_is_said_once(serve: HiggsAudioServeEngine, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        stream = serve.generate_streaming_with_context(
            ["Hi."], stop_strings=["<|eot_id|>", "STOP"], force_audio_gen=False
        )
        assert rows_of(await deltas_of(stream))
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(said) == 2
    assert "'STOP'" in said[0]
    assert "eot_id" not in said[0]
    assert "force_audio_gen" in said[1]


@pytest.mark.parametrize("wrong", [{"temperature": -1}, {"top_p": 2}, {"seed": -5}, {"max_new_tokens": 0}])
async def test_wrong_settings_are_one_error(serve: HiggsAudioServeEngine, wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=next(iter(wrong))):
        await deltas_of(serve.generate_streaming_with_context(["Hi."], **wrong))


async def test_a_window_of_zero_turns_ras_off_as_in_the_original(
    serve: HiggsAudioServeEngine, fake: FakeSynthesizer
) -> None:
    await deltas_of(serve.generate_streaming_with_context(["Hi."], ras_win_len=0, top_k=0))
    assert (fake.requests[0].sampling.ras_win_len, fake.requests[0].sampling.top_k) == (None, None)


# Clips


async def test_a_clips_transcript_stands_beside_it(
    serve: HiggsAudioServeEngine, fake: FakeSynthesizer, clip: Path, caplog: pytest.LogCaptureFixture
) -> None:
    generator = await asyncio.to_thread(StreamingVoiceGenerator, serve, ref_audio_paths=[str(clip)])
    assert "transcript" in caplog.text
    assert [message.role for message in generator.base_messages] == ["system", "user", "assistant"]
    assert generator.ref_audio_ids[0].shape == (8, 25)
    clip.with_suffix(".txt").write_text(" A tone.\n")
    caplog.clear()
    await deltas_of(serve.generate_streaming_with_context(["Hi."], ref_audio_paths=[str(clip)]))
    assert not caplog.text
    (reference,) = fake.requests[0].context.voice.references
    assert reference.text == "A tone."
    assert np.array_equal(reference.codes, generator.ref_audio_ids[0].numpy())


async def test_several_clips_are_several_speakers(
    serve: HiggsAudioServeEngine, fake: FakeSynthesizer, clip: Path
) -> None:
    clip.with_suffix(".txt").write_text("A tone.")
    await deltas_of(serve.generate_streaming_with_context(["[SPEAKER1] Hi."], ref_audio_paths=[str(clip)] * 2))
    texts = [item.text for item in fake.requests[0].context.voice.references]
    assert texts == ["[SPEAKER0] A tone.", "[SPEAKER1] A tone."]
    assert fake.requests[0].text == "[SPEAKER1] Hi."


async def test_a_clip_that_is_not_there_is_one_error(serve: HiggsAudioServeEngine, tmp_path: Path) -> None:
    with pytest.raises(ClipError, match=r"no\.wav"):
        await deltas_of(serve.generate_streaming_with_context(["Hi."], ref_audio_paths=[str(tmp_path / "no.wav")]))


# Conversations


def test_a_conversation_becomes_system_clips_and_text(
    serve: HiggsAudioServeEngine, fake: FakeSynthesizer, clip: Path
) -> None:
    raw = base64.b64encode(clip.read_bytes()).decode()
    sample = ChatMLSample(
        messages=[
            Message("system", "Speak well.\n\n<|scene_desc_start|>\nA hall.\nSPEAKER0: warm\n<|scene_desc_end|>"),
            Message("user", [TextContent("A "), "tone."]),
            Message("assistant", AudioContent(audio_url="", raw_audio=raw, duration=0.6)),
            Message("user", "Another."),
            Message("assistant", [AudioContent(audio_url=str(clip))]),
            Message("user", TextContent("Say this.")),
        ]
    )
    response = serve.generate(sample, max_new_tokens=100, seed=1)
    (request,) = fake.requests
    voice = request.context.voice
    assert (voice.system, voice.scene) == ("Speak well.", "A hall.\nSPEAKER0: warm")
    assert [(item.text, item.frames) for item in voice.references] == [("A tone.", 15), ("Another.", 25)]
    assert (request.text, request.sampling.seed, request.context.exchanges) == ("Say this.", 1, ())
    frames = round(len("Say this.") * 1.5)
    assert response.audio is not None
    assert response.audio.shape == (frames * HOP,)
    assert response.generated_audio_tokens is not None
    assert response.generated_audio_tokens.shape == (8, frames + 9)
    assert response.sampling_rate == 24000
    assert response.generated_text == ""
    assert response.usage is not None
    assert response.usage["completion_tokens"] == frames + 9


@pytest.mark.parametrize(
    ("system", "parts"),
    [
        (None, (None, None)),
        ("Be calm.", ("Be calm.", None)),
        ("<|scene_desc_start|>A hall.<|scene_desc_end|>", ("", "A hall.")),
        (
            "Go.\n\n<|scene_desc_start|>A hall.\n\n  SPEAKER0: x\n<|scene_desc_end|>",
            ("Go.", "A hall.\n\n  SPEAKER0: x"),
        ),
        ("Go.<|scene_desc_start|>a<|scene_desc_end|>b<|scene_desc_end|>", ("Go.", "a<|scene_desc_end|>b")),
        ("Go.<|scene_desc_start|>never closed", ("Go.", "never closed")),
    ],
)
async def test_the_scene_is_taken_out_of_the_system_message(
    serve: HiggsAudioServeEngine, fake: FakeSynthesizer, system: str | None, parts: tuple[str | None, str | None]
) -> None:
    messages = [Message("system", system)] if system is not None else []
    stream = serve.generate_delta_stream(ChatMLSample([*messages, Message("user", "Hi.")]))
    deltas = await deltas_of(stream)
    voice = fake.requests[0].context.voice
    assert (voice.system, voice.scene) == parts
    assert deltas[-1].finish_reason == "stop"
    assert kept(rows_of(deltas)).shape == (8, 4)


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([], "ends with the user message"),
        ([Message("system", "x")], "ends with the user message"),
        ([Message("user", "a"), Message("user", "b")], "user followed by user"),
        ([Message("user", "a"), Message("assistant", "words"), Message("user", "b")], "exactly one AudioContent"),
        ([Message("user", AudioContent("x.wav"))], "audio in a user message"),
    ],
)
def test_another_shape_of_conversation_is_one_error(
    serve: HiggsAudioServeEngine, messages: list[Message], says: str
) -> None:
    with pytest.raises(SettingsError, match=says):
        serve.generate(ChatMLSample(messages))


def test_sound_of_a_conversation_that_is_no_sound_is_one_error(serve: HiggsAudioServeEngine) -> None:
    for content, says in [
        (AudioContent(""), "needs its audio"),
        (AudioContent("", raw_audio="***"), "base64"),
        (AudioContent("", raw_audio=base64.b64encode(b"no sound").decode()), "not audio"),
    ]:
        sample = ChatMLSample([Message("user", "a"), Message("assistant", content), Message("user", "b")])
        with pytest.raises(ClipError, match=says):
            serve.generate(sample)


async def test_generate_may_be_called_inside_a_loop(serve: HiggsAudioServeEngine) -> None:
    assert serve.generate(ChatMLSample([Message("user", "Hi.")])).audio is not None


def test_the_codec_is_strict_about_shapes(serve: HiggsAudioServeEngine) -> None:
    assert serve.audio_tokenizer.decode(torch.zeros((1, 8, 0), dtype=torch.int64)).shape == (1, 1, 0)
    assert serve.audio_tokenizer.decode(torch.zeros((1, 8, 3), dtype=torch.int64)).shape == (1, 1, 3 * HOP)
    with pytest.raises(SettingsError, match="1, 8, frames"):
        serve.audio_tokenizer.decode(torch.zeros((2, 8, 3), dtype=torch.int64))
    with pytest.raises(SettingsError, match="rate"):
        serve.audio_tokenizer.encode(np.zeros(24000))


def test_a_closed_engine_frees_its_threads(fake: FakeSynthesizer) -> None:
    import threading

    before = threading.active_count()
    serve = serve_over(fake)
    serve.close()
    serve.close()
    other = serve_over(FakeSynthesizer())
    del other
    gc.collect()
    assert threading.active_count() == before


# The embedded voice


def test_an_engine_that_cannot_be_is_one_error() -> None:
    with pytest.raises(ModelNotFoundError, match="no-such-model"):
        HiggsAudioServeEngine("no-such-model", "nano")
    if not torch.cuda.is_available():
        with pytest.raises(SettingsError, match="cuda"):
            HiggsAudioServeEngine("nano", "nano", device="cuda")


async def test_chunks_on_the_model_have_the_codes_of_full_prefills(nano: HiggsAudioServeEngine) -> None:
    """The state that is kept between chunks changes nothing: the same prompts, each prefilled from nothing."""
    settings: dict[str, Any] = {"temperature": 0.0, "ras_win_len": None, "max_new_tokens": 60}
    texts = ["Good morning.", "It is a fine day.", "Is it not?", "I think so."]
    generator = StreamingVoiceGenerator(nano, "A quiet room.", "warm", generation_chunk_buffer_size=2)
    kept_codes = []
    for text in texts:
        heard = list(generator.generation_messages), list(generator.generated_audio_ids)
        codes = kept(
            rows_of(await deltas_of(generator.generate_streaming([text], **settings))), nano.audio_codebook_size
        )
        other = StreamingVoiceGenerator(nano, "A quiet room.", "warm", generation_chunk_buffer_size=2)
        other.generation_messages, other.generated_audio_ids = heard
        alone = kept(rows_of(await deltas_of(other.generate_streaming([text], **settings))), nano.audio_codebook_size)
        assert np.array_equal(codes, alone)
        kept_codes.append(codes)
    assert all(codes.shape[1] > 5 for codes in kept_codes)
    assert len(generator.generated_audio_ids) == 2


async def test_the_buffer_follows_the_memory_where_asked() -> None:
    settings: dict[str, Any] = {"temperature": 0.0, "ras_win_len": None, "max_new_tokens": 40}
    texts = [f"This is sentence number {word}." for word in ("one", "two", "three", "four", "five", "six")]
    kept = {}
    for rows in (640, 4096):
        with serve_over(LocalSynthesizer("nano", max_rows=rows)) as engine:
            generator = StreamingVoiceGenerator(engine, generation_chunk_buffer_size="auto")
            await deltas_of(generator.generate_streaming(texts, **settings))
            assert len(generator.generation_messages) == 2 * len(generator.generated_audio_ids)
            kept[rows] = len(generator.generated_audio_ids)
    assert kept[4096] == 6
    assert 1 <= kept[640] < 6


async def test_a_buffer_size_is_a_number_or_auto(serve: HiggsAudioServeEngine) -> None:
    with pytest.raises(SettingsError, match="None or \"auto\", not 'many'"):
        await deltas_of(serve.generate_streaming_with_context(["Hi."], generation_chunk_buffer_size="many"))  # type: ignore[arg-type]


def test_a_seed_repeats_on_the_model(nano: HiggsAudioServeEngine) -> None:
    sample = ChatMLSample(
        [Message("system", "Generate audio following instruction."), Message("user", "Good morning.")]
    )
    one, two, three = (nano.generate(sample, max_new_tokens=40, seed=seed) for seed in (5, 5, 6))
    assert one.generated_audio_tokens is not None
    assert np.array_equal(one.generated_audio_tokens, two.generated_audio_tokens)
    assert not np.array_equal(one.generated_audio_tokens, three.generated_audio_tokens)


def test_the_codec_goes_both_ways_on_the_model(nano: HiggsAudioServeEngine, clip: Path) -> None:
    codes = nano.audio_tokenizer.encode(str(clip))
    assert torch.equal(codes, nano.audio_tokenizer.encode(load_clip(clip), 24000))
    assert codes.shape == (8, 25)
    assert nano.audio_tokenizer.decode(codes.unsqueeze(0)).shape == (1, 1, 25 * HOP)


# The documented examples, with nothing changed but import lines, model names, texts' number and the clip's path.

ONE = """
import asyncio
import torch
from higgs_voice.serve_engine import HiggsAudioServeEngine

async def main():
    serve_engine = HiggsAudioServeEngine(
        model_name_or_path="nano",
        audio_tokenizer_name_or_path="nano",
        device="cuda" if torch.cuda.is_available() else "cpu",
    )

    text_chunks = [
        "Hello, welcome to our show.",
        "Today we talk.",
        "Let us begin.",
    ]

    audio_tokens = []

    async for delta in serve_engine.generate_streaming_with_context(
        text_chunks=text_chunks,
        scene_prompt="Audio is recorded from a quiet room.",
        speaker_descriptions="masculine;moderate pitch;professional",
        generation_chunk_buffer_size=5,
        temperature=0.7,
    ):
        if delta.audio_tokens is not None:
            audio_tokens.append(delta.audio_tokens)
    return audio_tokens

audio_tokens = asyncio.run(main())
"""

TWO = """
import asyncio

text_chunks = ["Hello, welcome.", "This is it."]
audio_tokens = []

async def main():
    async for delta in serve_engine.generate_streaming_with_context(
        text_chunks=text_chunks,
        scene_prompt="Audio is recorded from a quiet room.",
        ref_audio_paths=["reference_voice.wav"],
        generation_chunk_buffer_size=5,
        temperature=0.3,  # Lower temperature for more faithful cloning
    ):
        if delta.audio_tokens is not None:
            audio_tokens.append(delta.audio_tokens)
asyncio.run(main())
"""

THREE = """
import asyncio

audio_tokens = []
text_chunks = ["[SPEAKER0] Hello!", "[SPEAKER1] Hi, you."]
speaker_descriptions = [
    "SPEAKER0: feminine;warm;friendly",
    "SPEAKER1: masculine;deep;calm",
]
async def main():
    async for delta in serve_engine.generate_streaming_with_context(
        text_chunks=text_chunks,
        scene_prompt="Two people having a conversation in a quiet room.",
        speaker_descriptions=speaker_descriptions,
        generation_chunk_buffer_size=5,
        temperature=0.7,
    ):
        if delta.audio_tokens is not None:
            audio_tokens.append(delta.audio_tokens)
asyncio.run(main())
"""

FOUR = """
import torch
import soundfile as sf
from higgs_voice.serve_engine import revert_delay_pattern

if audio_tokens:
    # Stack tokens
    audio_tensor = torch.stack(audio_tokens, dim=1)

    # Revert delay pattern and clip to valid range
    vq_code = revert_delay_pattern(audio_tensor).clip(
        0, serve_engine.audio_codebook_size - 1
    )[:, 1:-1]

    # Decode to waveform
    waveform = serve_engine.audio_tokenizer.decode(vq_code.unsqueeze(0))[0, 0]

    # Save to file
    sf.write(
        "output.wav",
        waveform,
        serve_engine.audio_tokenizer.sampling_rate
    )
"""

SCRIPT = """
import asyncio
import numpy as np
import torch
from higgs_voice.serve_engine import revert_delay_pattern

async def main():
    audio_token_buffer = []
    chunk_size = 64  # Process audio every 64 tokens
    async for delta in serve_engine.generate_streaming_with_context(
        text_chunks=["Hello, welcome.", "This is it."], temperature=0.7, force_audio_gen=True
    ):
        if delta.text is not None:
            print(delta.text, end="", flush=True)
        if delta.audio_tokens is not None:
            audio_token_buffer.append(delta.audio_tokens)
            if len(audio_token_buffer) >= chunk_size:
                audio_chunk = torch.stack(audio_token_buffer[:chunk_size], dim=1)
                vq_code = revert_delay_pattern(audio_chunk).clip(0, serve_engine.audio_codebook_size - 1)[:, 1:-1]
                waveforms.append(serve_engine.audio_tokenizer.decode(vq_code.unsqueeze(0))[0, 0])
                audio_token_buffer = audio_token_buffer[chunk_size:]
    if audio_token_buffer:
        audio_chunk = torch.stack(audio_token_buffer, dim=1)
        vq_code = revert_delay_pattern(audio_chunk).clip(0, serve_engine.audio_codebook_size - 1)[:, 1:-1]
        waveforms.append(serve_engine.audio_tokenizer.decode(vq_code.unsqueeze(0))[0, 0])
waveforms = []
asyncio.run(main())
final_waveform = np.concatenate(waveforms)
"""


@pytest.fixture
def folder(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    clip.rename(tmp_path / "reference_voice.wav")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(code: str, **names: Any) -> dict[str, Any]:
    exec(compile(code, "<example>", "exec"), names)
    return names


def test_documented_example_1(folder: Path) -> None:
    rows = run(ONE)["audio_tokens"]
    assert kept(rows, 256).shape[1] == len(rows) - 3 * 9


@pytest.mark.parametrize("code", [TWO, THREE])
def test_documented_examples_2_and_3_and_their_waveform_by_4(
    code: str, folder: Path, nano: HiggsAudioServeEngine
) -> None:
    names = run(code + FOUR, serve_engine=nano)
    assert names["vq_code"].shape[1] == len(names["audio_tokens"]) - 2 * 9
    assert len(load_clip(folder / "output.wav")) == names["vq_code"].shape[1] * HOP


def test_the_documented_script_that_decodes_pieces_of_the_stream(folder: Path, nano: HiggsAudioServeEngine) -> None:
    assert run(SCRIPT, serve_engine=nano)["final_waveform"].size > HOP
