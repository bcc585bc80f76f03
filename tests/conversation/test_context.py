"""The rolling context: which exchanges stay, and that a rollback leaves no trace."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from higgs_voice.config import Window
from higgs_voice.conversation.context import (
    ContextState,
    Entry,
    RollingContext,
    append,
    cut_between_turns,
    drop_oldest,
)
from higgs_voice.conversation.synthesizer import Exchange


def exchange(name: str, seconds: float = 2.0) -> Exchange:
    return Exchange(text=name, codes=np.zeros((8, int(seconds * 25)), dtype=np.int16))


def texts(state: ContextState) -> str:
    return "".join(item.text for item in state.exchanges)


def grown(window: Window, names: str, *, pin: bool = False, seconds: float = 2.0) -> ContextState:
    state = ContextState()
    for name in names:
        state = append(state, exchange(name, seconds), window, pin=pin)
    return state


def test_last_n_keeps_exactly_the_last_n() -> None:
    assert texts(grown(Window.last_n(3), "abcdef")) == "def"
    assert texts(grown(Window.last_n(3), "ab")) == "ab"
    assert texts(grown(Window.last_n(0), "abc")) == ""
    assert texts(grown(Window.last_n(None), "abcdefgh")) == "abcdefgh"


def test_the_documented_policy_pins_nothing_even_where_a_pin_is_wanted() -> None:
    assert texts(grown(Window.last_n(2), "abcd", pin=True)) == "cd"


def test_the_first_good_exchange_is_pinned_and_not_repeated() -> None:
    window = Window.last_n(2, pin_first=True)
    state = append(ContextState(), exchange("x", 0.4), window, pin=True)  # too short to tell a voice
    for name in "abc":
        state = append(state, exchange(name), window, pin=True)
    assert state.pinned is not None
    assert state.pinned.text == "a"
    assert texts(state) == "abc"
    assert texts(append(state, exchange("d"), window, pin=True)) == "acd"


def test_seconds_grows_to_high_and_is_cut_to_low_between_turns() -> None:
    window = Window.seconds(6, 10, pin_first=False)
    state = grown(window, "abcde")
    assert state.seconds == 10
    assert cut_between_turns(state, window) is state
    state = append(state, exchange("f"), window, pin=False)
    assert texts(cut_between_turns(state, window)) == "def"


def test_a_cut_leaves_the_newest_exchange_however_long_it_is() -> None:
    window = Window.seconds(5, 6, pin_first=False)
    state = append(grown(window, "a"), exchange("b", 30), window, pin=False)
    assert texts(cut_between_turns(state, window)) == "b"


def test_a_limit_drops_the_oldest_and_the_pinned_one_last() -> None:
    state = grown(Window.last_n(None, pin_first=True), "abc", pin=True)
    seen = [texts(state)]
    while state.exchanges:
        state = drop_oldest(state)
        seen.append(texts(state))
    assert seen == ["abc", "ac", "a", ""]


def test_an_eviction_by_what_nobody_heard_is_taken_back() -> None:
    context = RollingContext(Window.last_n(2), pin=False)
    for name in "ab":
        entry = Entry("turn 1", exchange(name))
        context.begin(entry)
        context.settle(entry)
    unheard = [Entry("turn 2", exchange(name)) for name in "cd"]
    for entry in unheard:
        context.begin(entry)
    assert texts(context.state()) == "cd"
    for entry in unheard:
        entry.exchange = None
    assert texts(context.state()) == "ab"


def test_a_cut_between_turns_by_a_turn_that_nobody_heard_is_taken_back() -> None:
    context = RollingContext(Window.seconds(2, 4, pin_first=False), pin=False)
    for name in "abc":
        entry = Entry("turn 1", exchange(name))
        context.begin(entry)
        context.settle(entry)
    assert texts(context.state_at_turn()) == "c"
    unheard = Entry("turn 2", exchange("d"))
    context.begin(unheard)
    assert texts(context.state()) == "cd"
    unheard.exchange = None
    assert texts(context.state()) == "abc"
    assert texts(context.state_at_turn()) == "c"


def test_what_is_settled_behind_an_open_entry_leaves_that_one_open() -> None:
    context = RollingContext(Window.last_n(None), pin=False)
    first, second = Entry("turn 1", exchange("a")), Entry("turn 2", exchange("b"))
    for entry in (first, second):
        context.begin(entry)
    second.exchange = None
    context.settle(second)
    assert texts(context.state()) == "a"
    first.exchange = exchange("A", 1.0)
    context.settle(first)
    assert texts(context.state()) == "A"
    assert not context.entries


WINDOWS = st.one_of(
    st.integers(1, 5).map(Window.last_n),
    st.just(Window.last_n(3, pin_first=True)),
    st.just(Window.seconds(4, 8)),
)


@given(
    window=WINDOWS,
    said=st.lists(st.tuples(st.floats(0.2, 4.0), st.sampled_from([0.0, 0.5, 1.0]), st.booleans()), max_size=8),
    data=st.data(),
)
def test_the_order_in_which_entries_are_settled_makes_no_difference(
    window: Window, said: list[tuple[float, float, bool]], data: st.DataObject
) -> None:
    def run(order: list[int]) -> RollingContext:
        context = RollingContext(window, pin=True)
        entries: list[Entry] = []
        turn = 0
        for place, (seconds, _, begins) in enumerate(said):
            turn += begins
            entries.append(Entry(str(turn), exchange(f"[{place}]", seconds)))
            context.begin(entries[-1])
        for place in order:
            seconds, share, _ = said[place]
            heard = exchange(f"[{place} heard]", seconds * share) if share else None
            others = [item.exchange for item in entries if item is not entries[place]]
            entries[place].exchange = heard
            before = texts(context.state())
            context.settle(entries[place])
            assert texts(context.state()) == before  # settling says that it is final, and changes nothing else
            assert [item.exchange for item in entries if item is not entries[place]] == others
        assert not context.entries
        return context

    order = data.draw(st.permutations(range(len(said))))
    assert texts(run(order).state_at_turn()) == texts(run(sorted(order)).state_at_turn())


@given(
    window=WINDOWS,
    said=st.lists(st.tuples(st.floats(0.2, 4.0), st.booleans()), max_size=12),
    unheard=st.lists(st.tuples(st.floats(0.2, 4.0), st.booleans()), max_size=4),
)
def test_after_a_rollback_the_context_is_that_of_a_session_that_never_spoke_the_rest(
    window: Window, said: list[tuple[float, bool]], unheard: list[tuple[float, bool]]
) -> None:
    def run(extra: list[tuple[float, bool]]) -> RollingContext:
        context = RollingContext(window, pin=True)
        turn = 0
        for place, (seconds, begins) in enumerate(said):
            turn += begins
            entry = Entry(f"said {turn}", exchange(f"[{place}]", seconds))
            context.begin(entry)
            context.settle(entry)
        for seconds, begins in extra:
            turn += begins
            context.begin(Entry(f"unheard {turn}", exchange("x", seconds)))
        return context

    rolled = run(unheard)
    for entry in rolled.entries:
        entry.exchange = None
    assert texts(rolled.state()) == texts(run([]).state())
    assert texts(rolled.state_at_turn()) == texts(run([]).state_at_turn())
