"""What every `Synthesizer` must do, word for word the same for all of them.

A test module subclasses `Conformance` and gives an `engine` fixture: a started engine. The suite judges what a session
relies on, not how an engine sounds.
"""

from __future__ import annotations

import asyncio
import itertools
from contextlib import aclosing
from dataclasses import replace

import numpy as np
import pytest

from higgs_voice.audio import HOP
from higgs_voice.config import Sampling
from higgs_voice.conversation.synthesizer import (
    AudioEvent,
    ContextSpec,
    Exchange,
    FinishedEvent,
    FinishReason,
    SpeakRequest,
    SpeechEvent,
    Synthesizer,
    VoicePrompt,
)
from higgs_voice.errors import EngineClosedError, EngineError

TEXT = "The lamp in the hall is on."
LONG = "This is a long sentence that goes on for a good while so that there is time to stop it before its end has come."

_numbers = itertools.count()


def request(text: str = TEXT, *, session: str = "s", context: ContextSpec | None = None, seed: int = 7) -> SpeakRequest:
    return SpeakRequest(
        session_id=session,
        speech_id=f"{session}/{next(_numbers)}",
        context=context or ContextSpec(),
        text=text,
        sampling=Sampling(seed=seed, max_new_tokens=400),
    )


async def collect(engine: Synthesizer, asked: SpeakRequest) -> list[SpeechEvent]:
    async with aclosing(engine.speak(asked)) as events:
        return [event async for event in events]


def audio(events: list[SpeechEvent]) -> list[AudioEvent]:
    return [event for event in events if isinstance(event, AudioEvent)]


def sound(events: list[SpeechEvent]) -> bytes:
    return b"".join(event.pcm for event in audio(events))


def codes(events: list[SpeechEvent]) -> np.ndarray:
    return np.concatenate([event.codes for event in audio(events)], axis=1)


def finish(events: list[SpeechEvent]) -> FinishedEvent:
    assert isinstance(events[-1], FinishedEvent)
    return events[-1]


