"""What a telephone line asks of a voice: its band and loudness, and how much of what was sent the far end has played.

No framework here. `PhoneSound` makes 24 kHz speech fit for a line, piece by piece; `PlayedClock` tells from the marks that a
provider sends back what its caller has heard; `sip_caller` recognises a caller of a LiveKit room who came by telephone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ..audio import SAMPLE_RATE
from ..config import Settings
from ..errors import SettingsError

PHONE_RATE = 8000
"""Samples a second of a telephone line."""
PASS_HZ, STOP_HZ = 3050.0, 3400.0
"""The line's band: what is below the first passes, what is above the second is at least 60 dB down."""


class PhoneSettings(Settings):
    """How a voice goes onto a telephone line."""

    level_dbfs: float | None = Field(default=-20.0, ge=-40.0, le=-10.0)
    """Active speech level, RMS over full scale; None leaves the level as the model makes it."""
    max_gain_db: float = Field(default=18.0, ge=0.0, le=30.0)
    """The most that the level is changed by, up or down."""
    peak_dbfs: float = Field(default=-2.0, ge=-12.0, le=0.0)
    """No sample is louder."""
    prebuffer_s: float = Field(default=0.2, ge=0.0, le=2.0)
    """How far sending runs ahead of playing: jitter up to this is not heard. It delays nothing: the first packets go out as
    soon as there are any, and a barge-in clears what waits at the far end."""
    mark_every_s: float = Field(default=0.1, ge=0.02, le=1.0)
    """How often the far end is asked to say what it has played."""
    start_timeout_s: float = Field(default=10.0, gt=0.0)
    """How long a connection may stay without saying which call it carries."""
    media_timeout_s: float = Field(default=10.0, gt=0.0)
    """How long a call may stay without sending any sound before it is ended."""


# Sound


def low_pass(rate: int) -> NDArray[np.float32]:
    """The telephone band's low-pass at a sample rate: an odd, symmetric FIR by Kaiser's method, 60 dB."""
    width = 2 * np.pi * (STOP_HZ - PASS_HZ) / rate
    taps = int(np.ceil((60.0 - 7.95) / (2.285 * width))) | 1
    at = np.arange(taps) - taps // 2
    cutoff = (PASS_HZ + STOP_HZ) / 2
    kernel = np.sinc(2 * cutoff / rate * at) * np.kaiser(taps, 0.1102 * (60.0 - 8.7))
    return (kernel / kernel.sum()).astype(np.float32)


