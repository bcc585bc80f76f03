"""Barge-in in a real pipeline: the framework's output transport and aggregator, and the transport's writing held by the test."""

from __future__ import annotations

import asyncio
import gc
import random
import re
import time
from typing import Any

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray
from pipecat.frames.frames import (
    InterruptionFrame,
    LLMFullResponseEndFrame,
    LLMTextFrame,
    TTSAudioRawFrame,
    TTSSpeakFrame,
    TTSStartedFrame,
    TTSStoppedFrame,
)

from higgs_voice import SessionSettings, Window
from higgs_voice.adapters.pipecat import HiggsTTSService
from higgs_voice.backends.fake import FakeSynthesizer
from higgs_voice.conversation.synthesizer import Codes
from tests.adapters.pipecat_kit import Room, room, settle_loop

TEXT = "Hello there, my friend. This is the second sentence of it. And here comes a third one, at last!"


def service(engine: FakeSynthesizer | None = None, **kwargs: Any) -> HiggsTTSService:
    kwargs.setdefault("lead_s", 1e9)
    return HiggsTTSService(engine=engine or FakeSynthesizer(frames_per_char=1), **kwargs)


def words(text: str | list[str]) -> list[str]:
    return re.findall(r"\w+", text if isinstance(text, str) else " ".join(text))


def old_audio(r: Room) -> list[TTSAudioRawFrame]:
    """Sound that left the service behind an interruption, of a context that it cut."""
    cut = False
    contexts: set[str | None] = set()
    late: list[TTSAudioRawFrame] = []
    for frame in r.after_tts.down:
        if isinstance(frame, InterruptionFrame):
            cut = True
        elif isinstance(frame, TTSAudioRawFrame):
            if not cut:
                contexts.add(frame.context_id)
            elif frame.context_id in contexts:
                late.append(frame)
    return late


async def generated(r: Room) -> None:
    await r.until(lambda: bool(r.after_tts.of(TTSStoppedFrame)))


async def test_generated_whole_and_half_played() -> None:
    engine = FakeSynthesizer(frames_per_char=1)
    tts = service(engine)
    async with room(tts, held=True) as r:
        await r.say(TEXT)
        await generated(r)
        await r.output.play(50)  # 2.0 s of 3.8
        await r.interrupt()
        assert words(r.transcript()) == words(tts.session.context_text)
        assert words(r.transcript()) == words(TEXT)[: len(words(r.transcript()))]
        assert "second" in r.transcript()[0]
        assert "third" not in r.transcript()[0]
        assert sum(item.frames for item in tts.session.exchanges) == 50
        assert old_audio(r) == []
        assert tts.session.stats.provisional == 0


async def test_what_is_remembered_is_what_a_session_that_never_spoke_the_rest_would_hold() -> None:
    engine = FakeSynthesizer(frames_per_char=1)
    tts = service(engine, session_settings=SessionSettings(window=Window.last_n(2)))
    async with room(tts, held=True) as r:
        await r.say("One is whole. Two is whole.")
        await r.output.play(27 - 1)
        r.output.let_go()
        await r.until(lambda: len(r.transcript()) == 1)
        r.output.hold()
        await r.say(TEXT)
        await r.until(lambda: len(r.after_tts.of(TTSStoppedFrame)) == 2)
        await r.interrupt()  # not a sample of it was played: what it had evicted comes back
        assert tts.session.context_text == "One is whole.\nTwo is whole."
        assert r.transcript() == ["One is whole. Two is whole."]


async def test_before_the_first_sound() -> None:
    held = asyncio.Event()
    engine = FakeSynthesizer(frames_per_char=1, pace=lambda request, sent: held.wait())
    tts = service(engine)
    async with room(tts) as r:
        await r.say(TEXT)
        await r.until(lambda: bool(engine.active))
        await r.interrupt()
        held.set()
        await r.until(lambda: not engine.active)
        assert r.after_tts.of(TTSAudioRawFrame) == []
        assert tts.session.exchanges == ()
        assert r.transcript() == []
        await r.say("Yes?")
        await r.until(lambda: bool(r.transcript()))
        assert r.transcript() == ["Yes?"]
        assert r.errors() == []


async def test_in_mid_generation_the_engine_stops_within_a_step() -> None:
    step = asyncio.Semaphore(0)
    engine = FakeSynthesizer(frames_per_char=1, frames_per_event=5, pace=lambda request, sent: step.acquire())
    tts = service(engine)
    async with room(tts, held=True) as r:
        await r.say(TEXT)
        for _ in range(3):
            step.release()
        await r.until(lambda: engine.steps == 15)
        await r.output.play(7)
        await r.interrupt()
        for _ in range(100):
            step.release()
        await r.until(lambda: not engine.active)
        assert engine.steps == 15
        assert old_audio(r) == []
        assert [item.frames for item in tts.session.exchanges] == [7]
        assert words(r.transcript()) == words(tts.session.context_text)


