"""The service in a pipeline: what comes out, in which order, with which words; settings, errors, life and death."""

from __future__ import annotations

import asyncio
import gc
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pipecat.frames.frames import (
    AggregatedTextFrame,
    DataFrame,
    EndFrame,
    ErrorFrame,
    LLMAssistantPushAggregationFrame,
    LLMFullResponseEndFrame,
    LLMFullResponseStartFrame,
    LLMTextFrame,
    MetricsFrame,
    TextFrame,
    TTSAudioRawFrame,
    TTSSpeakFrame,
    TTSStartedFrame,
    TTSStoppedFrame,
    TTSTextFrame,
    TTSUpdateSettingsFrame,
)
from pipecat.metrics.metrics import TTFAMetricsData, TTFBMetricsData, TTSUsageMetricsData
from pipecat.pipeline.worker import PipelineParams
from pipecat.processors.metrics.frame_processor_metrics import FrameProcessorMetrics
from pipecat.services.settings import TTSSettings
from pipecat.services.tts_service import TextAggregationMode
from pipecat.tests.utils import run_test
from pipecat.transcriptions.language import Language
from pipecat.utils.text.transforms import strip_markdown

from higgs_voice import Sampling, SessionSettings, Voice, Window
from higgs_voice.adapters.pipecat import HiggsTTSService, HiggsTTSSettings, PlayoutTracker
from higgs_voice.adapters.pipecat_settings import check_arguments
from higgs_voice.backends import create_backend
from higgs_voice.backends.fake import FakeSynthesizer
from higgs_voice.conversation.synthesizer import FinishReason
from higgs_voice.errors import (
    DependencyError,
    EngineBusyError,
    EngineDiedError,
    ModelNotFoundError,
    SettingsError,
    SnapshotError,
    VoiceError,
    VoiceFileError,
)
from tests.adapters.pipecat_kit import room, settle_loop

TEXT = "Hello there, my friend. This is the second sentence of it. And here is a third one!"


@dataclass
class Foo(DataFrame):
    label: str = ""


def service(engine: FakeSynthesizer | None = None, **kwargs: Any) -> HiggsTTSService:
    kwargs.setdefault("lead_s", 1e9)
    return HiggsTTSService(engine=engine or FakeSynthesizer(frames_per_char=0.1), **kwargs)


def kinds(frames: Any, *wanted: type) -> list[type]:
    return [type(frame) for frame in frames if isinstance(frame, wanted)]


# What comes out


async def test_a_turn_comes_out_as_the_engine_made_it() -> None:
    engine = FakeSynthesizer(frames_per_char=0.5)
    tts = service(engine, session_settings=SessionSettings(crossfade=False))
    async with room(tts) as r:
        await r.say(TEXT)
        await r.until(lambda: bool(r.transcript()))
        whole = b"".join(
            (np.clip(np.rint(engine.sound_of(item.codes) * 32767), -32768, 32767)).astype("<i2").tobytes()
            for item in tts.session.exchanges
        )
        assert r.after_tts.audio == whole
        assert b"".join(r.output.written) == whole
        assert r.transcript() == [TEXT]
        assert r.errors() == []
        started, stopped = r.after_tts.of(TTSStartedFrame), r.after_tts.of(TTSStoppedFrame)
        ids = {
            frame.context_id
            for frame in r.after_tts.of(TTSAudioRawFrame, TTSStartedFrame, TTSStoppedFrame, TTSTextFrame)
        }
        assert len(started) == len(stopped) == len(ids) == 1


async def test_order_of_a_turn() -> None:
    tts = service()
    async with room(tts) as r:
        await r.say(TEXT)
        await r.until(lambda: bool(r.end.of(TTSStoppedFrame)))
        order = kinds(
            r.after_tts.down,
            LLMFullResponseStartFrame,
            TTSStartedFrame,
            TTSAudioRawFrame,
            TTSStoppedFrame,
            LLMFullResponseEndFrame,
        )
        assert order[:3] == [LLMFullResponseStartFrame, TTSStartedFrame, TTSAudioRawFrame]
        assert order[-3:] == [TTSAudioRawFrame, TTSStoppedFrame, LLMFullResponseEndFrame]
        assert set(order[2:-2]) == {TTSAudioRawFrame}