class _Filter:
    """A linear-phase FIR over a stream, its delay taken out: as many samples come out as went in, by the flush."""

    def __init__(self, kernel: NDArray[np.float32]) -> None:
        self._kernel = kernel
        self._half = kernel.size // 2
        self.reset()

    def reset(self) -> None:
        self._past = np.zeros(self._half, dtype=np.float32)

    def feed(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        held = np.concatenate((self._past, samples))
        if held.size < self._kernel.size:
            self._past = held
            return held[:0]
        self._past = held[held.size - self._kernel.size + 1 :]
        return np.convolve(held, self._kernel, mode="valid").astype(np.float32)

    def flush(self) -> NDArray[np.float32]:
        tail = self.feed(np.zeros(self._half, dtype=np.float32))
        self.reset()
        return tail


class _Level:
    """Brings speech to a level: slowly, by the loudness of what is speech, never by a pause.

    A block of 20 ms counts as speech when it is within 20 dB of the loudest in the last seconds. The gain follows what is
    missing to the target at most 12 dB a second in the first second of speech of a call and 1.5 dB a second from then on, and
    stands still in pauses, so that it neither follows syllables nor raises noise between words. It is kept from one utterance
    to the next.
    """

    def __init__(self, rate: int, target_dbfs: float, max_gain_db: float) -> None:
        self._block = rate // 50
        self._target = target_dbfs
        self._most = max_gain_db
        self.gain_db = 0.0
        self._power = 0.0
        self._weight = 0.0
        self._loudest = 1e-6
        self._speech_s = 0.0

    def feed(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        out = np.empty_like(samples)
        for start in range(0, samples.size, self._block):
            block = samples[start : start + self._block]
            before = self.gain_db
            self._hear(float(np.mean(block * block)), block.size / self._block)
            ramp = np.linspace(before, self.gain_db, block.size, endpoint=False)
            out[start : start + block.size] = block * (10.0 ** (ramp / 20.0))
        return out

    def _hear(self, power: float, share: float) -> None:
        self._loudest = max(power, self._loudest * 0.9985**share)  # falls by 6 dB in 20 s
        if power < 1e-6 or power < self._loudest * 0.01:
            return
        # A mean over all speech so far at first, over the last 5 s of it later.
        keep = (1.0 - 1.0 / 250) ** share
        self._power = self._power * keep + power * share
        self._weight = self._weight * keep + share
        missing = self._target - 10.0 * float(np.log10(self._power / self._weight))
        missing = float(np.clip(missing, -self._most, self._most)) - self.gain_db
        most = (12.0 if self._speech_s < 1.0 else 1.5) * 0.02 * share
        self._speech_s += 0.02 * share
        self.gain_db += float(np.clip(missing, -most, most))


class _Limiter:
    """Holds peaks below a ceiling: looks 5 ms ahead, holds the gain 40 ms, never overshoots. What needs none passes as it is."""

    def __init__(self, rate: int, peak_dbfs: float) -> None:
        self._peak = 10.0 ** (peak_dbfs / 20.0)
        self._ahead = rate // 200
        self._hold = rate // 25
        self.reset()

    def reset(self) -> None:
        self._wait = np.zeros(0, dtype=np.float32)
        self._needs = np.ones(self._hold + self._ahead, dtype=np.float32)

    def feed(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        if samples.size == 0:
            return samples
        need = np.minimum(1.0, self._peak / np.maximum(np.abs(samples), 1e-9)).astype(np.float32)
        needs = np.concatenate((self._needs, need))
        held = np.concatenate((self._wait, samples))
        count = max(0, held.size - self._ahead)
        self._wait, self._needs = held[count:], needs[needs.size - self._hold - 2 * self._ahead :]
        if needs.min() >= 1.0:
            return held[:count]
        return (held[:count] * self._gain(needs, count)).astype(np.float32)

    def _gain(self, needs: NDArray[np.float32], count: int) -> NDArray[np.float32]:
        """The lowest need within the hold and the look-ahead, averaged over the look-ahead: a ramp that ends in time."""
        # needs[-1] belongs to the newest sample; the first to leave, held[0], is `ahead` or more before it.
        span = self._hold
        lowest = np.lib.stride_tricks.sliding_window_view(needs, span).min(axis=1)
        smooth = np.convolve(lowest, np.full(self._ahead, 1.0 / self._ahead, dtype=np.float32), mode="valid")
        return smooth[smooth.size - count :].astype(np.float32) if count else smooth[:0]

    def flush(self) -> NDArray[np.float32]:
        tail = self.feed(np.zeros(self._ahead, dtype=np.float32))
        self.reset()
        return tail


class PhoneSound:
    """24 kHz speech made fit for a telephone line, piece by piece: its band, its loudness, its rate.

    Whole or in pieces, the same samples come out (with a level, whose gain is set for 20 ms of a piece at a time, within 3 % of
    full scale); by the flush as many as went in, times the rates' ratio, at the same times.
    The delay (about 14 ms: the band's filter and the limiter's look-ahead) is taken out: a first piece longer than that gives
    sound at once. The rate is changed by soxr, as its quick stream, which holds nothing back; its better ones hold 60 to
    160 ms of a stream's beginning. What that would let alias has been filtered out before.

    Args:
        rate_out: 8000, or `rate_in` to keep the rate (a LiveKit room resamples for its SIP side).
    """

    def __init__(
        self, settings: PhoneSettings | None = None, *, rate_in: int = SAMPLE_RATE, rate_out: int = PHONE_RATE
    ) -> None:
        settings = settings or PhoneSettings()
        if rate_out != rate_in and (rate_out != PHONE_RATE or rate_in % rate_out):
            raise SettingsError(
                f"PhoneSound goes from a multiple of {PHONE_RATE} Hz to {PHONE_RATE} Hz, or keeps the rate; "
                f"{rate_in} to {rate_out} Hz is neither"
            )
        self.rate_in, self.rate_out = rate_in, rate_out
        self._filter = _Filter(low_pass(rate_in))
        self._level = _Level(rate_out, settings.level_dbfs, settings.max_gain_db) if settings.level_dbfs else None
        self._limiter = _Limiter(rate_out, settings.peak_dbfs)
        self._stream = self._new_stream()

    @property
    def gain_db(self) -> float:
        """What the level is raised by now."""
        return self._level.gain_db if self._level is not None else 0.0

    def feed(self, pcm: bytes) -> bytes:
        """int16 mono at `rate_in` -> int16 mono at `rate_out`; may hold the newest samples back."""
        samples = np.frombuffer(pcm, dtype="<i2").astype(np.float32) / 32768.0
        return _to_pcm(self._loud(self._resample(self._filter.feed(samples))))

    def flush(self) -> bytes:
        """What was held back; the next piece begins anew. The level's gain is kept: it is the call's."""
        tail = self._loud(self._resample(self._filter.flush(), last=True))
        sound = _to_pcm(np.concatenate((tail, self._limiter.flush())))
        self._stream = self._new_stream()
        return sound

    def reset(self) -> None:
        """Forget what was held back: it will not be heard."""
        self._filter.reset()
        self._limiter.reset()
        self._stream = self._new_stream()

    def _loud(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        return self._limiter.feed(self._level.feed(samples) if self._level is not None else samples)

    def _resample(self, samples: NDArray[np.float32], *, last: bool = False) -> NDArray[np.float32]:
        if self._stream is None:
            return samples
        return self._stream.resample_chunk(samples, last=last)

    def _new_stream(self) -> Any:
        if self.rate_in == self.rate_out:
            return None
        import soxr

        return soxr.ResampleStream(self.rate_in, self.rate_out, 1, dtype="float32", quality="QQ")


def _to_pcm(samples: NDArray[np.float32]) -> bytes:
    return np.clip(np.rint(samples * 32768.0), -32768, 32767).astype("<i2").tobytes()


# What was played


@dataclass(slots=True)
class _Mark:
    name: str
    position_s: float


class PlayedClock:
    """How much of what was sent the far end has played, from its marks, and between two of them from the clock.

    Positions are seconds of sound since the call began, cleared sound not counted. A mark that comes back says that its
    position was played, half a round trip ago at the earliest; network jitter makes single marks late, never early, so the
    earliest of the last second is believed. Where no marks come back at all, positions go by the clock alone.

    It has no clock of its own: `now` is seconds of the caller's, monotonic. Sent sound is played in order and without a pause
    while there is some.
    """

    WINDOW_S = 1.0
    """How long a mark's time is believed."""
    LATE_S = 0.25
    """A position whose mark is later than this has not been played, whatever the clock says."""

    def __init__(self) -> None:
        self.sent_s = 0.0
        self.confirmed_s = 0.0
        """What a mark said to have been played."""
        self.marked = False
        """Whether any mark has come back."""
        self.round_trip_s = 0.0
        self._count = 0
        self._marks: deque[_Mark] = deque()
        self._asked: dict[str, float] = {}
        self._trips: deque[float] = deque(maxlen=8)
        self._offsets: deque[tuple[float, float]] = deque()
        """(when, position - time) of marks in this stretch of unbroken sound."""
        self._began: tuple[float, float] = (0.0, 0.0)
        """(position, time) at which the stretch began to be played."""

    def send(self, now: float, seconds: float) -> None:
        """Sound was sent."""
        arrives = now + self.round_trip_s / 2
        if self._unbounded(arrives) >= self.sent_s:  # the far end has run dry: a new stretch begins
            self._began = (self.sent_s, arrives)
            self._offsets.clear()
        self.sent_s += seconds

    def mark(self) -> str:
        """The name of a mark to send behind what was sent so far."""
        self._count += 1
        name = f"higgs-{self._count}"
        self._marks.append(_Mark(name, self.sent_s))
        return name

    def ask(self, now: float) -> str:
        """The name of a mark to send while nothing waits at the far end: it comes back at once and measures the way."""
        self._count += 1
        name = f"higgs-ask-{self._count}"
        self._asked[name] = now
        return name

    def returned(self, name: str, now: float) -> bool:
        """A mark came back; whether it says that something was played."""
        asked = self._asked.pop(name, None)
        if asked is not None:
            self.echoed(asked, now)
            return False
        if not any(mark.name == name for mark in self._marks):
            return False  # of sound that was cleared, or not ours
        self.marked = True
        while self._marks:
            mark = self._marks.popleft()
            self.confirmed_s = max(self.confirmed_s, mark.position_s)
            if mark.name == name:
                break
        offset = self.confirmed_s - (now - self.round_trip_s / 2)
        self._offsets.append((now, offset))
        while self._offsets and now - self._offsets[0][0] > self.WINDOW_S:
            self._offsets.popleft()
        return True

    def echoed(self, asked: float, now: float) -> None:
        """The far end answered something at once."""
        self._trips.append(now - asked)
        self.round_trip_s = min(self._trips)

    def played_s(self, now: float) -> float:
        """What the far end has played by `now`."""
        played = self._unbounded(now)
        if self.marked and self._marks:
            played = min(played, self._marks[0].position_s + self.LATE_S)
        return max(self.confirmed_s, min(played, self.sent_s))

    def waiting_s(self, now: float) -> float:
        """What waits at the far end, or is on its way there."""
        return self.sent_s - self.played_s(now)

    def clear(self, now: float) -> float:
        """The far end is told now to drop what waits there; what it will have played when it hears that. The rest is gone:
        positions go on from there."""
        played = self.played_s(now + self.round_trip_s / 2)
        self._marks.clear()  # those of dropped sound come back too
        self._offsets.clear()
        self.sent_s = self.confirmed_s = played
        self._began = (played, now)
        return played

    def _unbounded(self, now: float) -> float:
        """What would have been played if there were always something to play."""
        if self._offsets:
            return now + max(offset for _, offset in self._offsets)
        position, began = self._began
        return position + max(now - began, 0.0)


# LiveKit's telephone callers


@dataclass(frozen=True, slots=True)
class SipCaller:
    """A LiveKit participant who came by telephone."""

    identity: str
    call_id: str
    number: str | None
    """The caller's, for an incoming call; None where the dispatch rule hides it."""
    called: str | None
    """The number of the trunk: the one that was dialled."""
    trunk_id: str | None
    status: Literal["active", "automation", "dialing", "hangup", "ringing"] | str
    attributes: Mapping[str, str]
    """All of them, those of the trunk's headers included."""


_SIP_KIND = 3
"""`ParticipantInfo.Kind.SIP` of LiveKit's protocol."""


def sip_caller(participant: Any) -> SipCaller | None:
    """Who is on the telephone, or None for a participant of any other kind.

    participant: LiveKit's `RemoteParticipant`, or anything with its `kind`, `identity` and `attributes`. A bridge of one's own
    that joins as an ordinary participant is recognised by the attribute ``sip.callID``.
    """
    attributes = dict(participant.attributes or {})
    call_id = attributes.get("sip.callID", "")
    if int(participant.kind) != _SIP_KIND and not call_id:
        return None
    return SipCaller(
        identity=str(participant.identity),
        call_id=call_id,
        number=attributes.get("sip.phoneNumber") or None,
        called=attributes.get("sip.trunkPhoneNumber") or None,
        trunk_id=attributes.get("sip.trunkID") or None,
        status=attributes.get("sip.callStatus", "active"),
        attributes=attributes,
    )


async def phone_frames(frames: AsyncIterable[Any], sound: PhoneSound) -> AsyncGenerator[Any]:
    """A LiveKit agent's speech for a SIP caller: the frames of a ``tts_node``, in a telephone's band and at its level.

    sound: one for the call, with ``rate_out=rate_in``; it keeps the level from turn to turn. Frames keep their rate and what
    they carry besides sound (timed words); together they are as long as what came in.
    """
    last: Any = None
    async for frame in frames:
        last = frame
        pcm = sound.feed(bytes(frame.data))
        if pcm or frame.userdata:
            yield _frame_like(frame, pcm, dict(frame.userdata))
    if last is not None and (tail := sound.flush()):
        yield _frame_like(last, tail, {})


def _frame_like(frame: Any, pcm: bytes, userdata: dict[str, Any]) -> Any:
    made = type(frame)(pcm, frame.sample_rate, 1, len(pcm) // 2)
    made.userdata.update(userdata)
    return made
