"""A session on the fake engine: order, barge-in, what was heard, words, errors, and that nothing is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
from collections.abc import AsyncGenerator, AsyncIterator

import numpy as np
import pytest
from numpy.typing import NDArray

from higgs_voice import PcmChunk, Reference, Sampling, SessionSettings, Voice, VoiceSession, Window, Word
from higgs_voice.backends.fake import FakeSynthesizer
from higgs_voice.conversation.context import Entry
from higgs_voice.conversation.session import MAX_BEHIND
from higgs_voice.conversation.speech import ChunkRecord, ChunkReport, Speech, SpeechOut
from higgs_voice.conversation.synthesizer import (
    AudioEvent,
    Codes,
    FinishedEvent,
    FinishReason,
    SpeakRequest,
    SpeechEvent,
)
from higgs_voice.errors import EngineClosedError, EngineDiedError, NoAudioError, SettingsError


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def session_of(engine: FakeSynthesizer, *, clock: Clock | None = None, **settings: object) -> VoiceSession:
    return VoiceSession(engine, settings=SessionSettings(**settings), clock=clock or Clock())


async def take(speech: Speech) -> list[SpeechOut]:
    return [item async for item in speech]


def sound(items: list[SpeechOut]) -> bytes:
    return b"".join(item.pcm for item in items if isinstance(item, PcmChunk))


def words(items: list[SpeechOut]) -> list[Word]:
    return [item for item in items if isinstance(item, Word)]


def reports(items: list[SpeechOut]) -> list[ChunkReport]:
    return [item for item in items if isinstance(item, ChunkReport)]


TURN = "Hello there, my friend. This is the second sentence of mine. And here comes a third one."


async def test_text_in_any_split_gives_the_same_speech() -> None:
    heard: list[bytes] = []
    for size in (1, 3, 1000):
        engine = FakeSynthesizer()
        async with session_of(engine) as session:
            speech = session.speak()
            for start in range(0, len(TURN), size):
                speech.feed(TURN[start : start + size])
            speech.end()
            heard.append(sound(await take(speech)))
    assert heard[0] == heard[1] == heard[2]
    assert len(heard[0]) > 24000


async def test_every_chunk_is_spoken_in_the_context_of_those_before_it() -> None:
    engine = FakeSynthesizer()
    async with session_of(engine) as session:
        await take(session.speak(TURN))
        contexts = [[item.text for item in request.context.exchanges] for request in engine.requests]
        texts = [request.text for request in engine.requests]
        assert len(texts) >= 3
        assert contexts == [texts[:count] for count in range(len(texts))]
        assert session.context_text.splitlines() == texts


async def test_a_sliding_window_is_announced_before_it_slides() -> None:
    engine = FakeSynthesizer()
    async with session_of(engine, window=Window.last_n(2)) as session:
        for text in ("First thing to say.", "Second thing to say.", "Third thing to say.", "Fourth thing to say."):
            await take(session.speak(text))
        assert [request.next_context is not None for request in engine.requests] == [False, False, True, True]
        announced = engine.requests[2].next_context
        assert announced is not None
        following = engine.requests[3].context.exchanges
        assert [item.text for item in announced.exchanges] == [item.text for item in following[:-1]]


async def test_stop_ends_the_iteration_at_once_and_the_engine_within_one_step() -> None:
    engine = FakeSynthesizer()
    async with session_of(engine) as session:
        speech = session.speak(TURN)
        got = 0
        async for item in speech:
            if isinstance(item, PcmChunk):
                got += 1
                if got == 3:
                    speech.stop()
                    break
        steps = engine.steps
        for _ in range(20):
            await asyncio.sleep(0)
        assert not engine.active
        assert engine.steps <= steps + 5


async def test_what_was_not_heard_leaves_no_trace() -> None:
    engine = FakeSynthesizer()
    async with session_of(engine) as session:
        first = session.speak("Good morning to you.")
        length = sum(item.duration_s for item in await take(first) if isinstance(item, PcmChunk))
        session.settle(first.id, length)
        before = session.context_text
        unheard = session.speak(TURN)
        await take(unheard)
        assert session.context_text != before
        unheard.stop()
        session.settle(unheard.id, 0.0)
        assert session.context_text == before


async def test_a_speech_cut_in_mid_word_keeps_the_words_and_codes_that_were_heard() -> None:
    engine = FakeSynthesizer()
    async with session_of(engine) as session:
        speech = session.speak("one two three four five six seven eight nine ten.")
        items = await take(speech)
        heard_s = 1.234
        speech.stop()
        session.settle(speech.id, heard_s)
        (kept,) = session.exchanges
        said = [word.text for word in words(items) if (word.start_s + word.end_s) / 2 <= heard_s]
        assert 2 <= len(said) < 10
        assert kept.text.rstrip(".") == " ".join(said)
        assert kept.frames == int(heard_s * 25)
        spoken = engine.requests[0].text
        assert np.array_equal(kept.codes, engine.codes_for(spoken, round(len(spoken) * 1.5))[:, : kept.frames])


async def test_an_exchange_that_was_heard_whole_stays_the_same_object() -> None:
    """Engines keep rows, digests and states by it: another one with the same codes would be prepared anew."""
    engine = FakeSynthesizer()
    async with session_of(engine) as session:
        speech = session.speak("One two three.")
        await take(speech)
        (made,) = session.exchanges
        session.settle(speech.id, speech.audio_s)
        assert session.exchanges[0] is made
        await take(session.speak("And four."))
        assert engine.requests[-1].context.exchanges[0] is made


async def test_text_and_codes_of_what_was_cut_differ_by_half_a_word_at_most() -> None:
    """Wherever it is cut: the model never hears words whose sound it does not have, nor the other way around."""
    engine = FakeSynthesizer()
    async with session_of(engine) as session:
        speech = session.speak("I unfortunately cannot remember extraordinarily long words.")
        items = await take(speech)
        (record,) = speech.records
        said = words(items)
        assert max(word.end_s - word.start_s for word in said) > 0.5
        for heard_s in np.arange(0.02, speech.audio_s, 0.02):
            kept = record.heard_exchange(float(heard_s), None)
            count = len(kept.text.split()) if kept is not None else 0
            text_ends = said[count - 1].end_s if count else 0.0
            sound_ends = kept.frames / 25 if kept is not None else heard_s
            longest = max(word.end_s - word.start_s for word in said[max(count - 1, 0) : count + 1])
            pause = said[count].start_s - text_ends if count < len(said) else speech.audio_s - text_ends
            assert text_ends - sound_ends <= longest / 2 + 0.04 + 1e-6
            assert sound_ends - text_ends <= longest / 2 + pause + 1e-6


async def test_stop_tells_the_engine_at_once_also_before_its_first_sound() -> None:
    """An engine in a long prefill sends nothing: a stop that waited for its next event would wait for all of it."""
    prefill: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    engine = FakeSynthesizer(pace=lambda *_: prefill)
    async with session_of(engine) as session:
        speech = session.speak(TURN)
        while not engine.active:
            await asyncio.sleep(0)
        speech.stop()
        assert engine._stopped == engine.active
        prefill.set_result(None)
        assert await take(speech) == []


async def test_the_framework_may_say_which_words_it_holds_for_spoken() -> None:
    engine = FakeSynthesizer()
    async with session_of(engine) as session:
        speech = session.speak("one two three four five six seven eight nine ten.")
        await take(speech)
        session.settle(speech.id, 1.0, words=3)
        assert session.context_text == "one two three"


@pytest.mark.parametrize("cut", [0.0, 0.01, 0.5, 1.9, 2.5, 4.0, 5.5, 100.0])
async def test_the_next_request_is_that_of_a_session_that_never_spoke_the_rest(cut: float) -> None:
    """Rule 3, at the level of requests: contexts compare equal, text by text and code by code."""

    async def next_request(*, run_ahead: bool) -> SpeakRequest:
        engine = FakeSynthesizer()
        async with session_of(engine, window=Window.last_n(2)) as session:
            first = session.speak("It is a fine day.")
            await take(first)
            session.settle(first.id, 1e9)
            second = session.speak(TURN)
            if run_ahead:
                await take(second)
                session.settle(second.id, cut)
            else:
                async for item in second:
                    if isinstance(item, PcmChunk) and item.start_s + item.duration_s >= min(cut, second_length - 0.01):
                        break
                session.settle(second.id, cut)
            await take(session.speak("And now?"))
            return engine.requests[-1]

    engine = FakeSynthesizer()
    async with session_of(engine) as session:
        second_length = sum(item.duration_s for item in await take(session.speak(TURN)) if isinstance(item, PcmChunk))
    ahead, stopped = await next_request(run_ahead=True), await next_request(run_ahead=False)
    ours, theirs = ahead.context.exchanges, stopped.context.exchanges
    if cut < second_length:
        assert [item.frames for item in ours] == [item.frames for item in theirs]
        assert all(np.array_equal(a.codes, b.codes) for a, b in zip(ours, theirs, strict=True))
        assert [item.text.split()[:1] for item in ours] == [item.text.split()[:1] for item in theirs]


async def test_the_next_speech_waits_for_the_heard_position_but_never_for_long() -> None:
    clock = Clock()
    engine = FakeSynthesizer()
    async with session_of(engine, clock=clock, settle_timeout_s=0.05) as session:
        first = session.speak(TURN)
        async for item in first:
            if isinstance(item, PcmChunk):
                clock.now += 0.1
                if item.start_s > 1.5:
                    break
        second = session.speak("Yes?")
        await take(second)
        kept = engine.requests[-1].context.exchanges
        assert len(kept) == 1
        assert 0 < kept[0].frames <= 25  # by the clock: about ten pieces of 0.1 s


async def test_a_late_settle_still_corrects_what_comes_after() -> None:
    engine = FakeSynthesizer()
    async with session_of(engine) as session:
        speech = session.speak(TURN)
        await take(speech)
        session.heard(speech.id, 0.5)
        assert session.stats.provisional == len(engine.requests)
        session.settle(speech.id, 1e9)
        assert session.stats.provisional == 0


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
async def test_speeches_may_be_settled_in_any_order(order: tuple[int, ...]) -> None:
    async with session_of(FakeSynthesizer()) as session:
        session.by_clock = False
        speeches: list[Speech] = []
        for text in ("one two three four five six seven.", "Nobody heard this one.", "And this was heard."):
            speeches.append(session.speak(text))
            await take(speeches[-1])
        for place in order:
            session.settle(speeches[place].id, (1.0, 0.0, math.inf)[place])
        first, last = session.exchanges
        assert (first.frames, last.text) == (25, "And this was heard.")
        assert session.stats.provisional == 0


async def test_progress_of_a_later_speech_does_not_keep_what_was_not_heard_of_an_earlier_one() -> None:
    async with session_of(FakeSynthesizer()) as session:
        session.by_clock = False
        first, second = session.speak("one two three four five six seven."), session.speak("And this was heard.")
        await take(first)
        await take(second)
        session.heard(second.id, math.inf)
        assert session.stats.provisional == 1
        session.settle(first.id, 1.0)
        assert [item.frames for item in session.exchanges][:1] == [25]


async def test_a_chunk_between_two_settles_is_spoken_in_what_is_known_by_then() -> None:
    engine = FakeSynthesizer()
    async with session_of(engine) as session:
        session.by_clock = False
        first, second = session.speak("one two three four five six seven."), session.speak("Nobody heard this one.")
        await take(first)
        await take(second)
        session.settle(second.id, 0.0)
        await take(session.speak("In between."))
        assert [item.text for item in engine.requests[-1].context.exchanges] == ["one two three four five six seven."]
        session.settle(first.id, 1.0)
        await take(session.speak("And behind."))
        kept = engine.requests[-1].context.exchanges
        assert [item.frames for item in kept] == [25, session.exchanges[1].frames]
        assert kept[1].text == "In between."


async def test_a_speech_that_nobody_takes_and_nobody_settles_does_not_hold_up_the_rest() -> None:
    async with session_of(FakeSynthesizer()) as session:
        session.by_clock = False
        forgotten = session.speak("Nobody has taken this.")
        while not forgotten.finished:
            await asyncio.sleep(0)
        for number in range(MAX_BEHIND + 1):
            assert session.stats.provisional == 1
            speech = session.speak(f"Sentence number {number}.")
            await take(speech)
            session.settle(speech.id, math.inf)
        assert session.stats.provisional == 0
        assert not session._context.entries
        assert not session._speeches
        assert "Nobody" not in session.context_text


class LooksAhead(FakeSynthesizer):
    """Sends 30 frames of codes with the sound of the first 20, as a codec does, and breaks off."""

    def __init__(self, ending: str) -> None:
        super().__init__()
        self.ending = ending

    async def speak(self, request: SpeakRequest) -> AsyncGenerator[SpeechEvent]:
        if "breaks" not in request.text:
            async for event in super().speak(request):
                yield event
            return
        codes = self.codes_for(request.text, 30)
        yield AudioEvent((self.sound_of(codes[:, :20]) * 32767).astype("<i2").tobytes(), 0, codes)
        if self.ending == "error":
            raise EngineDiedError("the worker failed")
        if self.ending == "stall":
            await asyncio.get_running_loop().create_future()
        yield FinishedEvent(FinishReason.STOPPED, 30)


async def broken(session: VoiceSession, text: str) -> tuple[Speech, float]:
    """A speech that breaks off, and the seconds that it gave out."""
    speech = session.speak(text)
    given: list[float] = []

    async def listen() -> None:
        async for item in speech.audio():
            given.append(item.duration_s)

    listening = asyncio.create_task(listen())
    for _ in range(200):
        await asyncio.sleep(0)
    if not speech.finished:
        speech.stop()
    with contextlib.suppress(EngineDiedError):
        await listening
    return speech, sum(given)


@pytest.mark.parametrize("ending", ["error", "stall", "stopped"])
@pytest.mark.parametrize(
    "joined",
    [{}, {"pauses": None, "crossfade": False}, {"speech_rate": 1.25}],
    ids=["joined", "plain", "faster"],
)
async def test_of_a_chunk_that_breaks_off_only_codes_that_became_sound_are_kept(
    ending: str, joined: dict[str, object]
) -> None:
    async with session_of(LooksAhead(ending), **joined) as session:
        speech, given_s = await broken(session, "one two three four five six and it breaks off here.")
        made_s = speech.records[0].places.made_s(given_s)
        assert 0.7 < made_s < 0.8 + 1e-6
        session.settle(speech.id, math.inf)
        (kept,) = session.exchanges
        assert kept.frames == int(made_s * 25 + 1e-6)
        assert kept.text.startswith("one two")
        assert "here" not in kept.text


@pytest.mark.parametrize("before", range(0, 100, 7))
def test_all_that_a_chunk_gave_out_is_kept_to_the_frame_wherever_it_begins(before: int) -> None:
    word = Word("one", before / 25, before / 25 + 0.5, 0, 0, 3, 3)
    record = ChunkRecord(Entry("speech", None), "one", before / 25, 8, samples=20 * 960, words=[word])
    record.codes.append(np.zeros((8, 30), np.int16))
    kept = record.heard_exchange(math.inf, None)
    assert kept is not None
    assert kept.frames == 20


async def test_before_it_is_settled_a_chunk_that_breaks_off_is_its_sound_too() -> None:
    async with session_of(LooksAhead("stopped")) as session:
        speech, _ = await broken(session, "one two three four five six and it breaks off here.")
        assert [item.frames for item in session.exchanges] == [19]
        assert session.context_text == "one two three"
        assert not speech.complete


@pytest.mark.parametrize("by_clock", [False, True])
async def test_a_speech_that_fails_keeps_what_it_gave_out_and_is_not_complete(by_clock: bool) -> None:
    clock = Clock()
    async with session_of(LooksAhead("error"), clock=clock) as session:
        speech, given_s = await broken(session, "This much was said. Then it breaks off in the middle.")
        assert not speech.complete
        assert speech.finished
        if by_clock:
            clock.now += given_s
        else:
            session.settle(speech.id, given_s)
        await take(session.speak("It goes on."))
        first, second, third = session.exchanges
        assert (first.text, third.text) == ("This much was said.", "It goes on.")
        assert second.text.startswith("Then it")
        assert 15 <= second.frames <= 20


async def test_words_come_in_order_inside_their_chunks_and_lose_nothing() -> None:
    engine = FakeSynthesizer()
    async with session_of(engine) as session:
        items = await take(session.speak(TURN))
        said = words(items)
        assert [word.text for word in said] == TURN.split()
        assert all(a.start_s <= b.start_s for a, b in itertools.pairwise(said))
        assert all(TURN[word.char_start : word.char_end] == word.text for word in said)
        total = len(sound(items)) / 48000
        assert said[-1].end_s <= total + 1e-6
        for report in reports(items):
            mine = [word for word in said if word.chunk == report.chunk]
            assert mine[-1].end_s - mine[0].start_s > 0.6 * report.audio_s


async def test_a_flush_in_mid_turn_loses_no_offset_and_no_speaker() -> None:
    pieces = ("[SPEAKER1] Let me check that for you.", " Your order is $5.20 and", " ships today.", " Is that all?")
    engine = FakeSynthesizer()
    async with session_of(engine) as session:
        speech = session.speak(None)
        for piece in pieces:
            speech.feed(piece)
            speech.flush()
        speech.end()
        said = words(await take(speech))
    text = "".join(pieces)
    assert [text[word.char_start : word.char_end] for word in said] == text.split()
    assert [word.text for word in said] == text.split()
    assert all(request.text.startswith("[SPEAKER1]") for request in engine.requests)


@pytest.mark.parametrize("heard", [0.2, 0.45, 0.7])
async def test_without_spaces_every_character_is_a_word(heard: float) -> None:
    text = "我们的订单已经发货了，预计明天送达。请您注意查收「新的」包裹。"
    async with session_of(FakeSynthesizer(), language="zh") as session:
        speech = session.speak(text)
        said = words(await take(speech))
        assert "".join(word.text for word in said) == text
        assert [text[word.char_start : word.char_end] for word in said] == [word.text for word in said]
        speech.stop()
        session.settle(speech.id, heard * speech.audio_s)
        kept = session.context_text.replace("\n", "")
        assert text.startswith(kept)
        assert len(kept) / len(text) == pytest.approx(heard, abs=0.15)


async def test_word_times_never_go_back_and_stay_within_the_sound() -> None:
    rng = np.random.default_rng(1)
    marks = [",", ".", "!", "?", ";", "…", " —", ""]
    for seed in range(40):
        turn = " ".join(
            "".join(rng.choice(list("aeiourst"), rng.integers(1, 9))) + str(rng.choice(marks))
            for _ in range(rng.integers(1, 30))
        )
        async with session_of(FakeSynthesizer(frames_per_char=float(rng.uniform(0.2, 3)))) as session:
            items = await take(session.speak(turn))
        said = words(items)
        total = len(sound(items)) / 48000
        for first, second in itertools.pairwise(said):
            assert first.start_s <= first.end_s <= total + 1e-6, (seed, turn)
            assert first.start_s <= second.start_s, (seed, turn)


async def test_a_figure_of_several_words_is_shared_among_them() -> None:
    text = "Please call (555) 123-4567 before January 5, 2024."
    async with session_of(FakeSynthesizer()) as session:
        speech = session.speak(text)
        said = {word.text: word for word in words(await take(speech))}
        length = {name: word.end_s - word.start_s for name, word in said.items()}
        assert length["(555)"] == pytest.approx(0.45 * length["123-4567"], rel=0.35)
        assert min(length["January"], length["5,"], length["2024."]) > 0.1
        speech.stop()
        session.settle(speech.id, said["(555)"].end_s)
        assert session.context_text.strip().endswith("five five five,")


async def test_guards_end_their_chunk_and_never_enter_the_context() -> None:
    def script(request: SpeakRequest) -> FinishReason | None:
        return FinishReason.RUNAWAY if "second" in request.text else None

    engine = FakeSynthesizer(script=script)
    async with session_of(engine) as session:
        items = await take(session.speak(TURN))
        assert [report.reason for report in reports(items)].count(FinishReason.RUNAWAY) == 1
        assert "second" not in session.context_text
        assert "third" in session.context_text


async def test_a_chunk_without_sound_is_an_error_at_the_end_and_the_rest_is_spoken() -> None:
    def script(request: SpeakRequest) -> FinishReason | None:
        return FinishReason.COLLAPSE if "second" in request.text else None

    engine = FakeSynthesizer(script=script)
    async with session_of(engine) as session:
        speech = session.speak(TURN)
        items: list[SpeechOut] = []
        with pytest.raises(NoAudioError):
            async for item in speech:
                items.append(item)
        assert "third" in reports(items)[-1].written
        assert "second" not in [word.text for word in words(items)]
        assert await session.speak("Next.").collect()


async def test_an_engine_that_dies_is_an_error_and_the_session_goes_on() -> None:
    failures = [EngineDiedError("the worker failed")]

    def script(request: SpeakRequest) -> BaseException | None:
        return failures.pop() if "third" in request.text and failures else None

    engine = FakeSynthesizer(script=script)
    async with session_of(engine) as session:
        with pytest.raises(EngineDiedError):
            await session.speak(TURN).collect()
        assert await session.speak("And a third try.").collect()


async def test_speeches_are_spoken_in_order_and_interrupt_stops_all() -> None:
    engine = FakeSynthesizer()
    async with session_of(engine) as session:
        one, two = session.speak("This is one."), session.speak("This is two.")
        await take(two)
        await take(one)
        assert [request.text for request in engine.requests] == ["This is one.", "This is two."]
        stopped = session.interrupt()
        assert stopped == [one.id, two.id]


async def test_a_streamed_source_is_spoken_as_it_comes() -> None:
    async def source() -> AsyncIterator[str]:
        for token in TURN.split(" "):
            await asyncio.sleep(0)
            yield token + " "

    engine = FakeSynthesizer()
    async with session_of(engine) as session:
        items = await take(session.speak(source()))
        assert [word.text for word in words(items)] == TURN.split()


async def test_a_source_that_fails_is_heard_of() -> None:
    async def source() -> AsyncIterator[str]:
        yield "This much was said. "
        raise ConnectionError("the LLM went away")

    async with session_of(FakeSynthesizer()) as session:
        with pytest.raises(ConnectionError, match="went away"):
            await session.speak(source()).collect()
        assert await session.speak("Still here.").collect()


async def test_a_new_voice_begins_a_new_context_unless_asked_to_keep_it() -> None:
    engine = FakeSynthesizer()
    async with session_of(engine) as session:
        await take(session.speak("One sentence."))
        await session.update(voice=Voice.create(speakers="feminine"), context="keep")
        assert len(session.exchanges) == 1
        await session.update(voice=Voice.create(speakers="masculine"))
        assert session.exchanges == ()
        await take(session.speak("Another one."))
        assert engine.requests[-1].context.voice.speakers == ("SPEAKER0: masculine",)


async def test_sampling_changes_from_the_next_chunk_on_and_seeds_are_drawn() -> None:
    engine = FakeSynthesizer()
    async with session_of(engine) as session:
        await session.update(sampling=Sampling(temperature=0.2, seed=7))
        await take(session.speak("One sentence."))
        assert engine.requests[-1].sampling.temperature == 0.2
        assert engine.requests[-1].sampling.seed == 7
        await session.update(sampling=Sampling())
        await take(session.speak("Another one."))
        assert engine.requests[-1].sampling.seed is not None


async def test_a_reference_goes_into_the_prefix_and_nothing_is_pinned() -> None:
    rng = np.random.default_rng(0)
    clip = Reference.from_array(rng.normal(0, 0.1, 24000), 24000, "What the clip says.")
    engine = FakeSynthesizer()
    session = VoiceSession(engine, voice=Voice.create(references=clip), clock=Clock())
    async with session:
        await take(session.speak(TURN))
        (reference,) = engine.requests[0].context.voice.references
        assert reference.text == "What the clip says."
        assert reference.frames == 25
        assert not session.stats.pinned


async def test_the_models_limit_trims_the_context_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    engine = FakeSynthesizer(max_positions=900)
    async with session_of(engine, window=Window.last_n(None), sampling=Sampling(max_new_tokens=200)) as session:
        for number in range(12):
            await take(session.speak(f"This is sentence number {number} of a longer talk."))
            request = engine.requests[-1]
            assert engine.count_rows(request.context, request.text) <= 900
    assert [record.levelname for record in caplog.records if "positions" in record.message] == ["WARNING"]


@pytest.mark.parametrize("text", ["", "   \n\t ", "🙂🎉", "***", "\ud800", "…", "```\n```"])
async def test_text_that_says_nothing_gives_no_sound_and_no_error(text: str) -> None:
    engine = FakeSynthesizer()
    async with session_of(engine) as session:
        assert await session.speak(text).collect() == b""
        assert await session.speak("Then this.").collect()
        assert len(session.exchanges) == 1


async def test_twenty_thousand_characters_without_a_stop_are_spoken_in_chunks() -> None:
    engine = FakeSynthesizer(frames_per_char=0.05)
    async with session_of(engine) as session:
        items = await take(session.speak("word " * 4000))
        assert len([word for word in words(items) if word.text == "word"]) == 4000
        assert max(len(request.text) for request in engine.requests) < 400


async def test_a_slow_consumer_holds_its_own_generation() -> None:
    engine = FakeSynthesizer()
    async with session_of(engine, run_ahead_s=1.0) as session:
        speech = session.speak(TURN)
        for _ in range(300):
            await asyncio.sleep(0)
        assert 0 < engine.steps <= 25 + 5 + 5
        assert len(await speech.collect()) / 48000 > 3


async def test_an_abandoned_iteration_stops_the_model() -> None:
    engine = FakeSynthesizer()
    async with session_of(engine) as session:
        async for _ in session.speak(TURN).audio():
            break
        for _ in range(20):
            await asyncio.sleep(0)
        assert not engine.active


async def test_close_leaves_no_task_and_says_so_afterwards() -> None:
    engine = FakeSynthesizer()
    before = asyncio.all_tasks()
    session = session_of(engine)
    await session.start()
    idle, busy = session.speak(), session.speak(TURN)
    await asyncio.sleep(0)
    await session.aclose()
    assert asyncio.all_tasks() == before
    assert not engine.active
    assert await idle.collect() == b""
    assert await busy.collect() == b""
    with pytest.raises(EngineClosedError, match="closed"):
        session.speak("Too late.")


class SlowClips(FakeSynthesizer):
    """Encodes a clip when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.encoding = asyncio.Event()
        self.go_on = asyncio.Event()

    async def encode(self, pcm: NDArray[np.float32]) -> Codes:
        self.encoding.set()
        await self.go_on.wait()
        return await super().encode(pcm)