async def test_an_interruption_never_waits_for_the_engine() -> None:
    engine = FakeSynthesizer(frames_per_char=1, pace=lambda request, sent: asyncio.Event().wait() if sent else None)
    tts = service(engine)
    async with room(tts, held=True) as r:
        await r.say(TEXT)
        await r.until(lambda: bool(r.after_tts.of(TTSAudioRawFrame)))
        began = time.monotonic()
        await r.interrupt()
        assert time.monotonic() - began < 0.5
        assert old_audio(r) == []


async def test_twice_in_a_row() -> None:
    tts = service()
    async with room(tts, held=True) as r:
        await r.say(TEXT)
        await generated(r)
        await r.output.play(30)
        await r.interrupt()
        first = tts.session.context_text
        await r.interrupt()
        assert tts.session.context_text == first
        await r.say("Another one, soon cut.")
        await r.until(lambda: len(r.after_tts.of(TTSStartedFrame)) == 2)
        await r.interrupt()
        await r.interrupt()
        assert tts.session.context_text == first
        r.output.let_go()
        await r.say("Now it goes through.")
        await r.until(lambda: len(r.transcript()) == 2)
        assert words(r.transcript()) == words(tts.session.context_text)
        assert r.errors() == []


async def test_with_the_llm_still_streaming_its_late_tokens_are_not_spoken() -> None:
    tts = service()
    async with room(tts, held=True) as r:
        await r.say("The first sentence is long enough. And the", end=False)
        await r.until(lambda: bool(r.after_tts.of(TTSAudioRawFrame)))
        await r.output.play(10)
        await r.interrupt()
        await r.worker.queue_frames(
            [LLMTextFrame(" second one"), LLMTextFrame(" is stale."), LLMFullResponseEndFrame()]
        )
        r.output.let_go()
        await r.say("This is new.")
        await r.until(lambda: len(r.transcript()) == 2)
        assert r.transcript()[1] == "This is new."
        assert "stale" not in tts.session.context_text
        assert words(r.transcript()) == words(tts.session.context_text)


async def test_tokens_whose_reply_an_interruption_overtook_are_not_spoken() -> None:
    tts = service()
    async with room(tts, held=True) as r:
        await tts.pause_processing_frames()  # the reply's start is dropped before the service has seen it
        await r.say("A reply that", end=False)
        await settle_loop()
        await r.interrupt()
        await tts.resume_processing_frames()
        await r.say(" is stale.", start=False)
        r.output.let_go()
        await r.say("This is new.")
        await r.until(lambda: bool(r.transcript()))
        assert r.transcript() == ["This is new."]
        assert tts.session.context_text == "This is new."


async def test_tokens_stay_stale_behind_an_uninterruptible_text_within_their_reply() -> None:
    """The framework goes back to the interrupted reply's context when that text has been handed over."""
    reached, go_on = asyncio.Event(), asyncio.Event()

    async def held(text: str, kind: str) -> str:
        if text == "Hold on.":
            reached.set()
            await go_on.wait()
        return text

    tts = service(text_transforms=[("*", held)])
    async with room(tts, held=True) as r:
        await r.say("A reply that", end=False)
        notice = TTSSpeakFrame("Hold on.")
        notice.interruptible = False
        await r.worker.queue_frame(notice)
        await asyncio.wait_for(reached.wait(), 5)
        await r.interrupt()
        go_on.set()
        await r.say(" is stale.", start=False)
        r.output.let_go()
        await r.say("This is new.")
        await r.until(lambda: "new" in " ".join(r.transcript()))
        assert tts.session.context_text == "Hold on.\nThis is new."


async def test_text_outside_of_a_reply_is_spoken_behind_an_interruption() -> None:
    tts = service()
    async with room(tts) as r:
        await r.say("This is cut off.")
        await r.until(lambda: bool(r.after_tts.of(TTSAudioRawFrame)))
        await r.interrupt()
        await r.worker.queue_frame(LLMTextFrame("This is spoken."))
        await r.until(lambda: "This is spoken." in tts.session.context_text)
        await r.until(lambda: len(r.end.of(TTSStoppedFrame)) > 0)
        assert r.errors() == []


async def test_nothing_of_an_interrupted_reply_sounds_in_the_next() -> None:
    class Loud(FakeSynthesizer):
        loud = True

        def sound_of(self, codes: Codes) -> NDArray[np.float32]:
            return super().sound_of(codes) * (1.0 if self.loud else 0.0)

    go_on = asyncio.Event()
    engine = Loud(frames_per_char=1, pace=lambda _, sent: go_on.wait() if sent >= 20 else None)
    tts = service(engine, sample_rate=8000)
    async with room(tts) as r:
        await r.say(TEXT)
        await r.until(lambda: len(r.after_tts.audio) > 8000)
        await r.interrupt()
        assert np.abs(np.frombuffer(r.after_tts.audio, np.int16)).max() > 1000
        engine.loud = False
        go_on.set()
        r.forget()
        await r.say("Silence.")
        await r.until(lambda: bool(r.after_tts.of(TTSStoppedFrame)))
        sound = np.frombuffer(r.after_tts.audio, np.int16)
        assert np.abs(sound).max() <= 1
        assert sound.size == tts.session.exchanges[-1].frames * 320


