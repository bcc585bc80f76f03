"""What the caller heard: a tracker on top of a session's audio output, and what it reports to."""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import Hashable

from livekit import rtc
from livekit.agents.voice import io

from ...errors import SettingsError
from .conversation import Conversation, Said
from .framework import CAPTURE_CANCELLED, Session

TAG = "higgs_voice.speech"
"""Key of a frame's userdata: the id of the speech it belongs to."""

_FRAMEWORK = "lk."
"""What the framework's own keys begin with."""
_ROUNDING_S = 1e-3


class HeardTracker(io.AudioOutput):
    """Stands on top of an audio output and reports which speech was played, and how far."""

    def __init__(self, link: Link, next_in_chain: io.AudioOutput) -> None:
        super().__init__(
            label="HiggsHeard",
            next_in_chain=next_in_chain,
            sample_rate=next_in_chain.sample_rate,
            capabilities=io.AudioOutputCapabilities(pause=True),
        )
        self._link = link
        self._segments: deque[_Segment] = deque()
        self._capturing = False
        self.on("playback_finished", self._finished)  # before anyone else hears of it

    async def capture_frame(self, frame: rtc.AudioFrame) -> None:
        if not self._capturing:
            self._capturing = True
            self._segments.append(_Segment())
        segment = self._segments[-1]
        accepted = bool(segment.parts)
        segment.add(self._link.said_of(frame, segment), frame.duration)
        assert self.next_in_chain is not None
        try:
            await self.next_in_chain.capture_frame(frame)
        except asyncio.CancelledError:
            if not accepted and self._segments and self._segments[-1] is segment:
                self._segments.pop()  # the output never had any of it, and will not report it as played
                self._capturing = False
                segment.withdraw()
            raise
        await super().capture_frame(frame)

    def flush(self) -> None:
        super().flush()
        self._capturing = False
        if self.next_in_chain is not None:
            self.next_in_chain.flush()

    def clear_buffer(self) -> None:
        if self.next_in_chain is not None:
            self.next_in_chain.clear_buffer()

    def pause(self) -> None:
        super().pause()
        for segment in self._segments:
            segment.pause(asyncio.get_running_loop().time())

    def resume(self) -> None:
        super().resume()
        for segment in self._segments:
            segment.resume(asyncio.get_running_loop().time())

    def on_playback_started(self, *, created_at: float) -> None:
        if self._segments:
            self._segments[0].start(asyncio.get_running_loop().time())
        super().on_playback_started(created_at=created_at)

    def on_playback_progressed(self, *, started_at: float, offset: float, duration: float) -> None:
        if self._segments:
            self._segments[0].progress(offset + duration)
        super().on_playback_progressed(started_at=started_at, offset=offset, duration=duration)

    def _finished(self, event: io.PlaybackFinishedEvent) -> None:
        if CAPTURE_CANCELLED is not None and isinstance(event, CAPTURE_CANCELLED):
            return  # of a segment that is gone already
        if self._segments:
            self._segments.popleft().finish(event.playback_position, interrupted=event.interrupted)


class _Segment:
    """What the output plays from one flush to the next: usually one speech."""

    def __init__(self) -> None:
        self.parts: list[tuple[Said | None, float]] = []
        """Speeches in order (None for sound that is not ours), each with the place in the segment where it begins."""
        self._length = 0.0
        self._reached = 0.0
        self._started_at: float | None = None
        self._paused_at: float | None = None

    def add(self, said: Said | None, duration: float) -> None:
        if not self.parts or self.parts[-1][0] is not said:
            self.parts.append((said, self._length))
            if said is not None:
                said.capture()
                if self._started_at is not None:
                    said.started_at, said.paused_at = self._started_at + self._length, self._paused_at
        self._length += duration

    @property
    def last(self) -> Said | None:
        """Whose sound came last."""
        return self.parts[-1][0] if self.parts else None

    @property
    def last_s(self) -> float:
        """How much of it."""
        return self._length - self.parts[-1][1] if self.parts else 0.0

    def withdraw(self) -> None:
        for said, _ in self.parts:
            if said is not None:
                said.captured = False

    def start(self, now: float) -> None:
        self._started_at = now
        for said, place in self.parts:
            if said is not None:
                said.started_at = now + place

    def pause(self, now: float) -> None:
        if self._paused_at is None:
            self._paused_at = now
        for said, _ in self.parts:
            if said is not None and said.paused_at is None:
                said.paused_at = now

    def resume(self, now: float) -> None:
        if self._paused_at is not None and self._started_at is not None:
            self._started_at += now - self._paused_at
        self._paused_at = None
        for said, _ in self.parts:
            if said is not None and said.paused_at is not None:
                if said.started_at is not None:
                    said.started_at += now - said.paused_at
                said.paused_at = None

    def progress(self, position_s: float) -> None:
        """The output has played up to here; unlike the final position this counts what a pause threw away."""
        self._reached = max(self._reached, position_s)

    def finish(self, position_s: float, *, interrupted: bool) -> None:
        reached = max(self._reached, position_s)
        ends = [place for _, place in self.parts[1:]] + [self._length]
        for (said, place), end in zip(self.parts, ends, strict=True):
            if said is None:
                continue
            if not interrupted and said.speech.complete:
                said.settle(float("inf"))
            else:
                said.settle(max(0.0, min(reached, end) - place))