class Conformance:
    """The suite. Each test gets a started engine."""

    async def test_info_is_known_and_sensible(self, engine: Synthesizer) -> None:
        info = engine.info
        assert info.model
        assert info.sample_rate == 24000
        assert info.frame_rate == 25
        assert info.num_codebooks >= 1
        assert info.codebook_size >= 2
        assert isinstance(engine, Synthesizer)

    async def test_start_is_idempotent(self, engine: Synthesizer) -> None:
        info = engine.info
        await engine.start()
        assert engine.info == info

    async def test_a_chunk_is_sound_without_gaps_and_one_end(self, engine: Synthesizer) -> None:
        events = await collect(engine, request())
        assert all(isinstance(event, AudioEvent) for event in events[:-1])
        end = finish(events)
        assert end.reason in (FinishReason.EOS, FinishReason.LENGTH)
        assert end.error is None
        place = 0
        for event in audio(events):
            assert event.start == place
            assert len(event.pcm) % 2 == 0
            place += len(event.pcm) // 2
        assert place == end.frames * HOP > 0

    async def test_all_codes_come_and_are_in_range(self, engine: Synthesizer) -> None:
        events = await collect(engine, request())
        found = codes(events)
        assert found.shape == (engine.info.num_codebooks, finish(events).frames)
        assert found.dtype == np.int16
        assert found.min() >= 0
        assert found.max() < engine.info.codebook_size

    async def test_codes_never_lag_behind_their_sound(self, engine: Synthesizer) -> None:
        samples = frames = 0
        for event in audio(await collect(engine, request())):
            samples += len(event.pcm) // 2
            frames += event.codes.shape[1]
            assert samples <= frames * HOP

    async def test_codes_alone_come_without_sound(self, engine: Synthesizer) -> None:
        heard = await collect(engine, request())
        silent = await collect(engine, replace(request(session="t"), pcm=False))
        assert not sound(silent)
        assert np.array_equal(codes(silent), codes(heard))
        assert finish(silent).frames == finish(heard).frames

    async def test_a_seed_repeats(self, engine: Synthesizer) -> None:
        first = await collect(engine, request(seed=3))
        second = await collect(engine, request(seed=3, session="t"))
        assert np.array_equal(codes(first), codes(second))
        assert sound(first) == sound(second)

    async def test_a_context_with_references_and_exchanges_is_taken(self, engine: Synthesizer) -> None:
        first = await collect(engine, request())
        heard = Exchange(text=TEXT, codes=codes(first))
        clip = Exchange(text="A clip.", codes=codes(first)[:, :20])
        voice = VoicePrompt(scene="A quiet room.", speakers=("SPEAKER0: calm",), references=(clip,))
        context = ContextSpec(voice=voice, exchanges=(heard,))
        assert finish(await collect(engine, request("And so is the other.", context=context))).frames > 0
        trimmed = ContextSpec(voice=voice, exchanges=(Exchange(text="The lamp", codes=codes(first)[:, :9]),))
        assert finish(await collect(engine, request("It was cut.", context=trimmed))).frames > 0
        assert finish(await collect(engine, request("And so is the other.", context=context))).frames > 0

    async def test_what_a_session_said_before_leaves_no_trace(self, engine: Synthesizer) -> None:
        alone = await collect(engine, request(seed=5, session="fresh"))
        await collect(engine, request("Something else was said here first.", session="used"))
        after = await collect(engine, request(seed=5, session="used"))
        assert np.array_equal(codes(alone), codes(after))

    async def test_max_new_tokens_is_kept(self, engine: Synthesizer) -> None:
        asked = request(LONG)
        limit = 24
        short = SpeakRequest(
            asked.session_id, asked.speech_id, asked.context, LONG, Sampling(seed=1, max_new_tokens=limit)
        )
        end = finish(await collect(engine, short))
        assert 0 < end.frames <= limit

    async def test_stop_ends_the_stream_soon(self, engine: Synthesizer) -> None:
        asked = request(LONG)
        seen: list[SpeechEvent] = []
        async with aclosing(engine.speak(asked)) as events:
            async for event in events:
                seen.append(event)
                if len(seen) == 1:
                    engine.stop(asked.speech_id)
        assert finish(seen).reason is FinishReason.STOPPED
        whole = finish(await collect(engine, request(LONG))).frames
        assert sum(event.codes.shape[1] for event in audio(seen)) < whole

    async def test_stop_before_the_first_sound(self, engine: Synthesizer) -> None:
        asked = request(LONG)
        task = asyncio.ensure_future(collect(engine, asked))
        await asyncio.sleep(0)
        engine.stop(asked.speech_id)
        events = await asyncio.wait_for(task, 10)
        assert finish(events).reason is FinishReason.STOPPED

    async def test_stop_of_one_session_leaves_the_others(self, engine: Synthesizer) -> None:
        stopped, kept = request(LONG, session="a"), request(session="b")
        alone = await collect(engine, request(session="c"))
        tasks = [asyncio.ensure_future(collect(engine, item)) for item in (stopped, kept)]
        await asyncio.sleep(0)
        engine.stop(stopped.speech_id)
        first, second = await asyncio.gather(*tasks)
        assert finish(first).reason is FinishReason.STOPPED
        assert finish(second).reason is finish(alone).reason

    async def test_unknown_ids_are_ignored(self, engine: Synthesizer) -> None:
        engine.stop("nobody")
        engine.close_session("nobody")
        assert finish(await collect(engine, request())).frames > 0

    async def test_leaving_the_iteration_frees_the_session_for_the_next(self, engine: Synthesizer) -> None:
        events = engine.speak(request(LONG))
        await anext(events)
        await events.aclose()
        assert finish(await asyncio.wait_for(collect(engine, request()), 20)).frames > 0

    async def test_a_sessions_requests_run_in_order(self, engine: Synthesizer) -> None:
        order: list[str] = []

        async def run(asked: SpeakRequest) -> None:
            async with aclosing(engine.speak(asked)) as events:
                async for event in events:
                    if isinstance(event, FinishedEvent):
                        order.append(asked.speech_id)

        asked = [request(), request(), request()]
        tasks: list[asyncio.Future[None]] = []
        for item in asked:
            tasks.append(asyncio.ensure_future(run(item)))
            await asyncio.sleep(0)
        await asyncio.gather(*tasks)
        assert order == [item.speech_id for item in asked]

    async def test_many_sessions_at_once(self, engine: Synthesizer) -> None:
        results = await asyncio.gather(*(collect(engine, request(session=f"m{n}", seed=n)) for n in range(4)))
        assert all(finish(events).frames > 0 for events in results)

    async def test_a_reader_that_stands_still_holds_up_nobody_else(self, engine: Synthesizer) -> None:
        slow = engine.speak(request(LONG, session="slow"))
        await anext(slow)
        assert finish(await asyncio.wait_for(collect(engine, request(session="quick")), 20)).frames > 0
        rest = [event async for event in slow]
        assert finish(rest).reason in (FinishReason.EOS, FinishReason.LENGTH)

    async def test_prepare_changes_nothing_that_is_heard(self, engine: Synthesizer) -> None:
        first = await collect(engine, request(seed=9, session="p0"))
        context = ContextSpec(exchanges=(Exchange(TEXT, codes(first)),))
        plain = await collect(engine, request(seed=9, session="p1", context=context))
        engine.prepare("p2", context)
        prepared = await collect(engine, request(seed=9, session="p2", context=context))
        assert np.array_equal(codes(plain), codes(prepared))

    async def test_a_closed_session_may_come_back(self, engine: Synthesizer) -> None:
        before = await collect(engine, request(seed=4))
        engine.close_session("s")
        after = await collect(engine, request(seed=4))
        assert np.array_equal(codes(before), codes(after))

    async def test_close_session_stops_what_it_says(self, engine: Synthesizer) -> None:
        asked = request(LONG)
        seen: list[SpeechEvent] = []
        async with aclosing(engine.speak(asked)) as events:
            async for event in events:
                seen.append(event)
                if len(seen) == 1:
                    engine.close_session(asked.session_id)
        assert finish(seen).reason is FinishReason.STOPPED

    async def test_clips_are_encoded_and_decoded(self, engine: Synthesizer) -> None:
        time = np.arange(24000) / 24000
        clip = (0.3 * np.sin(2 * np.pi * 220 * time)).astype(np.float32)
        first, second = await asyncio.gather(engine.encode(clip), engine.encode(clip))
        assert np.array_equal(first, second)
        assert first.shape == (engine.info.num_codebooks, 25)
        assert first.min() >= 0
        assert first.max() < engine.info.codebook_size
        samples = await engine.decode(first)
        assert samples.shape == (first.shape[1] * HOP,)
        assert samples.dtype == np.float32

    async def test_decode_agrees_with_what_was_streamed(self, engine: Synthesizer) -> None:
        events = await collect(engine, request())
        streamed = np.frombuffer(sound(events), dtype="<i2").astype(np.float64) / 32767
        whole = (await engine.decode(codes(events))).astype(np.float64)
        assert streamed.shape == whole.shape
        late = 24000 * 6 // 10  # from there on at the latest, streaming is exact
        assert np.abs(streamed[late:] - whole[late:]).max() < 2e-3

    @pytest.mark.parametrize(("said", "heard"), [(3, 0), (9, 2), (20, 9), (30, 30)])
    async def test_what_another_engine_began_goes_on(self, engine: Synthesizer, said: int, heard: int) -> None:
        if not engine.info.continues:
            return
        whole = await collect(engine, request())
        begun = replace(request(session="t"), spoken=codes(whole)[:, :said], heard=heard * HOP)
        rest = await collect(engine, begun)
        assert np.array_equal(codes(rest), codes(whole)[:, said:])
        assert audio(rest)[0].start == heard * HOP
        assert finish(rest).frames == finish(whole).frames
        expected = np.frombuffer(sound(whole), dtype="<i2").astype(np.int64)[heard * HOP :]
        found = np.frombuffer(sound(rest), dtype="<i2").astype(np.int64)
        assert found.shape == expected.shape
        late = max(0, 24000 * 6 // 10 - heard * HOP)  # its pieces may be others
        assert np.abs(found[late:] - expected[late:]).max(initial=0) < 66
        alone = await collect(engine, replace(begun, session_id="u", speech_id="u/codes", pcm=False, heard=0))
        assert not sound(alone)
        assert np.array_equal(codes(alone), codes(rest))

    async def test_it_goes_on_behind_what_it_would_not_have_said(self, engine: Synthesizer) -> None:
        if not engine.info.continues:
            return
        other = codes(await collect(engine, request("Something else altogether.")))[:, :20]
        rest = await collect(engine, replace(request(session="t"), spoken=other, heard=5 * HOP))
        assert finish(rest).frames == 20 + codes(rest).shape[1] > 20
        assert audio(rest)[0].start == 5 * HOP
        assert len(sound(rest)) == 2 * HOP * (finish(rest).frames - 5)

    async def test_rows_grow_with_the_context(self, engine: Synthesizer) -> None:
        few = engine.count_rows(ContextSpec())
        heard = Exchange(TEXT, np.zeros((engine.info.num_codebooks, 50), dtype=np.int16))
        many = engine.count_rows(ContextSpec(exchanges=(heard,)), "A text.")
        assert many >= few + 50

    async def test_after_close_it_says_so(self, engine: Synthesizer) -> None:
        await engine.aclose()
        await engine.aclose()
        with pytest.raises(EngineClosedError):
            await collect(engine, request())

    async def test_close_ends_what_is_being_said(self, engine: Synthesizer) -> None:
        events = engine.speak(request(LONG))
        await anext(events)
        await engine.aclose()
        try:
            rest = [event async for event in events]
        except EngineError:
            return
        assert finish(rest).reason is FinishReason.STOPPED
