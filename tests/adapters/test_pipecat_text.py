"""What the transcript says was spoken, where that differs from what was given to the voice."""

from __future__ import annotations

from typing import Any

import pytest
from loguru import logger
from pipecat.frames.frames import (
    AggregatedTextFrame,
    LLMFullResponseEndFrame,
    LLMFullResponseStartFrame,
    TTSSpeakFrame,
    TTSTextFrame,
)
from pipecat.utils.text.transforms import strip_markdown

from higgs_voice.adapters.pipecat import HiggsTTSService
from higgs_voice.adapters.playout import Script
from higgs_voice.backends.fake import FakeSynthesizer
from higgs_voice.conversation.timing import Word
from tests.adapters.pipecat_kit import Room, room


def script_of(*pieces: tuple[str, str], words: str | None = None) -> Script:
    """A script and the session's words of what was fed, each a second long."""
    script = Script()
    for fed, written in pieces:
        script.add(fed, written)
    fed = "".join(fed for fed, _ in pieces)
    at = 0
    for number, word in enumerate(words.split("|") if words else fed.split()):
        at = fed.index(word, at) + len(word)
        script.words.append(Word(word, number, number + 1, 0, at - len(word), at, at))
    return script


def shown(script: Script) -> list[str]:
    return [script.written[: script.written_by_word(count)] for count in range(len(script.words) + 1)]


def test_words_that_were_not_changed_stand_for_themselves() -> None:
    script = script_of(("Hello th", "Hello th"), ("ere. You", "ere. You"))
    assert shown(script) == ["", "Hello", "Hello there.", "Hello there. You"]


def test_white_space_at_the_beginning_is_no_part_of_it() -> None:
    script = script_of(("Hello", "\n\n Hello"), (" you", " you"))
    assert shown(script) == ["", "Hello", "Hello you"]


@pytest.mark.parametrize(
    ("fed", "written", "expected"),
    [
        (
            "This is very nice.",
            "This is **very** nice.",
            ["This", "This is", "This is **very**", "This is **very** nice."],
        ),
        ("It is five dollars now", "It is $5 now", ["It", "It is", "It is", "It is $5", "It is $5 now"]),
        ("One two", "[sighs] One two", ["[sighs] One", "[sighs] One two"]),
        ("One two", "One two [sighs]", ["One", "One two [sighs]"]),
        ("and so one two", "one two", ["", "", "one", "one two"]),
        ("The dog sat", "The old grey cat sat", ["The", "The old grey cat", "The old grey cat sat"]),
        ("Well — yes", "Well — **yes**", ["Well", "Well", "Well — **yes**"]),
        ("CASE matters not", "Case matters not", ["Case", "Case matters", "Case matters not"]),
        ("one two three", "*", ["", "", "*"]),
        ("Hello there ", "Hello there", ["Hello", "Hello there"]),
    ],
)
def test_of_a_changed_text_never_more_than_was_said(fed: str, written: str, expected: list[str]) -> None:
    assert shown(script_of((fed, written))) == ["", *expected]


def test_a_changed_text_without_spaces() -> None:
    script = script_of(("你好，今天", "你好，**今天**"), words="你|好，|今|天")
    assert shown(script) == ["", "你", "你好，**", "你好，**今", "你好，**今天**"]


def test_only_the_piece_that_was_changed_is_aligned() -> None:
    script = script_of(("So it is ", "So it is "), ("very good", "**very** good"), (" and on", " and on"))
    ends = ["**very**", "**very** good", "**very** good and", "**very** good and on"]
    assert shown(script)[4:] == [f"So it is {end}" for end in ends]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", (0, "")),
        ("It is", (2, "")),
        ("It is **very", (3, "")),
        ("It is **very** good, $5 Next", (6, "Next")),
        ("Nothing of it", (0, "Nothingofit")),
    ],
)
def test_how_many_words_the_llms_context_holds(text: str, expected: tuple[int, str]) -> None:
    script = script_of(("It is very good, five dollars", "It is **very** good, $5"))
    assert script.words_in(text) == expected


def test_what_a_word_is_preceded_by_is_what_was_written() -> None:
    script = script_of(("你好。 A\n\nb", "你好。 A\n\nb"))
    assert [script.take(word) for word in ("你", "好。", "A", "c", "b")] == [" 你", "好。", " A", None, "\n\nb"]


# In a pipeline


