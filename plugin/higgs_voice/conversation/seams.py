"""Where chunks of one speech meet: the pause between them, the joint of their waveforms, and the pace of it all.

`Seams` stands between an engine's sound and a speech's. Sound goes in as it is made and comes out a window (5 ms) later:

1. `Stretch`: the speech rate, where it is not 1; the pitch stays.
2. Pauses: the silence between two chunks is brought to what the punctuation asks for. What may be cut of it is held back
   until it is known whether it ends the chunk; silence within a chunk is never touched. Silence is cut and added only
   where it is silent, 20 ms from the next sound and 30 ms from the last at least.
3. `_Joiner`: where a chunk's first sample does not meet its predecessor's last one the predecessor's last 5 ms are faded
   out, under a run-up to the new sound if that begins loud, so that its first consonant stays as it is. Edges that meet,
   and silence meets silence in most cases, pass unchanged.

`Places` says for each chunk which of its samples is heard where. It is the one mapping between seconds heard and frames of
codes, so that what is cut or added here never moves the place at which the context is cut. No torch, no I/O.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..audio import SAMPLE_RATE
from ..config import Pauses
from ..errors import DependencyError

Samples = NDArray[np.int16]

WINDOW_S = 0.005
"""Level is judged in windows of this length, and a joint is faded over one."""
FADE_IN_S = 0.001
"""A quiet start that steps is faded in over this; no consonant is as short."""
BEFORE_SOUND_S = 0.02
"""Silence before a sound that is never cut: soft consonants begin below any threshold."""
AFTER_SOUND_S = 0.03
_FULL = 32767.0
_STEP = 0.003 * _FULL
"""A step between two samples that is smaller than this is no click."""
_LOUD_START = 0.01 * _FULL
"""Mean level of the first window from which a start counts as loud."""


class Mark(IntEnum):
    """What stands between two chunks, by the length of its pause."""

    NONE = 0
    COMMA = 1
    CLAUSE = 2
    """Semicolon, colon, dash."""
    STOP = 3
    PARAGRAPH = 4


_CLOSING = "\"'”’»›)]}*_~`」』）】》〉｣ \t\r\n"
_COMMAS = frozenset(",，、،")
_CLAUSES = frozenset(";:—–―-；：؛")
_STOPS = frozenset(".!?…‼⁇⁈⁉。！？．؟۔।॥")
_BLANK_LINE = re.compile(r"\n[^\S\n]*\n|\u2029")


def mark_after(text: str) -> Mark:
    """The mark that a chunk's text ends with, whatever follows."""
    last = text.rstrip(_CLOSING)[-1:]
    if last in _STOPS:
        return Mark.STOP
    if last in _CLAUSES:
        return Mark.CLAUSE
    return Mark.COMMA if last in _COMMAS else Mark.NONE


def mark_between(text: str, gap: str, *, other_speaker: bool = False) -> Mark:
    """The mark between a chunk and the next one: `gap` is what was written between them."""
    if _BLANK_LINE.search(gap):
        return Mark.PARAGRAPH
    return max(mark_after(text), Mark.STOP) if "\n" in gap or other_speaker else mark_after(text)


@dataclass(slots=True)
class Places:
    """Which sample of a chunk, as the engine made it, is heard where.

    Counted in samples from the chunk's first one: *made* by the engine, *heard* in the speech.
    """

    rate: float = 1.0
    sample_rate: int = SAMPLE_RATE
    heard: int = 0
    """How much of the speech the chunk takes, so far."""
    made: int = 0
    """How much of the chunk's sound has been placed or cut, so far, at the speech rate."""
    _runs: list[list[int]] = field(default_factory=list[list[int]])
    """Stretches without a cut: where each is heard, where it was made, and its length."""
    _cut_here: bool = True

    @property
    def exact(self) -> bool:
        """Nothing was cut or added: both counts are the same."""
        return self.rate == 1.0 and self.heard == self.made and len(self._runs) < 2

    def keep(self, samples: int) -> None:
        """The next samples are heard."""
        if samples and self._cut_here:
            self._runs.append([self.heard, self.made, 0])
            self._cut_here = False
        if samples:
            self._runs[-1][2] += samples
        self.heard += samples
        self.made += samples

    def cut(self, samples: int) -> None:
        """The next samples are left out."""
        self.made += samples
        self._cut_here = self._cut_here or samples > 0

    def add(self, samples: int) -> None:
        """Silence that the engine did not make."""
        self.heard += samples
        self._cut_here = self._cut_here or samples > 0

    def made_at(self, heard: int) -> int:
        """How many of the engine's samples have been passed when so many have been heard. In added silence: those before it."""
        made = 0
        for start, source, length in self._runs:
            if start > heard:
                break
            made = source + min(heard - start, length)
        return round(made * self.rate)

    def made_s(self, heard_s: float) -> float:
        """The same in seconds; the very number where nothing was cut or added."""
        if self.exact:
            return heard_s
        return self.made_at(round(max(heard_s, 0.0) * self.sample_rate)) / self.sample_rate


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """Sound that is ready."""

    chunk: int
    pcm: Samples