async def test_a_tracker_leaves_the_utterances_of_another_service_alone() -> None:
    """A switcher runs one service at a time; the trackers of all of them are in the pipeline."""
    tts, other = service(), service()
    async with room(tts, others=[other], held=True) as r:
        await r.say(TEXT)
        await r.output.play(50)
        await r.interrupt()
        assert "second" in tts.session.context_text
        assert words(r.transcript()) == words(tts.session.context_text)
        assert tts.session.stats.provisional == 0
        r.output.let_go()
        await r.say("This one is whole.")
        await r.until(lambda: len(r.transcript()) == 2)
        assert words(r.transcript()) == words(tts.session.context_text)
        assert not tts._utterances
        assert tts.session.stats.provisional == 0


async def test_in_a_stall_of_the_llm_the_sentence_that_was_heard_is_kept() -> None:
    """The framework holds a sentence's words back until it has seen the next sentence begin."""
    tts = service()
    async with room(tts, held=True) as r:
        await r.say("All of this was heard. ", end=False)
        await r.until(lambda: bool(r.after_tts.of(TTSAudioRawFrame)))
        await r.output.play(22)
        await r.interrupt()
        assert r.transcript() == ["All of this was heard."]
        assert tts.session.context_text == "All of this was heard."


async def test_an_uninterruptible_utterance_is_spoken_to_its_end() -> None:
    engine = FakeSynthesizer(frames_per_char=1)
    tts = service(engine)
    async with room(tts, held=True) as r:
        notice = TTSSpeakFrame("This call is recorded.")
        notice.interruptible = False
        await r.worker.queue_frame(notice)
        await r.say("And this may be cut off.")
        await r.until(lambda: len(r.after_tts.of(TTSStoppedFrame)) == 2)
        await r.output.play(5)
        await r.interrupt()
        r.output.let_go()
        await r.until(lambda: any(isinstance(frame, TTSStoppedFrame) for frame in r.end.down))
        assert tts.session.context_text == "This call is recorded."
        assert b"".join(r.output.written) == r.after_tts.audio[: 22 * 1920]
        await r.say("Next.")
        await r.until(lambda: "Next." in tts.session.context_text and "Next." in " ".join(r.transcript()))
        assert words(r.transcript()) == words(tts.session.context_text)


async def test_without_a_tracker_the_aggregators_words_are_the_sessions() -> None:
    tts = service()
    async with room(tts, tracker=False) as r:
        await r.say(TEXT)
        await r.until(lambda: r.output.seconds > 1.3)
        await r.interrupt()
        assert len(words(r.transcript())) > 4
        assert "third" not in r.transcript()[0]
        assert words(r.transcript()) == words(tts.session.context_text)
        heard = sum(item.frames for item in tts.session.exchanges) / 25
        assert heard == pytest.approx(r.output.seconds, abs=0.3)


async def test_without_anyone_who_tells_the_clock_does() -> None:
    tts = service()
    async with room(tts, tracker=False) as r:
        notice = TTSSpeakFrame("Nobody writes this one down, not for the record.", append_to_context=False)
        await r.worker.queue_frame(notice)
        await r.until(lambda: r.output.seconds > 0.8)
        await r.interrupt()
        await r.until(lambda: tts.session.stats.provisional == 0)
        heard = sum(item.frames for item in tts.session.exchanges) / 25
        assert heard == pytest.approx(r.output.seconds, abs=0.3)


async def test_two_hundred_interrupted_turns_leave_nothing_behind() -> None:
    rng = random.Random(5)
    engine = FakeSynthesizer(frames_per_char=1)
    tts = service(engine)
    async with room(tts, held=True) as r:
        sizes: list[int] = []
        resident: list[float] = []
        process = psutil.Process()
        for turn in range(200):
            await r.say(TEXT, size=rng.choice((5, 40)), end=rng.random() < 0.7)
            chunks = rng.randrange(40)
            if chunks:
                await r.until(lambda chunks=chunks: r.held_back() >= chunks)
                await r.output.play(chunks)
            await r.interrupt()
            engine.requests.clear()
            engine.prepared.clear()
            if turn % 50 == 49:
                gc.collect()
                resident.append(process.memory_info().rss / 2**20)
            if chunks > 9:  # with none, the interruption overtakes the text, and the turn begins behind it
                last = words(r.transcript()[-1])
                assert last == words(tts.session.context_text)[-len(last) :]
            if turn % 10 == 9:
                sizes.append(len(asyncio.all_tasks()))
            r.forget()
        await r.interrupt()
        await settle_loop()
        assert len(tts._utterances) == len(tts._tts_contexts) == len(tts._pumps) == 0
        assert len(tts.session._speeches) == 0
        assert not engine.active
        assert len(set(sizes[1:])) <= 2, sizes
        assert sizes[-1] <= sizes[0]
        assert resident[-1] - resident[0] < 4, f"resident after 50, 100, 150, 200 turns: {resident} MiB"
        assert r.errors() == []
