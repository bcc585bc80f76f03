"""Whole turns, as an LLM streams them: what the engine is asked to say, chunk by chunk."""

from __future__ import annotations

import pytest

from higgs_voice import SessionSettings, VoiceSession
from higgs_voice.backends.fake import FakeSynthesizer


@pytest.mark.parametrize(
    ("turn", "spoken"),
    [
        (
            "Hi! I have gone ahead and scheduled your appointment for Tuesday afternoon at our downtown office. See you.",
            [
                "Hi! I have gone ahead and scheduled your appointment,",
                "for Tuesday afternoon at our downtown office.",
                "See you.",
            ],
        ),
        ("Your verification code: 482913.", ["Your verification code,", "four eight two nine one three."]),
        (
            "Use ``` to open a code block. Then type your code and close it.",
            ["Use to open a code block.", "Then type your code and close it."],
        ),
        ("This is a mark here. ``` is what it looks like.", ["This is a mark here.", "is what it looks like."]),
        ("<think>I should greet.</think>Hello there.", ["Hello there."]),
        (
            'The "<think>" tag is one. They hide it. Then it answers.',
            ['The " " tag is one.', "They hide it.", "Then it answers."],
        ),
        (
            "<!-- a comment that is a good deal longer than eighty characters, and that nobody is to hear -->Hello there.",
            ["Hello there."],
        ),
        ("We open at 9 a.m. Monday, 9:00 AM – 5:00 PM.", ["We open at nine A M Monday, nine A M to five P M."]),
    ],
)
@pytest.mark.parametrize("size", [1, 4, 1000])
async def test_what_the_engine_is_asked_to_say(turn: str, spoken: list[str], size: int) -> None:
    engine = FakeSynthesizer()
    async with VoiceSession(engine, settings=SessionSettings()) as session:
        speech = session.speak()
        for i in range(0, len(turn), size):
            speech.feed(turn[i : i + size])
        speech.end()
        assert await speech.collect()
    assert [request.text for request in engine.requests] == spoken