class Stretch:
    """Speech at another rate and the same pitch, by libsonic: pitch-synchronous overlap-add, made for speech.

    Errors: `DependencyError` where libsonic is not installed.
    """

    def __init__(self, rate: float, sample_rate: int) -> None:
        try:
            library: Any = importlib.import_module("libsonic")  # it has no type hints
        except ImportError as error:
            raise DependencyError(
                f'a speech rate of {rate:g} needs libsonic, which is not installed; run: pip install "higgs-voice[rate]"'
            ) from error
        self._stream = library.SonicStream(sample_rate, 1)
        self._stream.set_speed(rate)

    def feed(self, pcm: Samples) -> Samples:
        """What is ready after these samples; up to 30 ms stay inside."""
        self._stream.write((pcm / 32768.0).astype(np.float32))
        return self._ready()

    def finish(self) -> Samples:
        """What stayed inside."""
        self._stream.flush()
        return self._ready()

    def _ready(self) -> Samples:
        found = np.asarray(self._stream.read(self._stream.available_frames()), dtype=np.float32)
        return np.clip(np.rint(found * 32768.0), -32768, 32767).astype("<i2")


class Seams:
    """One speech's joints. Call `begin`, `feed` … and `end` for each chunk in order, and `close` behind the last."""

    def __init__(
        self,
        *,
        pauses: Pauses | None,
        crossfade: bool = True,
        rate: float = 1.0,
        sample_rate: int = SAMPLE_RATE,
        stretch: Callable[[float, int], Stretch] = Stretch,
    ) -> None:
        self.places = Places(rate, sample_rate)
        """Of the present chunk."""
        self._rate = rate
        self._sample_rate = sample_rate
        self._pauses = pauses
        self._window = round(WINDOW_S * sample_rate)
        self._before = round(BEFORE_SOUND_S * sample_rate)
        self._quiet = _FULL * 10.0 ** ((pauses.quiet_db if pauses is not None else -100.0) / 20.0)
        self._joiner = _Joiner(self._window, round(FADE_IN_S * sample_rate), active=crossfade)
        self._stretch: Stretch | None = None
        self._new_stretch = stretch
        self._chunk = -1
        self._first = True
        self._rest: Samples = _none()
        self._silence = 0.0
        """Samples of silence at the end of what was given out."""
        self._held: Samples = _none()
        """Silence behind it that waits to be known as a pause or as the chunk's end."""
        self._waited = 0.0
        """Samples of the present pause in which the listener heard nothing because nothing was there."""
        self._hold_after = 0.0
        self._leading = False
        """The present chunk has not sounded, and another one came before it."""
        self._sounded = False
        self._least = self._most = 0.0

    @property
    def pending(self) -> int:
        """Samples that have their place in the speech and were not given out yet."""
        return self._joiner.pending

    def begin(self, chunk: int, text: str, mark: Mark, *, waited_s: float = 0.0) -> list[Piece]:
        """The next chunk, whose text is `text`, `mark` behind the last one.

        waited_s: how long the listener has already heard nothing since then.
        """
        pieces: list[Piece] = []
        before, self.places = self.places, Places(self._rate, self._sample_rate)
        if self._pauses is not None and not self._first:
            self._least, self._most = self._span(mark)
            room = int(max(0.0, self._most - self._before - self._silence))
            released, self._held = self._held[:room], _none()
            pieces += self._keep(before, released)
            self._waited = waited_s * self._sample_rate
            self._silence += len(released) + self._waited
            self._leading = True
        self._chunk = chunk
        self._first = False
        self._sounded = False
        self._joiner.seam = True
        if self._pauses is not None:
            _, most = self._span(mark_after(text))
            self._hold_after = max(most - self._before, AFTER_SOUND_S * self._sample_rate)
        if self._rate != 1.0:
            self._stretch = self._new_stretch(self._rate, self._sample_rate)
        return _merged(pieces)

    def feed(self, pcm: Samples) -> list[Piece]:
        """More of the present chunk's sound, int16 [n]; what is ready."""
        return _merged(self._windows(pcm if self._stretch is None else self._stretch.feed(pcm), whole=True))

    def end(self, *, more: bool) -> list[Piece]:
        """The present chunk is whole. `more`: another one follows at once, or the speech ends."""
        last = _none() if self._stretch is None else self._stretch.finish()
        self._stretch = None
        pieces = self._windows(last, whole=False)
        if self._leading:  # it never sounded: its silence is part of the pause that goes on
            self._cut(len(self._held))
            self._held = _none()
            self._leading = False
        if not more and not len(self._held):
            pieces += self._joiner.release(fade=True)
        return _merged(pieces)

    def close(self) -> list[Piece]:
        """The speech has ended: all that is left."""
        pieces = self._keep(self.places, self._held)
        self._held = _none()
        return _merged(pieces + self._joiner.release(fade=True))

    # Pauses

    def _span(self, mark: Mark) -> tuple[float, float]:
        """The shortest and the longest pause that fit, in samples."""
        assert self._pauses is not None
        names = (self._pauses.none_s, self._pauses.comma_s, self._pauses.clause_s, self._pauses.stop_s)
        wanted = self._pauses.paragraph_s if mark is Mark.PARAGRAPH else names[mark]
        samples = wanted * self._sample_rate / self._rate
        return samples * (1.0 - self._pauses.tolerance), samples * (1.0 + self._pauses.tolerance)

    def _windows(self, pcm: Samples, *, whole: bool) -> list[Piece]:
        """Take sound in windows; `whole`: what does not fill one waits."""
        if self._pauses is None:
            return self._keep(self.places, pcm)
        sound = np.concatenate([self._rest, pcm]) if len(self._rest) else pcm
        end = len(sound) // self._window * self._window if whole else len(sound)
        self._rest = sound[end:]
        sound = sound[:end]
        starts = np.arange(0, end, self._window)
        if not starts.size:
            return []
        level = np.add.reduceat(np.abs(sound.astype(np.float64)), starts) / np.diff(np.append(starts, end))
        loud = starts[level > self._quiet]
        if not self._leading:
            return self._body(sound, int(min(loud[-1] + self._window, end)) if loud.size else 0)
        if not loud.size:
            return self._lead(sound)
        start = int(loud[0])
        pieces = self._lead(sound[:start])
        pieces += self._onset()
        return pieces + self._body(sound[start:], int(min(loud[-1] + self._window, end)) - start)

    def _lead(self, silence: Samples) -> list[Piece]:
        """Silence before a later chunk's first sound: as much as the pause still takes."""
        room = int(max(0.0, self._most - self._before - self._silence)) if not len(self._held) else 0
        given, left = silence[:room], silence[room:]
        self._silence += len(given)
        pieces = self._keep(self.places, given)
        self._held = np.concatenate([self._held, left])
        excess = len(self._held) - self._before
        if excess > 0:
            self._cut(excess)
            self._held = self._held[excess:]
        return pieces

    def _onset(self) -> list[Piece]:
        """The first sound of a later chunk: lengthen what is too short, and give the silence right before it.

        Where sound follows sound without any silence nothing is added: a voice was cut there, or the scene has a noise of
        its own, in which digital silence would be a hole.
        """
        missing = int(self._least - self._silence - len(self._held))
        pieces: list[Piece] = []
        if missing > 0 and (self._silence > self._waited or len(self._held)):
            self.places.add(missing)
            self._joiner.seam = True
            pieces += self._joiner.push(self._chunk, np.zeros(missing, dtype="<i2"))
            self._joiner.seam = True
        pieces += self._keep(self.places, self._held)
        self._held = _none()
        self._leading = False
        return pieces

    def _body(self, sound: Samples, voiced: int) -> list[Piece]:
        """Sound, the last of which that is loud ends at `voiced`; the silence behind it is held where it grows too long."""
        pieces: list[Piece] = []
        if voiced:
            self._sounded = True
            pieces += self._keep(self.places, self._held)
            pieces += self._keep(self.places, sound[:voiced])
            self._held = _none()
            self._silence = 0.0
        silence = sound[voiced:]
        room = len(silence)
        if self._sounded:  # the silence before the first sound of a speech is not held
            room = int(max(0.0, self._hold_after - self._silence)) if not len(self._held) else 0
        given = silence[:room]
        self._silence += len(given)
        self._held = np.concatenate([self._held, silence[room:]])
        return pieces + self._keep(self.places, given)

    def _keep(self, places: Places, pcm: Samples) -> list[Piece]:
        places.keep(len(pcm))
        return self._joiner.push(self._chunk, pcm)

    def _cut(self, samples: int) -> None:
        self.places.cut(samples)
        self._joiner.seam = self._joiner.seam or samples > 0