async def test_speak_frames_and_what_stands_between_them_keep_their_order() -> None:
    tts = service()
    async with room(tts, tracker=False) as r:
        for label in "abc":
            await r.worker.queue_frame(TTSSpeakFrame(f"Group {label} is here."))
            await r.worker.queue_frame(Foo(label))
        await r.until(lambda: len(r.end.of(Foo)) == 3)
        order = [
            getattr(frame, "label", type(frame).__name__)
            for frame in r.after_tts.of(TTSStartedFrame, TTSStoppedFrame, Foo)
        ]
        assert order == [name for label in "abc" for name in ("TTSStartedFrame", "TTSStoppedFrame", label)]
        contexts = [frame.context_id for frame in r.after_tts.of(TTSStartedFrame)]
        assert len(set(contexts)) == 3


async def test_a_speak_frame_commits_its_text_once_it_was_played() -> None:
    tts = service()
    async with room(tts) as r:
        await r.worker.queue_frame(TTSSpeakFrame("Please hold the line."))
        await r.until(lambda: bool(r.transcript()))
        assert r.transcript() == ["Please hold the line."]
        assert tts.session.context_text == "Please hold the line."
        await r.worker.queue_frame(TTSSpeakFrame("Not for the record.", append_to_context=False))
        await r.until(lambda: len(r.end.of(TTSStoppedFrame)) == 2)
        assert r.transcript() == ["Please hold the line."]
        assert not r.end.of(LLMAssistantPushAggregationFrame)
        assert tts.session.context_text.endswith("Not for the record.")


async def test_a_speak_frame_within_a_turn() -> None:
    tts = service()
    async with room(tts) as r:
        await r.say("Let me see. ", end=False)
        await r.worker.queue_frame(TTSSpeakFrame("One moment."))
        await r.say(" Here it is.", start=False)
        await r.until(lambda: bool(r.transcript()))
        assert " ".join(r.transcript()).split() == "Let me see. Here it is. One moment.".split()
        assert r.errors() == []


@pytest.mark.parametrize("tracker", [True, False])
async def test_words_arrive_whole_and_in_order(tracker: bool) -> None:
    text = "Dr. Smith pays $3.50, e.g. for **two** “teas” — 50% more 😀 than in 1999… ok? Yes! (Or so.)"
    tts = service(FakeSynthesizer(frames_per_char=0.1))
    async with room(tts, tracker=tracker) as r:
        await r.say(text, size=1)
        await r.until(lambda: bool(r.transcript()))
        assert r.transcript() == [text]
        assert r.errors() == []


async def test_word_times_follow_the_sound() -> None:
    tts = service(FakeSynthesizer(frames_per_char=2))
    async with room(tts, tracker=False, held=True) as r:
        await r.say("one two three four five six seven eight nine ten.")
        await r.until(lambda: bool(r.after_tts.of(TTSStoppedFrame)))
        frames = r.after_tts.of(TTSTextFrame)
        words = next(iter(tts._utterances.values())).script.words
        assert [frame.text for frame in frames] == "one two three four five six seven eight nine ten.".split()
        for frame, word in zip(frames, words, strict=True):
            assert (frame.pts - frames[0].pts) / 1e9 == pytest.approx(word.start_s - words[0].start_s, abs=0.01)
        assert words[-1].start_s > 1.0


async def test_words_of_a_second_utterance_wait_for_the_sound_of_the_first() -> None:
    """The framework counts from the last *word* of what it spoke before; the sound after that word must be added."""
    tts = service(FakeSynthesizer(frames_per_char=2))
    async with room(tts, tracker=False, held=True) as r:
        await r.worker.queue_frame(TTSSpeakFrame("Wait for meeeeeeeeeeeeeeeeeeeeee."))
        await r.worker.queue_frame(TTSSpeakFrame("Now."))
        await r.until(lambda: len(r.after_tts.of(TTSStoppedFrame)) == 2)
        first = sum(
            len(f.audio)
            for f in r.after_tts.of(TTSAudioRawFrame)
            if f.context_id == r.after_tts.of(TTSStartedFrame)[0].context_id
        )
        words = r.after_tts.of(TTSTextFrame)
        assert (words[-1].pts - words[0].pts) / 1e9 == pytest.approx(first / 48000, abs=0.1)


async def test_a_stall_of_the_llm_is_added_to_the_word_times() -> None:
    tts = service(FakeSynthesizer(frames_per_char=0.2))
    async with room(tts, tracker=False) as r:
        await r.say("Short one. And ", end=False)
        await r.until(lambda: bool(r.after_tts.of(TTSAudioRawFrame)))
        await asyncio.sleep(0.6)  # the sound (0.1 s) is over long before more text comes
        await r.say("another sentence.", start=False)
        await r.until(lambda: bool(r.transcript()))
        words = {frame.text: frame.pts / 1e9 for frame in r.after_tts.of(TTSTextFrame)}
        assert words["another"] - words["Short"] > 0.55
        assert r.transcript() == ["Short one. And another sentence."]