class Link:
    """What is known of one `AgentSession`: its conversations, and what reports to them."""

    def __init__(self, session: Session) -> None:
        self._session = weakref.ref(session)
        self._tracker: HeardTracker | None = None
        self._listening: io.AudioOutput | None = None
        self.conversations: dict[Hashable, Conversation] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        session.on("close", self._on_close)

    @property
    def tracked(self) -> bool:
        """Whether the tracker stands in the session's output now."""
        session = self._session()
        item = session.output.audio if session is not None else None
        while item is not None:
            if item is self._tracker:
                return True
            item = item.next_in_chain
        return False

    def attach(self) -> bool:
        """Put the tracker on top of the session's output; whether there is one."""
        session = self._session()
        if session is None or session.output.audio is None:
            return False
        if not self.tracked:
            self._stop_listening()
            self._tracker = HeardTracker(self, session.output.audio)
            session.output.audio = self._tracker
        return True

    def listen(self) -> None:
        """Without a tracker, follow what the output reports."""
        session = self._session()
        output = session.output.audio if session is not None else None
        if output is self._listening or self.tracked:
            return
        self._stop_listening()
        if output is not None:
            self._listening = output
            output.on("playback_finished", self._on_finished)

    def said_of(self, frame: rtc.AudioFrame, segment: _Segment) -> Said | None:
        """The speech that a frame belongs to. Frames that were resampled or made again by a wrapper (`FallbackAdapter`) have lost
        their tags: they belong to the segment's last one, and a segment's first to the oldest speech whose audio was taken and
        has not been captured. Of those that are joined, one begins where the one before it has ended."""
        tag = frame.userdata.get(TAG)
        for conversation in self.conversations.values():
            if tag is not None and tag in conversation.said:
                return conversation.said[tag]
        if not all(key.startswith(_FRAMEWORK) for key in frame.userdata):
            return None
        last = segment.last
        if last is None:
            return self._oldest(captured=False)
        if last.joined and segment.last_s >= last.speech.audio_s - _ROUNDING_S:
            following = self._oldest(captured=False)
            return following if following is not None and following.joined else last
        return last

    def _oldest(self, *, captured: bool) -> Said | None:
        for conversation in self.conversations.values():
            for said in conversation.said.values():
                if said.taken and said.captured == captured:
                    return said
        return None

    def _on_finished(self, event: io.PlaybackFinishedEvent) -> None:
        said = self._oldest(captured=False)
        if said is not None:
            said.capture()
            whole = not event.interrupted and said.speech.complete
            said.settle(float("inf") if whole else event.playback_position)

    def _stop_listening(self) -> None:
        if self._listening is not None:
            self._listening.off("playback_finished", self._on_finished)
            self._listening = None

    def _on_close(self, _: object) -> None:
        """The session has ended: its conversations go with it."""
        self._stop_listening()
        if (session := self._session()) is not None:
            session.off("close", self._on_close)
            links.pop(session, None)
        for conversation in self.conversations.values():
            task = asyncio.get_running_loop().create_task(conversation.aclose(), name="higgs conversation close")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        self.conversations.clear()


links: weakref.WeakKeyDictionary[Session, Link] = weakref.WeakKeyDictionary()


def link_of(session: Session) -> Link:
    return links.get(session) or links.setdefault(session, Link(session))


def attach(session: Session) -> None:
    """Tell the voice exactly what the caller heard of it: call it once after ``await session.start(...)``.

    In a worker's job the TTS does this by itself. Errors: `SettingsError` when the session has no audio output yet.
    """
    if not link_of(session).attach():
        raise SettingsError("the session has no audio output yet: call higgs.attach(session) after session.start()")


def is_tracked(conversation: Conversation) -> bool:
    """Whether what is played of it is known exactly."""
    return any(link.tracked for link in links.values() if conversation in link.conversations.values())