def clip() -> Voice:
    return Voice.create(references=Reference.from_array(np.full(24000, 0.1, np.float32), 24000, "What it says."))


async def test_a_voice_that_comes_when_the_session_is_closed_does_not_reach_the_engine() -> None:
    engine = SlowClips()
    session = session_of(engine)
    await session.start()
    changing = asyncio.create_task(session.update(voice=clip()))
    await engine.encoding.wait()
    await session.aclose()
    prepared = len(engine.prepared)
    engine.go_on.set()
    with pytest.raises(EngineClosedError, match="closed"):
        await changing
    for change in ({"voice": Voice.create(speakers="warm")}, {"sampling": Sampling(seed=1)}):
        with pytest.raises(EngineClosedError, match="closed"):
            await session.update(**change)
    assert len(engine.prepared) == prepared


async def test_a_voice_that_waits_for_the_next_speech_goes_with_the_session() -> None:
    engine = FakeSynthesizer()
    session = session_of(engine)
    await session.start()
    session.speak()  # is still being written
    await session.update(voice=Voice.create(speakers="warm"))
    await session.aclose()
    prepared = len(engine.prepared)
    with pytest.raises(EngineClosedError, match="closed"):
        session.apply_pending()
    assert len(engine.prepared) == prepared


async def test_a_session_that_is_closed_while_it_starts_does_not_reach_the_engine() -> None:
    engine = SlowClips()
    session = VoiceSession(engine, voice=clip(), clock=Clock())
    starting = asyncio.create_task(session.start())
    await engine.encoding.wait()
    await session.aclose()
    engine.go_on.set()
    with pytest.raises(EngineClosedError, match="closed"):
        await starting
    assert not engine.prepared


