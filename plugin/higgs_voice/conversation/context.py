"""Which exchanges stay: the rolling context as a fold over what was said.

A `ContextState` is immutable; appending, trimming and cutting give new states. What was generated and not yet heard is
kept as a list of entries behind a base state, and the present context is the base with those entries folded in. Cutting
an entry to what was heard, or taking it out, is then a change of the list: no eviction that it caused survives it, and
the result is the state of a conversation in which the rest was never said. An entry that is settled joins the base when
all before it are settled too, so the order in which speeches are settled makes no difference.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from ..audio import FRAME_RATE
from ..config import Window
from .synthesizer import Exchange

PIN_MIN_FRAMES = FRAME_RATE
"""An exchange shorter than a second tells too little about a voice to be pinned."""


@dataclass(frozen=True, slots=True, eq=False)
class ContextState:
    """What the model hears before the next chunk, besides the voice's own prefix."""

    pinned: Exchange | None = None
    window: tuple[Exchange, ...] = ()
    """Oldest first. May begin with the pinned exchange, which is not repeated then."""

    @property
    def exchanges(self) -> tuple[Exchange, ...]:
        """Pinned and window, oldest first, each once."""
        if self.pinned is None or any(item is self.pinned for item in self.window):
            return self.window
        return (self.pinned, *self.window)

    @property
    def seconds(self) -> float:
        """Audio in the window."""
        return sum(item.frames for item in self.window) / FRAME_RATE


def append(state: ContextState, exchange: Exchange, window: Window, *, pin: bool) -> ContextState:
    """Add the newest exchange. `last_n` trims at once; `seconds` waits for `cut_between_turns`."""
    pinned = state.pinned
    if pin and window.pin_first and pinned is None and exchange.frames >= PIN_MIN_FRAMES:
        pinned = exchange
    items = (*state.window, exchange)
    if window.kind == "last_n" and window.n is not None:
        items = items[len(items) - window.n :] if window.n < len(items) else items
    return ContextState(pinned=pinned, window=items)


def cut_between_turns(state: ContextState, window: Window) -> ContextState:
    """`seconds`: what has grown beyond `high` is cut to `low` (at least the newest exchange stays)."""
    if window.kind != "seconds" or state.seconds <= window.high:
        return state
    kept = 0
    frames = 0
    for item in reversed(state.window):
        frames += item.frames
        if kept and frames > window.low * FRAME_RATE:
            break
        kept += 1
    return replace(state, window=state.window[len(state.window) - kept :])


def drop_oldest(state: ContextState) -> ContextState:
    """One exchange less, for a model's limit: the oldest that is not pinned; at the very end the pinned one."""
    for place, item in enumerate(state.window):
        if item is not state.pinned:
            return replace(state, window=state.window[:place] + state.window[place + 1 :])
    return ContextState()


@dataclass(slots=True, eq=False)
class Entry:
    """An exchange that has been generated, or is being, and that may still be cut, or has one before it that may be."""

    turn: str
    """The speech it belongs to. Where it changes, the window may be cut."""
    exchange: Exchange | None
    """None while it is generated, and for what must leave no trace."""
    settled: bool = False
    """What was heard of it is known; it no longer changes."""


@dataclass(slots=True, eq=False)
class RollingContext:
    """The context of one session: a base that was heard, and entries from the first on that may still be cut."""

    window: Window
    pin: bool
    """Whether this session's voice needs a pinned exchange (it has no reference clip)."""
    base: ContextState = field(default_factory=ContextState)
    entries: list[Entry] = field(default_factory=list[Entry])
    _turn: str | None = None
    """Whose exchange was the last to enter the base."""

    def state(self, turn: str | None = None) -> ContextState:
        """The context that the next chunk of `turn` is spoken in, if everything so far is heard. None: no turn yet."""
        state, last = self.base, self._turn
        for entry in self.entries:
            state, last = self._fold(state, last, entry)
        return state if turn is None or turn == last else cut_between_turns(state, self.window)

    def state_at_turn(self) -> ContextState:
        """The context that a new turn starts in."""
        return cut_between_turns(self.state(), self.window)

    def state_if(self, exchange_of: Callable[[Entry], Exchange | None]) -> ContextState:
        """The context that there would be if of every entry that may still be cut this were left; changes nothing."""
        state, last = self.base, self._turn
        for entry in self.entries:
            state, last = self._fold(state, last, replace(entry, exchange=exchange_of(entry)))
        return state

    def begin(self, entry: Entry) -> None:
        """A chunk has begun to be generated."""
        self.entries.append(entry)

    def settle(self, entry: Entry) -> None:
        """`entry` has been heard as it stands now and can no longer change; those before it still can."""
        entry.settled = True
        while self.entries and self.entries[0].settled:
            self.base, self._turn = self._fold(self.base, self._turn, self.entries.pop(0))

    def let_go(self, state: ContextState) -> None:
        """Forget for good what was heard and is not in `state`: the model has no room for it. The pinned exchange stays."""
        left = {id(item) for item in state.exchanges}
        self.base = replace(self.base, window=tuple(item for item in self.base.window if id(item) in left))

    def clear(self) -> None:
        """Forget everything: a new conversation."""
        self.base = ContextState()
        self.entries.clear()
        self._turn = None

    def _fold(self, state: ContextState, last: str | None, entry: Entry) -> tuple[ContextState, str | None]:
        if entry.exchange is None or entry.exchange.frames == 0:
            return state, last
        if entry.turn != last:
            state = cut_between_turns(state, self.window)
        return append(state, entry.exchange, self.window, pin=self.pin), entry.turn
