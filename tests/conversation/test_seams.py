"""Pauses, joints and speech rate: what is heard is what the engine made, and every position maps back."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from higgs_voice import PcmChunk, SessionSettings, VoiceSession, Word
from higgs_voice.audio import HOP, SAMPLE_RATE
from higgs_voice.backends.fake import FakeSynthesizer
from higgs_voice.config import Pauses
from higgs_voice.conversation.seams import Mark, Piece, Places, Samples, Seams, Stretch, mark_after, mark_between
from higgs_voice.conversation.speech import Speech
from higgs_voice.errors import DependencyError, SettingsError

MS = SAMPLE_RATE // 1000


def tone(ms: int, *, level: float = 0.3, pitch: float = 300.0, phase: float = 0.0) -> Samples:
    """A voice, for whoever measures levels; whole periods for multiples of 10 ms."""
    at = np.arange(ms * MS) / SAMPLE_RATE
    return np.rint(level * 32767 * np.sin(2 * np.pi * pitch * at + phase)).astype("<i2")


def silence(ms: int, *, seed: int = 0) -> Samples:
    """The noise of a codec's silence: about -62 dB."""
    return np.random.default_rng(seed).integers(-50, 51, ms * MS).astype("<i2")


def spoken(before_ms: int, ms: int, after_ms: int, *, seed: int = 0) -> Samples:
    return np.concatenate([silence(before_ms, seed=seed), tone(ms), silence(after_ms, seed=seed + 1)])


def run(
    seams: Seams,
    chunks: list[tuple[str, Mark, Samples]],
    *,
    piece: int = HOP,
    more: bool = True,
    waited_s: float = 0.0,
) -> tuple[list[Samples], list[Places]]:
    """What comes out for each chunk, and its places."""
    out: dict[int, list[Samples]] = {}

    def take(pieces: list[Piece]) -> None:
        for item in pieces:
            out.setdefault(item.chunk, []).append(item.pcm)

    places: list[Places] = []
    for number, (text, mark, pcm) in enumerate(chunks):
        take(seams.begin(number, text, mark, waited_s=waited_s))
        places.append(seams.places)
        for start in range(0, len(pcm), piece):
            take(seams.feed(pcm[start : start + piece]))
        take(seams.end(more=more))
    take(seams.close())
    empty = np.zeros(0, "<i2")
    return [np.concatenate(out.get(number, [empty])) for number in range(len(chunks))], places


def pause_ms(first: Samples, second: Samples) -> float:
    """From the last loud sample to the next, in the two as they follow each other."""
    sound = np.concatenate([first, second])
    loud = np.flatnonzero(np.abs(sound.astype(int)) > 1000)
    return float(np.diff(loud).max()) / MS


def kept_exactly(out: Samples, places: Places, made: Samples) -> bool:
    """Whether every sample that was heard is the engine's sample at its place, and all of it that sounds was heard."""
    heard = np.zeros(len(made), dtype=bool)
    for start, source, length in places._runs:
        if not np.array_equal(out[start : start + length], made[source : source + length]):
            return False
        heard[source : source + length] = True
    return bool(heard[np.abs(made.astype(int)) > 1000].all()) and places.heard == len(out)


@pytest.mark.parametrize(
    ("text", "mark"),
    [
        ("Well,", Mark.COMMA),
        ("Well", Mark.NONE),
        ("Wait;", Mark.CLAUSE),
        ("Wait —", Mark.CLAUSE),
        ("He said: “Yes.”", Mark.STOP),
        ("*Really?*", Mark.STOP),
        ("Yes!)", Mark.STOP),
        ("好，", Mark.COMMA),
        ("好。", Mark.STOP),
        ("", Mark.NONE),
    ],
)
def test_the_mark_is_what_the_text_ends_with(text: str, mark: Mark) -> None:
    assert mark_after(text) is mark