TEXT = "This is **very** important and I want you to know it well."


def service(**kwargs: Any) -> HiggsTTSService:
    return HiggsTTSService(engine=FakeSynthesizer(frames_per_char=1), lead_s=1e9, **kwargs)


async def speak(r: Room, kind: str) -> None:
    if kind == "speak":
        await r.worker.queue_frame(TTSSpeakFrame(TEXT))
        return
    await r.worker.queue_frame(LLMFullResponseStartFrame())
    await r.worker.queue_frame(AggregatedTextFrame(TEXT, "sentence"))
    await r.worker.queue_frame(LLMFullResponseEndFrame())


@pytest.mark.parametrize("kind", ["speak", "sentence"])
async def test_what_was_heard_of_a_changed_text_enters_the_transcript(kind: str) -> None:
    tts = service(text_transforms=[("*", strip_markdown)])
    async with room(tts, held=True) as r:
        await speak(r, kind)
        await r.until(lambda: r.held_back() >= 30)
        await r.output.play(30)  # 1.2 s of 2.2
        await r.interrupt()
        (said,) = r.transcript()
        assert said.startswith("This is **very** important")
        assert TEXT.startswith(said)
        assert said != TEXT
        assert said.replace("*", "") == tts.session.context_text


@pytest.mark.parametrize("kind", ["speak", "sentence"])
async def test_without_a_tracker_the_voice_remembers_what_the_transcript_says(kind: str) -> None:
    tts = service(text_transforms=[("*", strip_markdown)])
    async with room(tts, tracker=False) as r:
        await speak(r, kind)
        await r.until(lambda: r.output.seconds > 1.2)
        await r.interrupt()
        (said,) = r.transcript()
        assert said.startswith("This is **very** important")
        assert said.replace("*", "") == tts.session.context_text


@pytest.mark.parametrize("lead", [" ", "\n\n"])
async def test_a_reply_that_opens_with_white_space(lead: str) -> None:
    tts = service()
    async with room(tts, held=True) as r:
        await r.say(f"{lead}Hello there my good friend, how are you doing today.", size=100)
        await r.until(lambda: r.held_back() >= 30)
        await r.output.play(30)
        await r.interrupt()
        (said,) = r.transcript()
        assert said.startswith("Hello there my good friend,")
        assert said.split() == tts.session.context_text.split()


@pytest.mark.parametrize("tracker", [True, False])
@pytest.mark.parametrize(
    "text",
    ["你好，今天天气很好。我们去公园吧！", "Two things:\n\n1. One\n2. Two", "我用 Python 写代码。New York 很大。"],
)
async def test_the_white_space_is_the_llms(text: str, tracker: bool) -> None:
    tts = service()
    async with room(tts, tracker=tracker, real_time=False) as r:
        await r.say(text)
        await r.until(lambda: bool(r.transcript()))
        assert r.transcript() == [text]
        await r.say("And on.")
        await r.until(lambda: len(r.transcript()) == 2)
        assert r.transcript()[1] == "And on."


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("😀 **Bold** _x_ `code` [link](http://a.b) 1. item", "Bold** _x_ `code` [link](http://a.b) 1. item"),
        ("- **Key**: one\n- **Other**: two", "Key**: one Other**: two"),
        ('She said — "yes, now" — (loud)', 'She said yes, now" loud)'),
        ("That is nice 😀. **Bold** is next.", "That is nice Bold** is next."),
        ("## <b>This</b> - <i>that</i>", "<b>This</b> <i>that</i>"),
        ('**Bold** "words" (here)', '**Bold** "words" (here)'),
    ],
)
@pytest.mark.parametrize("kind", ["speak", "stream"])
async def test_the_framework_finds_each_word_behind_signs_that_are_not_spoken(text: str, words: str, kind: str) -> None:
    warnings: list[str] = []
    logger.enable("pipecat")
    sink = logger.add(warnings.append, level="WARNING")
    try:
        async with room(service(), tracker=False, real_time=False) as r:
            if kind == "speak":
                await r.worker.queue_frame(TTSSpeakFrame(text))
            else:
                await r.say(text)
            await r.until(lambda: bool(r.transcript()))
            assert [frame.text for frame in r.after_tts.of(TTSTextFrame)] == words.split(" ")
            assert r.transcript() == [text]
    finally:
        logger.remove(sink)
        logger.disable("pipecat")
    assert warnings == []
