"""Snapshots on the engine of tones: what they hold, when they are taken, and that nothing else is taken up."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import math
import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from higgs_voice import (
    ChunkerSettings,
    Lexicon,
    PcmChunk,
    Reference,
    Sampling,
    SessionSettings,
    Voice,
    VoiceSession,
    Window,
)
from higgs_voice.backends.fake import FakeSynthesizer
from higgs_voice.conversation import snapshot as snapshot_module
from higgs_voice.conversation.synthesizer import EngineInfo
from higgs_voice.errors import SnapshotError


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def clip(seed: int = 0) -> Reference:
    samples = np.random.default_rng(seed).normal(0, 0.1, 24000).astype(np.float32)
    return Reference.from_array(np.clip(samples, -1, 1), 24000, f"What clip {seed} says.")


def session_of(
    engine: FakeSynthesizer, clock: Clock | None = None, voice: Voice | None = None, **some: Any
) -> VoiceSession:
    settings = SessionSettings(**{"pauses": None, **some})
    return VoiceSession(engine, voice=voice, settings=settings, clock=clock or Clock())


def held(session: VoiceSession) -> list[tuple[str, bytes]]:
    return [(item.text, item.codes.tobytes()) for item in session.exchanges]


def asked(engine: FakeSynthesizer) -> list[Any]:
    """What the model is given by each request, ids aside."""
    found: list[Any] = []
    for request in engine.requests:
        voice = request.context.voice
        found.append(
            (
                request.text,
                (voice.system, voice.scene, voice.speakers),
                [(item.text, item.codes.tobytes()) for item in (*voice.references, *request.context.exchanges)],
                [item.text for item in request.next_context.exchanges] if request.next_context else None,
                request.sampling.replace(seed=None),
            )
        )
    return found


WINDOWS = [
    Window.seconds(3, 6),
    Window.seconds(3, 6, pin_first=False),
    Window.last_n(2),
    Window.last_n(None),
    Window.last_n(2, pin_first=True),
]
VOICES = [None, Voice.create(name="anna", scene="A hall.", speakers="warm", references=[clip(1), clip(2)])]


async def turns(session: VoiceSession, clock: Clock, first: int, last: int) -> None:
    """Heard in full, or interrupted, in turns."""
    for turn in range(first, last):
        speech = session.speak(f"This is turn number {turn}, with some words. And SQL is another sentence of it.")
        pieces = [event async for event in speech if isinstance(event, PcmChunk)]
        length = sum(piece.duration_s for piece in pieces)
        if turn % 3 == 2:
            speech.stop()
            session.settle(speech.id, length * 0.4)
        elif turn % 3 == 1:
            session.settle(speech.id, length)
        clock.now += length + 1.0


@pytest.mark.parametrize("voice", VOICES, ids=["none", "clips"])
@pytest.mark.parametrize("window", WINDOWS, ids=["seconds", "seconds-unpinned", "last2", "all", "last2-pinned"])
@pytest.mark.parametrize("moved_after", [0, 1, 4, 9])
async def test_a_call_goes_on_as_if_it_had_never_moved(window: Window, voice: Voice | None, moved_after: int) -> None:
    here, there, clock = FakeSynthesizer(), FakeSynthesizer(), Clock()
    own = {
        "window": window,
        "sampling": Sampling(temperature=0.0),
        "chunker": ChunkerSettings(min_first_chars=8),
        "language": "en",
        "call_id": "call-7",
    }
    stays = session_of(here, clock, voice, **own)
    stays.lexicon = Lexicon({"SQL": "sequel"})
    async with stays:
        await turns(stays, clock, 0, moved_after)
        data, stats = stays.snapshot(), stays.stats
        assert data == stays.snapshot()  # taking it changes nothing
        before = len(here.requests)
        at = clock.now
        await turns(stays, clock, moved_after, moved_after + 6)
        clock.now = at
        moves = await VoiceSession.restore(there, data, clock=clock)
        async with moves:
            assert moves.id != stays.id
            assert moves.call_id == "call-7"
            assert moves.stats == replace(stats, provisional=0)
            await turns(moves, clock, moved_after, moved_after + 6)
            assert asked(there) == asked(here)[before:]
            assert held(moves) == held(stays)
            assert moves.settings == stays.settings
            assert moves.rate.s_per_unit == stays.rate.s_per_unit
            assert moves.stats == stays.stats
            assert moves.snapshot() == stays.snapshot()
    assert any("sequel" in request.text for request in there.requests)


async def test_the_context_is_prefilled_before_the_first_speech() -> None:
    engine, clock = FakeSynthesizer(), Clock()
    async with session_of(engine, clock) as session:
        await turns(session, clock, 0, 3)
        data = session.snapshot()
    there = FakeSynthesizer()
    async with await VoiceSession.restore(there, data):
        assert [item.text for item in there.prepared[-1].exchanges] == [item.text for item in session.exchanges]


async def test_of_a_running_speech_it_holds_what_has_been_played() -> None:
    engine, clock = FakeSynthesizer(), Clock()
    async with session_of(engine, clock) as session:
        text = "one two three four five six seven eight nine ten."
        data = b""
        async for event in session.speak(text):
            if isinstance(event, PcmChunk) and event.start_s + event.duration_s > 2.0:
                clock.now += 1.234  # since its first sound was taken
                data = session.snapshot()
                break
        there = await VoiceSession.restore(FakeSynthesizer(), data)
        (kept,) = there.exchanges
        assert kept.frames == int(1.234 * 25)
        whole = engine.codes_for(text, round(len(text) * 1.5))
        assert np.array_equal(kept.codes, whole[:, : kept.frames])
        assert kept.text.startswith("one two")
        assert "ten" not in kept.text
        await there.aclose()


async def test_of_several_speeches_it_holds_what_each_has_played() -> None:
    engine, clock = FakeSynthesizer(), Clock()
    async with session_of(engine, clock) as session:
        first = session.speak("This was heard to its end, all of it.")
        length = sum([event.duration_s async for event in first if isinstance(event, PcmChunk)])
        unheard = session.speak("Nobody has heard this one. Not a word of it.")
        async for event in unheard:
            if isinstance(event, PcmChunk):
                break
        unheard.stop()
        there = await VoiceSession.restore(FakeSynthesizer(), session.snapshot())
        assert there.exchanges == ()  # no time has passed since their first sound
        clock.now += length
        there = await VoiceSession.restore(FakeSynthesizer(), session.snapshot())
        assert " ".join(item.text for item in there.exchanges) == "This was heard to its end, all of it."
        session.settle(first.id, length / 2)
        session.settle(unheard.id, 0.0)
        there = await VoiceSession.restore(FakeSynthesizer(), session.snapshot())
        assert held(there) == held(session)
        assert session.context_text.startswith("This was")
        assert "all of it" not in session.context_text


async def test_what_is_settled_behind_a_speech_that_plays_is_final_and_that_one_is_not() -> None:
    engine, clock = FakeSynthesizer(), Clock()
    async with session_of(engine, clock) as session:
        first = session.speak("one two three four five six seven eight.")
        await first.collect()
        unheard = session.speak("Nobody has heard this one.")
        await unheard.collect()
        session.settle(unheard.id, 0.0)
        clock.now += 1.0
        there = await VoiceSession.restore(FakeSynthesizer(), session.snapshot())
        assert [item.frames for item in there.exchanges] == [25]
        session.settle(first.id, 1.0)
        assert held(there) == held(session)


@pytest.mark.parametrize("window", [Window.seconds(20, math.inf), Window.seconds(math.inf, math.inf)])
async def test_bounds_that_are_none_come_back(window: Window) -> None:
    own = SessionSettings(window=window, run_ahead_s=math.inf)
    async with VoiceSession(FakeSynthesizer(), settings=own) as session:
        await session.speak("Hello there. How are you?").collect()
        data = session.snapshot()
        json.loads(data.splitlines()[1], parse_constant=pytest.fail)  # plain JSON
        async with await VoiceSession.restore(FakeSynthesizer(), data) as there:
            assert there.settings.window == window
            assert there.settings.run_ahead_s == math.inf


async def test_what_is_known_to_be_heard_goes_before_the_clock() -> None:
    engine, clock = FakeSynthesizer(), Clock()
    async with session_of(engine, clock, chunker=ChunkerSettings(min_first_chars=4)) as session:
        speech = session.speak("The first sentence of it. The second sentence of it.")
        length = sum([event.duration_s async for event in speech if isinstance(event, PcmChunk)])
        session.heard(speech.id, length / 2 + 0.1)
        there = await VoiceSession.restore(FakeSynthesizer(), session.snapshot())
        assert [item.text for item in there.exchanges] == ["The first sentence of it."]


async def test_a_voice_that_waits_for_the_next_speech_is_the_snapshots() -> None:
    for context, left in (("new", 0), ("keep", 1)):
        engine, clock = FakeSynthesizer(), Clock()
        async with session_of(engine, clock) as session:
            speech = session.speak("Something is being said.")
            async for event in speech:
                if isinstance(event, PcmChunk) and event.start_s > 0.7:
                    clock.now += 60.0
                    await session.update(voice=Voice.create(scene="Another."), context=context)  # type: ignore[arg-type]
                    data = session.snapshot()
                    break
            there = await VoiceSession.restore(FakeSynthesizer(), data)
            assert there.voice.scene == "Another."
            assert len(there.exchanges) == left


async def test_a_clip_moves_as_codes_and_is_not_encoded_again() -> None:
    class Deaf(FakeSynthesizer):
        async def encode(self, pcm: np.ndarray) -> np.ndarray:
            raise AssertionError("a clip was encoded again")

    async with session_of(FakeSynthesizer(), voice=VOICES[1]) as session:
        data = session.snapshot()
    assert len(data) < 8000
    async with await VoiceSession.restore(Deaf(), data) as there:
        again = await there.voice.resolve(Deaf())
        assert [item.text for item in again.references] == ["What clip 1 says.", "What clip 2 says."]


async def test_what_is_given_goes_before_what_was_kept() -> None:
    async with session_of(FakeSynthesizer(), language="de") as session:
        data = session.snapshot()
    own = SessionSettings(language="en")
    async with await VoiceSession.restore(
        FakeSynthesizer(), data, settings=own, lexicon=Lexicon({"a": "b"}), session_id="mine"
    ) as there:
        assert (there.settings.language, there.id) == ("en", "mine")
        assert there.lexicon is not None
        assert there.lexicon.entries == {"a": "b"}


async def test_the_call_keeps_its_id_in_the_books() -> None:
    async with session_of(FakeSynthesizer()) as session:
        async with await VoiceSession.restore(FakeSynthesizer(), session.snapshot()) as there:
            assert there.call_id == session.call_id
            async with await VoiceSession.restore(FakeSynthesizer(), there.snapshot()) as third:
                assert third.call_id == session.call_id


async def test_only_a_session_that_lives_has_a_snapshot() -> None:
    session = session_of(FakeSynthesizer())
    with pytest.raises(SnapshotError, match="has been started"):
        session.snapshot()
    await session.start()
    session.snapshot()
    await session.aclose()
    with pytest.raises(SnapshotError, match="not closed"):
        session.snapshot()


async def test_half_a_character_does_not_keep_a_call_from_moving() -> None:
    async with session_of(FakeSynthesizer(), normalize=False) as session:
        await session.speak("A broken \ud83d stream.").collect()
        session.settle(f"{session.id}/1", float("inf"))
        async with await VoiceSession.restore(FakeSynthesizer(), session.snapshot()) as there:
            assert there.context_text == "A broken ? stream."


# What is not taken up


async def taken(**voice: Any) -> bytes:
    clock = Clock()
    async with session_of(FakeSynthesizer(), clock, Voice.create(references=clip())) as session:
        await turns(session, clock, 0, 3)
        return session.snapshot()


def changed(data: bytes, **head: Any) -> bytes:
    """Another header."""
    first, _, body = data.partition(b"\n")
    return json.dumps({**json.loads(first), **head}).encode() + b"\n" + body


def altered(data: bytes, change: Any) -> bytes:
    """Other contents, with a checksum that fits: what somebody who means harm would send."""
    first, _, body = data.partition(b"\n")
    contents = json.loads(body)
    contents = change(contents) or contents
    body = json.dumps(contents).encode()
    head = {**json.loads(first), "blake2b": hashlib.blake2b(body, digest_size=16).hexdigest()}
    return json.dumps(head).encode() + b"\n" + body


async def refused(data: bytes, says: str, engine: FakeSynthesizer | None = None) -> None:
    engine = engine or FakeSynthesizer()
    with pytest.raises(SnapshotError, match=says):
        await VoiceSession.restore(engine, data)
    assert not engine.prepared


async def test_what_is_no_snapshot_says_so() -> None:
    data = await taken()
    for bad in (b"", b"\n", b"{}", b"[]\n{}", b"null\n", bytes(1000), data.partition(b"\n")[2], b"[" * 9999 + b"\n"):
        await refused(bad, "no snapshot")
    await refused(pickle.dumps({"format": "higgs-voice/snapshot"}), "no snapshot")
    await refused(changed(data, version=2), r"version 2 and this higgs-voice reads version 1; update higgs-voice")
    await refused(changed(data, version=0), r"version 0 .* the version that made it")
    await refused(changed(data, version="1"), "no snapshot")
    await refused(changed(data, format="higgs-voice/voice"), "no snapshot")
    await refused(data[:-1], "damaged")
    await refused(data.replace(b"This is turn", b"That is turn", 1), "damaged")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda it: it.update(more=1), "more"),
        (lambda it: {name: item for name, item in it.items() if name != "exchanges"}, "exchanges"),
        (lambda it: it["exchanges"][0].update(codes="????"), "codes"),
        (lambda it: it["exchanges"][0].update(codes=""), "no frames"),
        (lambda it: it["exchanges"][0].update(codes="AAAA"), "no frames"),
        (lambda it: it["exchanges"][0].update(text=7), "text"),
        (lambda it: it["exchanges"][0].update(text="x" * 65537), "text"),
        (lambda it: it.update(window=2), "window"),
        (lambda it: it.update(window=1), "pinned one"),
        (lambda it: it.update(pinned=99), "is pinned"),
        (lambda it: it.update(s_per_unit=0), "s_per_unit"),
        (lambda it: it.update(s_per_unit=float("nan")), "s_per_unit|NaN|cannot be taken up"),
        (lambda it: it.update(turns=-1), "turns"),
        (lambda it: it["settings"].update(nonsense=1), "has no setting 'nonsense'"),
        (lambda it: it["settings"]["sampling"].update(temperature=99), "temperature"),
        (lambda it: it.update(settings=[]), "settings"),
        (lambda it: it.update(lexicon={"": "x"}), "a written form is empty"),
        (lambda it: it["voice"].update(speakers="warm"), "speakers"),
        (lambda it: it["voice"]["references"][0].update(codes=_codes(-1)), "outside 0…1023"),
        (lambda it: it["exchanges"][0].update(codes=_codes(1024)), "outside 0…1023"),
        (lambda it: it["exchanges"][0].update(codes=_codes(0, 8193)), "8193 frames"),
        (lambda it: it["engine"].update(codec="other"), "another codec"),
        (lambda it: it["engine"].update(num_codebooks=4), "another codec"),
        (lambda it: it["engine"].update(codebook_size=4096), "another codec"),
        (lambda it: it["engine"].update(num_codebooks=0), "num_codebooks"),
        (lambda it: [1], "contents|cannot be taken up"),
    ],
)
async def test_what_a_snapshot_must_hold(change: Any, says: str) -> None:
    await refused(altered(await taken(), change), says)


def _codes(value: int, frames: int = 2) -> str:
    return base64.b64encode(np.full((8, frames), value, dtype="<i2").tobytes()).decode()


async def test_another_engines_codes_are_not_taken_up() -> None:
    class Other(FakeSynthesizer):
        def __init__(self, **changes: Any) -> None:
            super().__init__()
            self.changes = changes

        @property
        def info(self) -> EngineInfo:
            return replace(super().info, **self.changes)

    data = await taken()
    for changes in ({"codec_fingerprint": "other"}, {"codebook_size": 1000}, {"num_codebooks": 12}):
        await refused(data, "codes of another codec .* engines of one codec", Other(**changes))
    async with await VoiceSession.restore(Other(model="another folder"), data) as there:
        assert there.exchanges


async def test_a_snapshot_is_bounded_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    data = await taken()
    monkeypatch.setattr(snapshot_module, "MAX_BYTES", len(data) - 1)
    await refused(data, "at most")
    with pytest.raises(SnapshotError, match="a bounded window"):
        await taken()


async def test_whatever_comes_is_a_session_or_one_error() -> None:
    data = await taken()
    body = data.partition(b"\n")[2]

    @settings(max_examples=200, deadline=None)
    @given(st.data())
    def fuzz(draw: st.DataObject) -> None:
        if draw.draw(st.booleans()):
            at = draw.draw(st.integers(0, len(data) - 1))
            bad = data[:at] + draw.draw(st.binary(max_size=8)) + data[at + draw.draw(st.integers(0, 8)) :]
        else:  # with a checksum that fits
            at = draw.draw(st.integers(0, len(body) - 1))
            other = body[:at] + draw.draw(st.binary(max_size=8)) + body[at + draw.draw(st.integers(0, 8)) :]
            bad = changed(
                data[: data.index(b"\n") + 1] + other, blake2b=hashlib.blake2b(other, digest_size=16).hexdigest()
            )
        with contextlib.suppress(SnapshotError):  # and no other error
            saved = snapshot_module.Snapshot.parse(bad)
            saved.check(FakeSynthesizer().info)
            saved.to_voice()
            saved.to_state()

    @settings(max_examples=100, deadline=None)
    @given(st.binary(max_size=300))
    def noise(bad: bytes) -> None:
        with pytest.raises(SnapshotError):
            snapshot_module.Snapshot.parse(bad)

    fuzz()
    noise()