def test_what_stands_between_two_chunks_may_say_more() -> None:
    assert mark_between("One.", " ") is Mark.STOP
    assert mark_between("One.", "\n \n") is Mark.PARAGRAPH
    assert mark_between("- an item", "\n") is Mark.STOP
    assert mark_between("And then,", " ", other_speaker=True) is Mark.STOP


@pytest.mark.parametrize("mark", list(Mark))
@pytest.mark.parametrize("lengths", [(20, 20), (600, 30), (30, 600), (700, 700)])
def test_a_pause_fits_its_mark_and_no_sound_is_touched(mark: Mark, lengths: tuple[int, int]) -> None:
    texts = {Mark.NONE: "a", Mark.COMMA: "a,", Mark.CLAUSE: "a;", Mark.STOP: "a.", Mark.PARAGRAPH: "a."}
    asked = Pauses()
    wanted = (asked.none_s, asked.comma_s, asked.clause_s, asked.stop_s, asked.paragraph_s)[mark] * 1000
    made = [spoken(0, 400, lengths[0], seed=1), spoken(lengths[1], 400, 100, seed=3)]
    seams = Seams(pauses=asked, crossfade=False)
    out, places = run(seams, [(texts[mark], Mark.NONE, made[0]), ("b.", mark, made[1])])
    low, high = wanted * (1 - asked.tolerance), wanted * (1 + asked.tolerance)
    assert max(low, 49.0) - 6 <= pause_ms(*out) <= max(high, 51.0) + 6  # levels are judged in windows of 5 ms
    assert all(kept_exactly(*item) for item in zip(out, places, made, strict=True))


def test_a_pause_that_fits_is_left_as_it_is() -> None:
    made = [spoken(0, 400, 200), spoken(220, 400, 700)]
    out, places = run(Seams(pauses=Pauses()), [("a.", Mark.NONE, made[0]), ("b.", Mark.STOP, made[1])])
    assert all(np.array_equal(a, b) for a, b in zip(out, made, strict=True))
    assert all(item.exact for item in places)


def test_longer_marks_make_longer_pauses() -> None:
    found: list[float] = []
    for text, mark in (
        ("a", Mark.NONE),
        ("a,", Mark.COMMA),
        ("a;", Mark.CLAUSE),
        ("a.", Mark.STOP),
        ("a.", Mark.PARAGRAPH),
    ):
        made = [spoken(0, 400, 900), spoken(900, 400, 100)]
        out, _ = run(Seams(pauses=Pauses(tolerance=0.0)), [(text, Mark.NONE, made[0]), ("b.", mark, made[1])])
        found.append(pause_ms(*out))
    assert found == sorted(found)
    assert len(set(found)) == 5


def test_silence_within_a_chunk_is_never_cut() -> None:
    made = np.concatenate([tone(300), silence(1500), tone(300), silence(100)])
    out, places = run(Seams(pauses=Pauses(comma_s=0.06, stop_s=0.42)), [("a,", Mark.NONE, made)])
    assert np.array_equal(out[0], made)
    assert places[0].exact


def test_the_first_sound_comes_with_the_first_piece_and_its_silence_is_not_held() -> None:
    seams = Seams(pauses=Pauses())
    seams.begin(0, "a.", Mark.NONE)
    given = sum(len(item.pcm) for item in seams.feed(silence(40)))
    assert given == 35 * MS  # all but the one window that a joint may need
    assert sum(len(item.pcm) for item in seams.feed(silence(2000))) == 2000 * MS


def test_no_more_than_what_may_be_cut_is_held_back() -> None:
    seams = Seams(pauses=Pauses(tolerance=0.0, stop_s=0.4))
    seams.begin(0, "a.", Mark.NONE)
    given = sum(len(item.pcm) for item in seams.feed(np.concatenate([tone(200), silence(2000)])))
    assert given == (200 + 400 - 20 - 5) * MS
    assert sum(len(item.pcm) for item in seams.feed(tone(100))) == (2000 - 400 + 20 + 100) * MS