async def test_a_context_that_a_stall_closed_is_opened_again() -> None:
    tts = service(FakeSynthesizer(frames_per_char=0.2), stop_frame_timeout_s=0.15)
    async with room(tts) as r:
        await r.say("Short one. And ", end=False)
        await r.until(lambda: bool(r.end.of(TTSStoppedFrame)))
        await r.say("another sentence.", start=False)
        await r.until(lambda: bool(r.transcript()))
        assert r.transcript() == ["Short one. And another sentence."]
        assert len({frame.context_id for frame in r.after_tts.of(TTSStartedFrame)}) == 1
        assert len(r.after_tts.of(TTSStartedFrame)) == 2
        assert len(tts.session.exchanges) == 2
        assert tts.session.stats.provisional == 0


async def test_a_turn_whose_end_the_llm_never_sent_does_not_hold_up_the_next() -> None:
    tts = service()
    async with room(tts) as r:
        await r.say("This one is cut off by the", end=False)
        await r.say("But this one is whole.")
        await r.until(lambda: bool(r.transcript()))
        assert r.transcript()[-1].endswith("But this one is whole.")
        assert tts.session.context_text.endswith("But this one is whole.")


async def test_text_outside_of_any_turn() -> None:
    tts = service()
    async with room(tts) as r:
        await r.worker.queue_frame(TextFrame("Loose text is spoken too."))
        await r.until(lambda: bool(r.end.of(TTSStoppedFrame)))
        assert tts.session.context_text == "Loose text is spoken too."


async def test_text_that_comes_by_the_sentence_keeps_its_spaces() -> None:
    tts = service()
    async with room(tts) as r:
        await r.worker.queue_frame(LLMFullResponseStartFrame())
        await r.worker.queue_frame(AggregatedTextFrame("Hello there.", "sentence"))
        await r.worker.queue_frame(AggregatedTextFrame("How are you?", "sentence"))
        await r.worker.queue_frame(LLMFullResponseEndFrame())
        await r.until(lambda: bool(r.transcript()))
        assert r.transcript() == ["Hello there. How are you?"]
        assert tts.session.context_text == "Hello there.\nHow are you?"


async def test_what_is_not_to_be_spoken_keeps_its_place_in_the_transcript() -> None:
    tts = service(FakeSynthesizer(frames_per_char=1), skip_text_types=["code"])
    async with room(tts) as r:
        await r.worker.queue_frame(LLMFullResponseStartFrame())
        await r.worker.queue_frame(AggregatedTextFrame("Look at this:", "sentence"))
        await r.worker.queue_frame(AggregatedTextFrame("x = 1", "code"))
        await r.worker.queue_frame(AggregatedTextFrame("That was it.", "sentence"))
        await r.worker.queue_frame(LLMFullResponseEndFrame())
        await r.until(lambda: bool(r.transcript()))
        assert r.transcript() == ["Look at this: x = 1 That was it."]
        assert "x = 1" not in tts.session.context_text


async def test_a_transform_changes_what_is_spoken_and_not_the_transcript() -> None:
    async def shout(text: str, kind: str) -> str:
        return text.replace("cat", "dog and dog")

    tts = service(text_transforms=[("*", strip_markdown), ("*", shout)])
    async with room(tts) as r:
        await r.worker.queue_frame(TTSSpeakFrame("The cat sat."))
        await r.until(lambda: bool(r.transcript()))
        assert r.transcript() == ["The cat sat."]
        assert tts.session.context_text == "The dog and dog sat."


@pytest.mark.parametrize("text", ["", "   ", "\n\n", "😀 🎉", "***", "\x00\x01"])
async def test_nothing_to_speak_is_no_error(text: str) -> None:
    tts = service()
    async with room(tts) as r:
        for _ in range(4):  # three silent contexts in a row would have the framework give the service up
            await r.say(text)
            await r.worker.queue_frame(Foo("behind"))
        await r.until(lambda: len(r.end.of(Foo)) == 4)
        await r.say("Still there.")
        await r.until(lambda: "Still there." in tts.session.context_text)
        assert r.errors() == []
        assert tts.is_usable