async def test_a_session_that_was_closed_does_not_start_again() -> None:
    session = session_of(FakeSynthesizer())
    await session.start()
    await session.aclose()
    with pytest.raises(EngineClosedError, match="closed"):
        await session.start()


async def test_what_is_settled_while_it_closes_does_not_reach_the_engine() -> None:
    engine = FakeSynthesizer()
    session = session_of(engine)
    await session.start()
    speech = session.speak("One two three.")
    await take(speech)
    closing = asyncio.create_task(session.aclose())
    while not session._closed:
        await asyncio.sleep(0)
    prepared = len(engine.prepared)
    session.settle(speech.id, 0.0)
    await closing
    assert len(engine.prepared) == prepared


async def test_a_position_that_is_no_number_is_refused_and_changes_nothing() -> None:
    async with session_of(FakeSynthesizer()) as session:
        speech = session.speak("One two three.")
        await take(speech)
        for say in (session.heard, session.settle):
            with pytest.raises(SettingsError, match=r"a number of seconds \(got nan\)"):
                say(speech.id, math.nan)
        with pytest.raises(SettingsError, match="a number of seconds"):
            session.snapshot({speech.id: math.nan})
        assert session.stats.provisional == 1
        session.settle(speech.id, math.inf)
        assert session.context_text == "One two three."
        unheard = session.speak("Four five six.")
        await take(unheard)
        session.settle(unheard.id, -math.inf)
        assert session.context_text == "One two three."