def test_the_end_of_a_speech_loses_nothing() -> None:
    made = spoken(300, 400, 1500)
    out, _ = run(Seams(pauses=Pauses()), [("a.", Mark.NONE, made)])
    assert np.array_equal(out[0], made)


def test_a_listener_who_waited_for_the_text_waits_no_longer() -> None:
    made = [spoken(0, 400, 30), spoken(300, 400, 100)]
    late, _ = run(Seams(pauses=Pauses()), [("a.", Mark.NONE, made[0]), ("b.", Mark.PARAGRAPH, made[1])], waited_s=3.0)
    assert pause_ms(*late) < 60


def test_no_silence_is_added_where_there_is_none() -> None:
    """A voice cut in the middle, or a scene that is never silent."""
    noise = np.random.default_rng(1).integers(-3000, 3000, 400 * MS).astype("<i2")
    out, _ = run(Seams(pauses=Pauses(), crossfade=False), [("a.", Mark.NONE, noise), ("b.", Mark.STOP, noise)])
    assert [len(item) for item in out] == [len(noise), len(noise)]


def test_a_chunk_that_is_all_silence_is_part_of_the_pause() -> None:
    made = [spoken(0, 300, 300), silence(2000), spoken(300, 300, 100)]
    chunks = [("a.", Mark.NONE, made[0]), ("b.", Mark.STOP, made[1]), ("c.", Mark.STOP, made[2])]
    out, places = run(Seams(pauses=Pauses()), chunks)
    assert pause_ms(out[0], np.concatenate(out[1:])) <= 420 * 1.25 + 6
    assert kept_exactly(out[2], places[2], made[2])


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(0, 80), st.integers(1, 30), st.integers(0, 80)), min_size=1, max_size=4),
    marks=st.lists(st.sampled_from(list(Mark)), min_size=4, max_size=4),
    piece=st.sampled_from([HOP, 5 * HOP, 480, 777]),
    more=st.booleans(),
    waited=st.sampled_from([0.0, 0.2]),
)
def test_every_sample_that_is_heard_stands_at_the_place_it_was_made(
    lengths: list[tuple[int, int, int]], marks: list[Mark], piece: int, more: bool, waited: float
) -> None:
    """What makes it safe to cut and add silence: heard -> made is exact, sample by sample, also between the runs."""
    made = [spoken(a * 10, b * 10, c * 10, seed=b) for a, b, c in lengths]
    chunks = [("a.", mark, pcm) for mark, pcm in zip(marks, made, strict=False)]
    out, places = run(Seams(pauses=Pauses(), crossfade=False), chunks, piece=piece, more=more, waited_s=waited)
    for sound, place, pcm in zip(out, places, made, strict=True):
        assert kept_exactly(sound, place, pcm)
        mapped = [place.made_at(heard) for heard in range(0, len(sound) + 1, 97)]
        assert mapped == sorted(mapped)
        assert all(0 <= item <= len(pcm) for item in mapped)
        runs = {start + i: source + i for start, source, length in place._runs for i in (0, length // 2, length - 1)}
        assert all(place.made_at(heard) == source for heard, source in runs.items())


def test_pieces_of_any_size_give_the_same_sound() -> None:
    made = [spoken(100, 300, 900), spoken(900, 300, 200)]
    chunks = [("a.", Mark.NONE, made[0]), ("b.", Mark.STOP, made[1])]
    whole, _ = run(Seams(pauses=Pauses()), chunks, piece=10**6)
    for piece in (HOP, 5 * HOP, 777, 60):
        out, _ = run(Seams(pauses=Pauses()), chunks, piece=piece)
        assert all(np.array_equal(a, b) for a, b in zip(out, whole, strict=True))


# The joint


def click(sound: Samples, at: int) -> float:
    """The largest jump from one sample to the next around a place."""
    return float(np.abs(np.diff(sound[at - 240 : at + 240].astype(float))).max())


def test_edges_that_meet_are_not_touched() -> None:
    whole = tone(400)
    for cut in (200, 333, 250 * MS):
        out, _ = run(Seams(pauses=None), [("a", Mark.NONE, whole[:cut]), ("b", Mark.NONE, whole[cut:])], piece=5 * HOP)
        assert np.array_equal(np.concatenate(out), whole)


def test_silent_edges_are_not_touched() -> None:
    made = [spoken(20, 300, 60, seed=5), spoken(60, 300, 60, seed=8)]
    out, _ = run(Seams(pauses=None), [("a.", Mark.NONE, made[0]), ("b.", Mark.NONE, made[1])])
    assert all(np.array_equal(a, b) for a, b in zip(out, made, strict=True))


def test_a_step_is_taken_away_and_the_new_sound_stays_as_it_is() -> None:
    first, second = tone(200)[: 195 * MS + 20], tone(200, phase=np.pi)[7:]
    before = np.concatenate([first, second])
    out, places = run(Seams(pauses=None), [("a", Mark.NONE, first), ("b", Mark.NONE, second)])
    after = np.concatenate(out)
    usual = float(np.abs(np.diff(tone(100).astype(float))).max())
    assert click(before, len(first)) > 5 * usual
    assert click(after, len(first)) < 1.5 * usual
    edge = 5 * MS
    assert np.array_equal(after[: len(first) - edge], before[: len(first) - edge])
    assert np.array_equal(out[1][:-edge], second[:-edge])
    assert all(item.exact for item in places)


def test_a_consonant_at_the_start_is_not_smeared() -> None:
    """A burst that begins with the chunk keeps its first sample and its rise."""
    burst = np.random.default_rng(3).normal(0, 6000, 20 * MS) * np.exp(-np.arange(20 * MS) / (4 * MS))
    burst[0] = 12000
    second = np.concatenate([np.clip(burst, -30000, 30000).astype("<i2"), silence(200)])
    out, _ = run(Seams(pauses=None), [("a.", Mark.NONE, spoken(0, 200, 50)), ("b", Mark.NONE, second)])
    assert np.array_equal(out[1], second)


def test_a_click_at_the_edges_of_a_codecs_chunk_is_faded() -> None:
    first, second = spoken(0, 200, 50), spoken(50, 200, 50)
    first[-3:] = (-690, -1205, -1205)
    second[:2] = (408, -172)
    out, _ = run(Seams(pauses=None), [("a", Mark.NONE, first), ("b", Mark.NONE, second)])
    after = np.concatenate(out)
    assert click(np.concatenate([first, second]), len(first)) > 1500
    assert click(after, len(first)) < 200
    assert np.array_equal(out[1][MS : -5 * MS], second[MS : -5 * MS])


def test_an_edge_is_faded_at_once_when_nothing_follows_yet() -> None:
    seams = Seams(pauses=None)
    seams.begin(0, "a", Mark.NONE)
    first = tone(200)[:-20]
    given = [*seams.feed(first), *seams.end(more=False)]
    sound = np.concatenate([item.pcm for item in given])
    assert len(sound) == len(first)
    assert abs(int(sound[-1])) < 50


def test_both_off_is_bit_exact_and_holds_nothing() -> None:
    seams = Seams(pauses=None, crossfade=False)
    seams.begin(0, "a", Mark.NONE)
    pcm = tone(200)[:-11]
    (piece,) = seams.feed(pcm)
    assert np.array_equal(piece.pcm, pcm)
    assert seams.end(more=False) == []
    assert seams.close() == []
    assert seams.places.exact


# The rate


def chirp(seconds: float) -> Samples:
    """150 Hz rising by 50 Hz a second: the pitch tells the place."""
    at = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    return np.rint(0.3 * 32767 * np.sin(2 * np.pi * (150 * at + 25 * at * at))).astype("<i2")


def pitch_at(sound: Samples, at: int) -> float:
    window = sound[at - 1200 : at + 1200].astype(float) * np.hanning(2400)
    return float(np.argmax(np.abs(np.fft.rfft(window, 1 << 18)))) * SAMPLE_RATE / (1 << 18)


@pytest.mark.parametrize("rate", [0.5, 0.8, 1.25, 2.0])
def test_speech_at_another_rate_keeps_its_pitch_and_its_places(rate: float) -> None:
    made = chirp(5.0)
    (out,), (places,) = run(Seams(pauses=None, rate=rate), [("a", Mark.NONE, made)], piece=5 * HOP)
    assert len(out) == pytest.approx(len(made) / rate, rel=0.01)
    errors = [
        (pitch_at(out, at) - 150) / 50 - places.made_at(at) / SAMPLE_RATE for at in range(2400, len(out) - 2400, 2400)
    ]
    assert np.abs(errors).max() < 0.045  # a frame of codes is 0.04


def test_pauses_are_shorter_at_a_faster_rate() -> None:
    made = [spoken(0, 400, 700), spoken(700, 400, 100)]
    chunks = [("a.", Mark.NONE, made[0]), ("b.", Mark.STOP, made[1])]
    slow, _ = run(Seams(pauses=Pauses(tolerance=0.0)), chunks)
    fast, _ = run(Seams(pauses=Pauses(tolerance=0.0), rate=1.5), chunks)
    assert pause_ms(*fast) == pytest.approx(pause_ms(*slow) / 1.5, abs=12)


def test_at_rate_one_nothing_is_loaded() -> None:
    def forbidden(rate: float, sample_rate: int) -> Stretch:
        raise AssertionError("the stretcher was made")

    made = spoken(0, 300, 100)
    out, _ = run(Seams(pauses=None, stretch=forbidden), [("a", Mark.NONE, made)])
    assert np.array_equal(out[0], made)


def test_a_rate_without_its_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "libsonic", None)
    with pytest.raises(DependencyError, match=r"higgs-voice\[rate\]"):
        Stretch(1.5, SAMPLE_RATE)


# In a session


class Voiced(FakeSynthesizer):
    """Its chunks have silence around their tones, as a voice's have."""

    def __init__(self, before_ms: int, after_ms: int, **options: object) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        self._silence_ms = before_ms, after_ms

    def sound_of(self, codes: np.ndarray) -> np.ndarray:
        sound = super().sound_of(codes)
        before, after = (ms * MS for ms in self._silence_ms)
        sound[:before] *= 0.001
        sound[len(sound) - after :] *= 0.001
        return sound


TURN = "Hello there, my friend. This is the second sentence of mine; it goes on and on. And here comes a third one."


async def spoken_turn(text: str = TURN, **options: object) -> tuple[Voiced, VoiceSession, Speech, list[object]]:
    engine = Voiced(400, 400)
    session = VoiceSession(engine, settings=SessionSettings(**options), clock=lambda: 0.0)
    await session.start()
    speech = session.speak(text)
    return engine, session, speech, [item async for item in speech]


def sounds(items: list[object]) -> list[PcmChunk]:
    return [item for item in items if isinstance(item, PcmChunk)]


async def test_pieces_follow_each_other_without_a_gap_in_their_positions() -> None:
    for rate in (1.0, 1.3):
        _, session, _, items = await spoken_turn(speech_rate=rate)
        place = 0
        for piece in sounds(items):
            assert piece.start == place
            place += piece.samples
        assert [piece.chunk for piece in sounds(items)] == sorted(piece.chunk for piece in sounds(items))
        await session.aclose()


async def test_pauses_in_a_speech_are_those_of_its_punctuation() -> None:
    _, session, _, items = await spoken_turn("One sentence is here. And another one.\n\nThen a new paragraph.")
    sound = np.abs(np.concatenate([piece.to_array() for piece in sounds(items)]).astype(int))
    loud = np.flatnonzero(sound > 1000)
    gaps = [int(gap) / MS for gap in np.diff(loud) if gap > 50 * MS]
    assert gaps == [pytest.approx(420 * 1.25, abs=12), pytest.approx(750, rel=0.26)]
    await session.aclose()


@pytest.mark.parametrize("rate", [1.0, 0.8, 1.6])
async def test_a_cut_position_gives_the_codes_of_the_sound_that_was_heard(rate: float) -> None:
    """For each place in the speech: what is kept of the codes is what sounded up to there."""
    _, session, speech, items = await spoken_turn(speech_rate=rate)
    records = list(speech.records)
    total = speech.audio_s
    for heard in np.arange(0.05, total, 0.111):
        for record in records:
            kept = record.heard_exchange(float(heard), None)
            whole = record.exchange()
            assert whole is not None
            if heard >= record.end_s:
                assert kept is not None
                assert kept.frames == whole.frames
            elif heard <= record.start_s:
                assert kept is None
            elif kept is not None:
                inside = round((heard - record.start_s) * SAMPLE_RATE)
                assert kept.frames == min(record.places.made_at(inside) // HOP, whole.frames)
                assert np.array_equal(kept.codes, whole.codes[:, : kept.frames])
    starts = [word.start_s for word in items if isinstance(word, Word)]
    assert starts == sorted(starts)
    assert starts[-1] < total
    await session.aclose()


async def test_words_stay_on_their_sound_when_silence_is_cut() -> None:
    """Each chunk's first word begins with its first loud sample."""
    _, session, _, items = await spoken_turn()
    sound = np.concatenate([piece.to_array() for piece in sounds(items)]).astype(int)
    for number in {piece.chunk for piece in sounds(items)}:
        mine = [piece for piece in sounds(items) if piece.chunk == number]
        start, end = mine[0].start, mine[-1].start + mine[-1].samples
        onset = start + int(np.flatnonzero(np.abs(sound[start:end]) > 0.01 * 32767)[0])
        words = [word for word in items if isinstance(word, Word) and word.chunk == number]
        assert words[0].start_s == pytest.approx(onset / SAMPLE_RATE, abs=0.002)
        assert words[-1].end_s <= end / SAMPLE_RATE
    await session.aclose()


async def test_the_context_of_a_speech_that_was_heard_is_whole_whatever_was_cut_from_its_silence() -> None:
    engine, session, speech, _ = await spoken_turn()
    session.settle(speech.id, speech.audio_s)
    kept = session.exchanges
    assert [item.frames for item in kept] == [round(len(request.text) * 1.5) for request in engine.requests]
    await session.aclose()


async def test_nothing_changes_where_everything_is_off() -> None:
    engine, session, _, items = await spoken_turn(pauses=None, crossfade=False)
    made = b"".join(
        (engine.sound_of(engine.codes_for(request.text, round(len(request.text) * 1.5))) * 32767)
        .round()
        .astype("<i2")
        .tobytes()
        for request in engine.requests
    )
    assert b"".join(piece.pcm for piece in sounds(items)) == made
    await session.aclose()


async def test_a_stop_between_two_chunks_leaves_no_sound_behind() -> None:
    engine = Voiced(400, 400)
    async with VoiceSession(engine, clock=lambda: 0.0) as session:
        speech = session.speak(TURN)
        async for item in speech:
            if isinstance(item, PcmChunk) and item.chunk == 1:
                speech.stop()
        session.settle(speech.id, 0.8)
        for _ in range(10):
            await asyncio.sleep(0)
        assert len(session.exchanges) == 1


def test_pauses_out_of_order_are_refused() -> None:
    with pytest.raises(SettingsError, match="must not fall"):
        Pauses(comma_s=0.5, clause_s=0.2)
    with pytest.raises(SettingsError, match="speech_rate"):
        SessionSettings(speech_rate=3.0)