async def test_a_sample_rate_of_ones_own() -> None:
    tts = service(FakeSynthesizer(frames_per_char=1), sample_rate=16000)
    async with room(tts) as r:
        await r.say("Twenty characters ok.")
        await r.until(lambda: bool(r.transcript()))
        frames = r.after_tts.of(TTSAudioRawFrame)
        assert {frame.sample_rate for frame in frames} == {16000}
        seconds = sum(len(frame.audio) for frame in frames) / 32000
        assert seconds == pytest.approx(tts.session.exchanges[0].frames / 25, abs=0.002)


async def test_sound_is_not_handed_over_long_before_it_is_played() -> None:
    tts = service(FakeSynthesizer(frames_per_char=2), lead_s=0.5)
    async with room(tts, held=True) as r:
        await r.say(TEXT)
        await r.after_tts.until(lambda: len(r.after_tts.audio) >= 0.5 * 48000)
        await settle_loop(500)
        assert len(r.after_tts.audio) / 48000 < 1.0
        await r.interrupt()


# Metrics


async def test_metrics() -> None:
    tts = service()
    async with room(tts, params=PipelineParams(enable_metrics=True, enable_usage_metrics=True)) as r:
        await r.say(TEXT)
        await r.until(lambda: bool(r.transcript()))
        data = [item for frame in r.after_tts.of(MetricsFrame) for item in frame.data if item.processor == tts.name]
        ttfb = [item for item in data if isinstance(item, TTFBMetricsData) and item.value > 0]
        ttfa = [item for item in data if isinstance(item, TTFAMetricsData)]
        usage = [item for item in data if isinstance(item, TTSUsageMetricsData)]
        assert len(ttfb) == len(ttfa) == 1
        assert [item.value for item in usage] == [len(TEXT)]
        assert ttfb[0].model == "fake"


async def test_each_character_is_counted_once() -> None:
    tts = service()
    async with room(tts, params=PipelineParams(enable_metrics=True, enable_usage_metrics=True)) as r:

        async def usage(count: int) -> list[int]:
            def known() -> list[int]:
                data = [item for frame in r.after_tts.of(MetricsFrame) for item in frame.data]
                return [item.value for item in data if isinstance(item, TTSUsageMetricsData)]

            await r.until(lambda: len(known()) >= count)
            await settle_loop()
            return known()

        await r.worker.queue_frame(TTSSpeakFrame("Please hold the line."))
        assert await usage(1) == [21]
        await r.say("Second turn.")
        assert await usage(2) == [21, 12]
        await r.say("Let me see. ", end=False)
        await r.worker.queue_frame(TTSSpeakFrame("One moment."))
        await r.say("Here it is.", start=False)
        assert await usage(5) == [21, 12, 12, 11, 11]
        await r.worker.queue_frame(TextFrame("Loose."))
        assert await usage(6) == [21, 12, 12, 11, 11, 6]
        await r.say("This is cut off by", end=False)
        await r.until(lambda: any("off by" in item.script.written for item in tts._utterances.values()))
        await r.interrupt()
        assert await usage(7) == [21, 12, 12, 11, 11, 6, 18]
        await r.say("This one has no end.", end=False)
        await r.say("Next.")
        assert await usage(9) == [21, 12, 12, 11, 11, 6, 18, 20, 5]


async def test_each_chunk_is_reported() -> None:
    tts = service()
    reports: list[Any] = []

    @tts.event_handler("on_chunk")
    async def on_chunk(_: HiggsTTSService, report: Any) -> None:
        reports.append(report)

    async with room(tts) as r:
        await r.say(TEXT)
        await r.until(lambda: bool(r.transcript()))
    assert " ".join(report.written for report in reports).split() == TEXT.split()
    assert [report.exchanges for report in reports] == list(range(len(reports)))


# Settings


async def test_settings_are_complete_and_settings_go_before_arguments() -> None:
    tts = service(
        voice="masculine",
        settings=HiggsTTSSettings(temperature=0.1, voice="feminine; warm"),
        session_settings=SessionSettings(sampling=Sampling(top_k=5, temperature=0.9), window=Window.last_n(2)),
    )
    assert (tts.settings.voice, tts.settings.temperature, tts.settings.top_k) == ("feminine; warm", 0.1, 5)
    async with room(tts) as r:
        await r.say("Hello.")
        await r.until(lambda: bool(r.transcript()))
        session = tts.session
        assert session.voice.speaker_lines == ("SPEAKER0: feminine; warm",)
        assert session.settings.sampling.temperature == 0.1
        assert session.settings.window.n == 2