async def test_two_hundred_interrupted_turns_leave_nothing_behind() -> None:
    engine = FakeSynthesizer()
    async with session_of(engine) as session:
        tasks = len(asyncio.all_tasks())
        for number in range(200):
            speech = session.speak(TURN)
            async for item in speech:
                if isinstance(item, PcmChunk) and item.start_s >= (number % 40) / 10:
                    break
            session.settle(speech.id, (number % 40) / 10)
        for _ in range(10):
            await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) == tasks
        assert session.stats.context_s <= 40 + 10
        assert session.stats.provisional == 0
        assert len(session._speeches) <= 1


def test_an_unknown_setting_names_the_valid_ones() -> None:
    with pytest.raises(SettingsError, match=r"has no setting 'speed'; it has: sampling, window"):
        SessionSettings(speed=2)


async def test_a_delta_without_content_is_no_text() -> None:
    async def deltas() -> AsyncIterator[str | None]:
        for text in ("Hello there, friend. ", None, "How are you ", None, "today? I am well."):
            yield text

    engine = FakeSynthesizer()
    async with session_of(engine) as session:
        items = await take(session.speak(deltas()))  # pyright: ignore[reportArgumentType]
        assert " ".join(word.text for word in words(items)) == "Hello there, friend. How are you today? I am well."
        speech = session.speak()
        with pytest.raises(TypeError, match="fed with str, not bytes"):
            speech.feed(b"no")  # pyright: ignore[reportArgumentType]
        speech.feed("It goes on.")
        speech.end()
        assert [word.text for word in words(await take(speech))] == ["It", "goes", "on."]