class _Joiner:
    """Holds back one window, so that it can be faded when what follows does not meet it. Changes no length."""

    def __init__(self, window: int, fade_in: int, *, active: bool) -> None:
        ramp = np.sin(np.linspace(0.0, np.pi / 2, window, endpoint=False)) ** 2
        self._rise = ramp
        self._fall = ramp[::-1]
        self._quick = np.sin(np.linspace(0.0, np.pi / 2, fade_in, endpoint=False)) ** 2
        self._window = window
        self._active = active
        self._held: list[Piece] = []
        self.seam = False
        """What is pushed next was not made right behind what was pushed last."""

    @property
    def pending(self) -> int:
        return sum(len(piece.pcm) for piece in self._held)

    def push(self, chunk: int, pcm: Samples) -> list[Piece]:
        if not len(pcm):
            return []
        if not self._active:
            return [Piece(chunk, pcm)]
        if self.seam:
            pcm = self._join(pcm)
            self.seam = False
        self._held.append(Piece(chunk, pcm))
        return self._give(self._window)

    def release(self, *, fade: bool) -> list[Piece]:
        """Everything; `fade`: silence follows."""
        if fade:
            self._join(np.zeros(self._window, dtype="<i2"))
        return self._give(0)

    def _join(self, head: Samples) -> Samples:
        """Let the held end and a new start meet; the start as it is to be given out."""
        tail = np.concatenate([piece.pcm for piece in self._held]) if self._held else _none()
        if not _steps(tail, head, self._window):
            return head
        end = tail.astype(np.float64)
        faded = min(len(end), self._window)
        if faded:
            end[len(end) - faded :] *= self._fall[self._window - faded :]
        start = head[: self._window].astype(np.float64)
        loud = float(np.abs(start).mean()) > _LOUD_START
        run_up = min(faded, len(start))
        if loud and run_up == self._window:
            end[len(end) - run_up :] += start[::-1] * self._rise
        elif head.any():
            risen = head.astype(np.float64)
            length = min(len(risen), len(self._quick))
            risen[:length] *= self._quick[:length]
            head = _int16(risen)
        self._replace(_int16(end))
        return head

    def _replace(self, end: Samples) -> None:
        place = 0
        for number, piece in enumerate(self._held):
            self._held[number] = Piece(piece.chunk, end[place : place + len(piece.pcm)])
            place += len(piece.pcm)

    def _give(self, leave: int) -> list[Piece]:
        """Everything but the last `leave` samples."""
        pieces: list[Piece] = []
        excess = self.pending - leave
        while excess > 0:
            piece = self._held[0]
            if len(piece.pcm) <= excess:
                self._held.pop(0)
                pieces.append(piece)
            else:
                pieces.append(Piece(piece.chunk, piece.pcm[:excess]))
                self._held[0] = Piece(piece.chunk, piece.pcm[excess:])
            excess -= len(pieces[-1].pcm)
        return pieces


def _steps(tail: Samples, head: Samples, window: int) -> bool:
    """Whether the waveform jumps: farther than it moves from sample to sample around the joint."""
    last = float(tail[-1]) if len(tail) else 0.0
    step = abs(float(head[0]) - last)
    if step <= _STEP:
        return False
    moves = [np.abs(np.diff(side.astype(np.float64))) for side in (tail[-window:], head[:window]) if len(side) > 1]
    usual = max((float(np.quantile(side, 0.9)) for side in moves), default=0.0)
    return step > 2.0 * usual


def _merged(pieces: list[Piece]) -> list[Piece]:
    """One piece for each chunk."""
    by_chunk: dict[int, list[Samples]] = {}
    for piece in pieces:
        by_chunk.setdefault(piece.chunk, []).append(piece.pcm)
    return [Piece(chunk, pcms[0] if len(pcms) == 1 else np.concatenate(pcms)) for chunk, pcms in by_chunk.items()]


def _int16(samples: NDArray[np.float64]) -> Samples:
    return np.clip(np.rint(samples), -32768, 32767).astype("<i2")


def _none() -> Samples:
    return np.zeros(0, dtype="<i2")