async def test_live_updates() -> None:
    engine = FakeSynthesizer(frames_per_char=0.5)
    tts = service(engine, voice="feminine; warm")
    async with room(tts) as r:
        await r.say("Hello.")
        await r.until(lambda: bool(r.transcript()))
        await r.worker.queue_frame(TTSUpdateSettingsFrame(delta=HiggsTTSSettings(temperature=0.3, seed=7)))
        await r.say("Same context.")
        await r.until(lambda: len(r.transcript()) == 2)
        assert (engine.requests[1].sampling.temperature, engine.requests[1].sampling.seed) == (0.3, 7)
        assert len(engine.requests[1].context.exchanges) == 1
        await r.worker.queue_frame(TTSUpdateSettingsFrame(delta=TTSSettings(voice="masculine; old")))
        await r.say("New voice, new context.")
        await r.until(lambda: len(r.transcript()) == 3)
        assert engine.requests[2].context.voice.speakers == ("SPEAKER0: masculine; old",)
        assert engine.requests[2].context.exchanges == ()
        delta = HiggsTTSSettings(scene="A quiet room.", on_voice_change="keep", language="de")
        await r.worker.queue_frame(TTSUpdateSettingsFrame(delta=delta))
        await r.say("New scene, old context.")
        await r.until(lambda: len(engine.requests) == 4)
        assert engine.requests[3].context.voice.scene == "A quiet room."
        assert engine.requests[3].context.voice.speakers == ("SPEAKER0: masculine; old",)
        assert len(engine.requests[3].context.exchanges) == 1
        assert tts.session.settings.language == "de"
        assert (tts.settings.scene, tts.settings.voice) == ("A quiet room.", "masculine; old")
        assert r.errors() == []


async def test_a_setting_that_cannot_be_is_an_error_and_changes_nothing(tmp_path: Any) -> None:
    tts = service()
    async with room(tts) as r:
        for delta in (
            HiggsTTSSettings(temperature=99.0),
            HiggsTTSSettings(voice=str(tmp_path / "nobody.voice"), seed=3),
        ):
            await r.worker.queue_frame(TTSUpdateSettingsFrame(delta=delta))
        await r.say("Hello.")
        await r.until(lambda: bool(r.transcript()))
        assert tts.settings.temperature == Sampling().temperature
        assert tts.settings.seed is None
        assert len(r.errors()) == 2
        assert "temperature" in r.errors()[0]
        assert "does not exist" in r.errors()[1]


async def test_a_saved_voice_by_its_path(tmp_path: Any) -> None:
    path = tmp_path / "anna.voice"
    Voice.create(name="anna", scene="In a library.", speakers="feminine").save(path)
    tts = service(voice=str(path))
    async with room(tts):
        assert tts.session.voice.name == "anna"
        assert tts.session.voice.scene == "In a library."


@pytest.mark.parametrize(
    ("argument", "match"),
    [
        ({"text_aggregation_mode": TextAggregationMode.SENTENCE}, "cuts them itself"),
        ({"aggregate_sentences": True}, "cuts them itself"),
        ({"reuse_context_id_within_turn": False}, "reuse_context_id_within_turn can only be True"),
        ({"push_stop_frames": False}, "push_stop_frames can only be True"),
        ({"push_start_frame": False}, "push_start_frame can only be True"),
        ({"push_text_frames": True}, "push_text_frames can only be False"),
        ({"settings": HiggsTTSSettings(temperature=-1.0)}, "temperature"),
        ({"settings": HiggsTTSSettings(language="xx")}, "language must be a tag .*got 'xx'"),
        ({"settings": HiggsTTSSettings(on_voice_change="bad")}, 'must be "new" or "keep"'),  # pyright: ignore[reportArgumentType]
        ({"temperature": 0.3}, r"settings=HiggsTTSService.Settings\(temperature=...\)"),
        ({"speakers": "warm"}, r"settings=HiggsTTSService.Settings\(speakers=...\)"),
        ({"language": "de"}, r"settings=HiggsTTSService.Settings\(language=...\)"),
        ({"seed": 7}, r"settings=HiggsTTSService.Settings\(seed=...\)"),
        ({"window": Window.last_n(2)}, r"session_settings=SessionSettings\(window=...\)"),
        ({"voice_id": "ada"}, r"no argument 'voice_id'; write voice=\.\.\."),
        ({"params": {}}, r"no argument 'params'; write settings=HiggsTTSService.Settings\(\.\.\.\)"),
        ({"api_key": "x"}, r"no argument 'api_key'; write model=\"ws://TOKEN@host:port\""),
        ({"voise": "ada"}, r"no argument 'voise'; did you mean voice=\.\.\.\?"),
        ({"sampel_rate": 8000}, r"no argument 'sampel_rate'; did you mean sample_rate=\.\.\.\?"),
        ({"tempreture": 1}, r"'tempreture'; did you mean settings=HiggsTTSService.Settings\(temperature=...\)\?"),
        ({"chunkr": 1}, r"'chunkr'; did you mean session_settings=SessionSettings\(chunker=...\)\?"),
        ({"qqq": 1}, r"no argument 'qqq'; it has: model, engine, voice, .*, sample_rate, .*, name, "),
    ],
)
def test_constructing_is_refused_with_a_sentence(argument: dict[str, Any], match: str) -> None:
    with pytest.raises(SettingsError, match=match):
        service(**argument)


async def test_what_the_classes_behind_the_service_take_goes_through() -> None:
    class Logged:
        def __init__(self, *, log_to: str = "") -> None:
            self.log_to = log_to

    class LoggedService(HiggsTTSService, Logged):
        def __init__(self, *, log_to: str, **kwargs: Any) -> None:
            HiggsTTSService.__init__(self, **kwargs)
            Logged.__init__(self, log_to=log_to)

    tts = LoggedService(
        log_to="here",
        engine=FakeSynthesizer(),
        sample_rate=8000,
        name="ada",
        metrics=FrameProcessorMetrics(),
        enable_direct_mode=False,
        transport_destination="second",
        stop_frame_timeout_s=5.0,
        task_manager=None,
    )
    assert (tts.name, tts.log_to) == ("ada", "here")
    check_arguments({"log_to": "here"}, LoggedService)
    with pytest.raises(SettingsError, match="'log_to'"):
        check_arguments({"log_to": "here"}, HiggsTTSService)


@pytest.mark.parametrize(
    ("argument", "error", "match"),
    [
        ({"model": "nope"}, ModelNotFoundError, "there is no model 'nope'"),
        ({"model": "/nowhere/at/all"}, ModelNotFoundError, "there is no model '/nowhere/at/all'"),
        ({"settings": HiggsTTSSettings(model="nope")}, ModelNotFoundError, "there is no model 'nope'"),
        ({"voice": "nobody"}, VoiceError, "there is no voice 'nobody'; there are: .*ross"),
        ({"voice": "/nowhere/x.voice"}, VoiceFileError, "does not exist"),
        ({"settings": HiggsTTSSettings(voice="nobody")}, VoiceError, "there is no voice 'nobody'"),
        ({"engine": FakeSynthesizer(), "voice": "nobody"}, VoiceError, "there is no voice 'nobody'"),
    ],
)
def test_what_is_not_on_this_machine_is_refused_when_it_is_named(
    argument: dict[str, Any], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        HiggsTTSService(**argument)


def test_what_only_a_server_or_the_hub_can_know_is_not_asked_here(tmp_path: Path) -> None:
    HiggsTTSService(model="ws://127.0.0.1:1", voice="nobody")
    HiggsTTSService(engine=create_backend("ws://127.0.0.1:1"), voice="nobody")
    HiggsTTSService(model="nobody/nothing")
    HiggsTTSService(model=str(tmp_path), voice="low; a bit hoarse")
    HiggsTTSService(model="boson:nobody/nothing", voice="ross")


def test_what_the_framework_would_set_anyway_is_taken() -> None:
    service(text_aggregation_mode=None, push_text_frames=False, push_start_frame=True, push_stop_frames=True)
    service(text_aggregation_mode="token", reuse_context_id_within_turn=True, aggregate_sentences=False)


async def test_a_language_is_a_known_one_and_none_is_the_sessions_own() -> None:
    tts = service(session_settings=SessionSettings(language="fr"), settings=HiggsTTSSettings(language="de-AT"))
    async with room(tts) as r:
        assert tts.session.settings.language == "de"
        for language, expected in ((None, "fr"), ("pt_BR", "pt"), ("xx", "pt"), (Language.EN_GB, "en")):
            await r.worker.queue_frame(TTSUpdateSettingsFrame(delta=HiggsTTSSettings(language=language)))
            await r.worker.queue_frame(Foo(str(language)))
            await r.until(lambda: bool(r.end.of(Foo)))
            r.end.down.clear()
            assert (tts.session.settings.language, tts.settings.language) == (expected, expected)
        bad = HiggsTTSSettings(on_voice_change="bad")  # pyright: ignore[reportArgumentType]
        await r.worker.queue_frame(TTSUpdateSettingsFrame(delta=bad))
        await r.until(lambda: len(r.errors()) == 2)
        assert "language must be a tag" in r.errors()[0]
        assert 'on_voice_change must be "new" or "keep"' in r.errors()[1]
        assert tts.settings.on_voice_change == "new"


# Errors


async def test_an_engine_that_dies_in_mid_turn_is_an_error_frame_and_the_next_turn_works() -> None:
    engine = FakeSynthesizer(
        frames_per_char=0.5,
        script=lambda request: EngineDiedError("the worker is gone") if "second" in request.text else None,
    )
    tts = service(engine)
    async with room(tts) as r:
        await r.say(TEXT)
        await r.end.until(lambda: bool(r.end.of(TTSStoppedFrame)))
        await r.until(lambda: bool(r.errors()))
        assert r.errors() == ["Higgs could not speak: the worker is gone"]
        await r.say("The next turn works.")
        await r.until(lambda: any("next" in text for text in r.transcript()))
        assert tts.is_usable
        assert "second" not in " ".join(r.transcript())
        assert tts.session.context_text.split("\n")[-1] == "The next turn works."


@pytest.mark.parametrize(
    ("tracker", "fails", "again_s"),
    [(True, "One", 0.0), (False, "One", 0.0), (True, "Five", 0.7), (True, "Five", 1.3), (False, "Five", 0.7)],
)
async def test_after_a_reply_broke_off_its_rest_is_dropped_and_the_next_one_comes_at_once(
    tracker: bool, fails: str, again_s: float
) -> None:
    engine = FakeSynthesizer(
        script=lambda request: EngineBusyError("at capacity") if request.text.startswith(fails) else None
    )
    tts = HiggsTTSService(engine=engine)
    async with room(tts, tracker=tracker) as r:
        await r.say("One two three four. Five six seven eight. ", end=False)
        await r.until(lambda: "Higgs could not speak: at capacity" in r.errors())
        await asyncio.sleep(again_s)
        await r.say("Nine ten eleven twelve. Thirteen fourteen", start=False)
        await r.say("A new reply comes now.")
        async with asyncio.timeout(4):
            await r.until(lambda: "A new reply comes now." in " ".join(r.transcript()))
        assert (
            " ".join(r.transcript()) == ("One two three four. " if fails == "Five" else "") + "A new reply comes now."
        )
        assert engine.requests[-1].text == "A new reply comes now."
        assert not any(word in item.text for item in engine.requests for word in ("Nine", "Thirteen"))
        await r.until(lambda: not tts.get_audio_contexts())


async def test_a_chunk_without_sound_is_an_error_frame_and_the_rest_is_spoken() -> None:
    engine = FakeSynthesizer(
        frames_per_char=0.5, script=lambda request: FinishReason.COLLAPSE if "second" in request.text else None
    )
    tts = service(engine)
    async with room(tts) as r:
        await r.say(TEXT)
        await r.end.until(lambda: bool(r.end.of(TTSStoppedFrame)))
        assert "third" in tts.session.context_text
        assert "second" not in tts.session.context_text
        assert len(r.errors()) == 1


async def test_an_engine_that_cannot_be_had_is_a_permanent_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(model: str) -> None:
        raise ModelNotFoundError(f"there is no model {model!r}")

    monkeypatch.setattr("higgs_voice.adapters.engines.create_backend", refuse)
    tts = HiggsTTSService(model="nobody/nothing")
    frames = [LLMFullResponseStartFrame(), LLMTextFrame("Hello."), LLMFullResponseEndFrame()]
    down, up = await run_test(tts, frames_to_send=frames, start_timeout=20)
    errors = [frame.error for frame in up if isinstance(frame, ErrorFrame)]
    assert errors
    assert "Higgs cannot speak" in errors[0]
    assert "nobody/nothing" in errors[0]
    assert not tts.is_usable
    assert not kinds(down, TTSAudioRawFrame)


def test_pipecat_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util
    import sys

    monkeypatch.setitem(sys.modules, "pipecat.frames.frames", None)
    path = sys.modules["higgs_voice.adapters.pipecat"].__file__
    assert path is not None
    spec = importlib.util.spec_from_file_location("higgs_voice.adapters.pipecat_again", path)
    assert spec is not None
    assert spec.loader is not None
    with pytest.raises(DependencyError, match=r"higgs-voice\[pipecat\]"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


# Life and death


async def test_the_framework_s_own_harness() -> None:
    frames = [
        LLMFullResponseStartFrame(),
        *[LLMTextFrame(word) for word in ("Hello ", "there", ".")],
        LLMFullResponseEndFrame(),
    ]
    down, up = await run_test(service(FakeSynthesizer(frames_per_char=0.2)), frames_to_send=frames)
    assert kinds(down, TTSStartedFrame, TTSTextFrame, TTSStoppedFrame, LLMFullResponseEndFrame) == [
        TTSStartedFrame,
        TTSTextFrame,
        TTSTextFrame,
        TTSStoppedFrame,
        LLMFullResponseEndFrame,
    ]
    assert not kinds(up, ErrorFrame)


async def test_the_end_waits_for_what_is_left_to_play_even_without_the_turns_end() -> None:
    tts = service()
    async with room(tts) as r:
        await r.say("This is still to be said", end=False)
    assert tts._session is None
    assert len(r.output.written) > 0


async def test_no_task_outlives_the_service() -> None:
    gc.collect()
    before = asyncio.all_tasks()
    engine = FakeSynthesizer(frames_per_char=5)
    tts = service(engine, lead_s=0.1)
    async with room(tts, held=True) as r:
        await r.say(TEXT)
        await r.output.play(2)
        await r.worker.cancel()
        await r.until(lambda: r.worker.has_finished())
    await settle_loop()
    left = {task.get_name() for task in asyncio.all_tasks() - before}
    assert not left
    assert not engine.active
    await tts.cleanup()  # again does no harm


async def test_a_call_goes_on_in_another_service_with_what_was_played_of_it() -> None:
    tts = service(FakeSynthesizer(frames_per_char=1.5), voice=Voice.create(scene="A quiet room."), lead_s=0.5)
    async with room(tts, held=True) as r:
        await r.say(TEXT)
        await r.output.play(45)
        await r.until(lambda: next(iter(tts._utterances.values())).played_s >= 44 * 0.04 - 1e-6)
        (utterance,) = tts._utterances.values()
        data = tts.snapshot()
        played_s, call_id = utterance.played_s, tts.session.call_id
        assert played_s == pytest.approx(44 * 0.04, abs=0.041)
        made = [item.text for item in tts.session.exchanges]
    engine = FakeSynthesizer(frames_per_char=1.5)
    there = service(engine, snapshot=data)
    async with room(there) as r:
        held = there.session.exchanges
        assert sum(item.frames for item in held) == int(played_s * 25 + 1e-6)
        assert made[0].startswith(held[0].text)
        assert there.session.call_id == call_id
        assert there._settings.scene == "A quiet room."
        await r.say("It goes on.")
        await r.until(lambda: bool(engine.requests))
        assert engine.requests[0].context.voice.scene == "A quiet room."
        assert [item.text for item in engine.requests[0].context.exchanges] == [item.text for item in held]


async def test_a_snapshot_brings_its_voice_and_must_be_one() -> None:
    async with room(service()) as r:
        data = r.tts.snapshot()
    with pytest.raises(SettingsError, match="a snapshot or a voice"):
        service(snapshot=data, voice="warm")
    with pytest.raises(SnapshotError, match="damaged"):
        service(snapshot=data[:-1])


async def test_services_of_one_model_share_one_engine_and_the_last_closes_it() -> None:
    from higgs_voice.adapters import engines

    first, second = HiggsTTSService(model="fake"), HiggsTTSService(model="fake")
    async with room(first):
        async with room(second) as r:
            assert first.session.engine is second.session.engine
            engine = first.session.engine
            await r.say("Hello.")
            await r.until(lambda: bool(r.transcript()))
        assert not engine._closed  # type: ignore[attr-defined]
    assert engine._closed  # type: ignore[attr-defined]
    assert not engines._shared


async def test_a_given_engine_is_not_closed() -> None:
    engine = FakeSynthesizer()
    async with room(service(engine)):
        pass
    assert not engine._closed


async def test_a_tracker_before_the_transport_says_so() -> None:
    tts = service()
    down, up = await run_test(
        _chain(tts, PlayoutTracker(tts)),
        frames_to_send=[LLMFullResponseStartFrame(), LLMTextFrame("Hello."), LLMFullResponseEndFrame()],
    )
    assert any("place it after transport.output()" in frame.error for frame in up if isinstance(frame, ErrorFrame))
    assert kinds(down, TTSAudioRawFrame)


def _chain(*processors: Any) -> Any:
    from pipecat.pipeline.pipeline import Pipeline

    return Pipeline(list(processors))


def test_nothing_is_loaded_by_the_constructor() -> None:
    tts = HiggsTTSService(model="nobody/nothing")
    with pytest.raises(Exception, match="set up"):
        _ = tts.session
    assert EndFrame  # the module's frames are pipecat's
