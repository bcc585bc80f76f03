"""What the Pipecat service and its tracker share: an utterance, and how far its sound and words have come."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, field
from itertools import dropwhile
from typing import TYPE_CHECKING, Any

from pipecat.audio.resamplers.base_audio_resampler import BaseAudioResampler
from pipecat.audio.utils import create_stream_resampler
from pipecat.frames.frames import (
    Frame,
    InterruptionFrame,
    TTSAudioRawFrame,
    TTSStartedFrame,
    TTSStoppedFrame,
    TTSTextFrame,
)
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor, FrameProcessorSetup
from pipecat.utils.text.base_text_aggregator import TextType

from ..conversation.speech import Speech
from ..conversation.timing import Word
from .playout import Script, Timeline

if TYPE_CHECKING:
    from .pipecat import HiggsTTSService

AFTER = "higgs_voice.after"
"""Key of a frame's metadata: how much of the utterance's written text stands before it, for text that is not spoken."""


def _resampler() -> BaseAudioResampler:
    return create_stream_resampler(clear_after_secs=None)


@dataclass(slots=True, eq=False)
class Utterance:
    """One audio context of the framework and the speech that fills it."""

    context_id: str
    timeline: Timeline
    interruptible: bool
    in_transcript: bool
    """Whether its text enters the LLM's context."""
    speech: Speech | None = None
    """None while there is no session yet; its text waits in the script."""
    script: Script = field(default_factory=Script)
    resampler: BaseAudioResampler = field(default_factory=_resampler)
    """Holds up to a tenth of a second of its sound, which must not come out in another's."""
    text_ended: bool = False
    opening: float | None = None
    """Where the framework counts the context's word times from, on its clock; None until the first audio."""
    spoke: bool = False
    """Whether there was any sound."""
    learning: bool = True
    """Whether its first second is still being played."""
    done: bool = False
    """Everything was handed to the framework."""
    failed: bool = False
    """The rest of its text will not be spoken."""
    dead: bool = False
    """Interrupted."""
    dead_at: float = 0.0
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set with `dead` and with `opening`."""
    opened_at: float = 0.0
    """When the framework came to the first audio after `opening` was None."""
    played_s: float = 0.0
    """By the tracker: seconds that the transport has written."""
    said: int = 0
    """By the tracker: words that have been let through."""
    shown: int = 0
    """By the tracker: characters of the written text that have been let through."""
    named_to: int = 0
    """Up to which character of the text that was fed the framework has been told the words."""
    over: bool = False
    """By the tracker: nothing of it is still to be played."""
    orphan: bool = False
    """Its session is gone with its engine: what was heard by then is in the snapshot that the next one goes on from."""

    def begin(self, speech: Speech) -> None:
        """There is a session: what was fed until now goes to its speech."""
        self.speech = speech
        for piece in self.script.pieces:
            speech.feed(piece.fed)
        if self.text_ended:
            speech.end()

    def feed(self, text: str, written: str) -> None:
        """More of its text, and what the LLM wrote for it."""
        self.script.add(text, written)
        if self.speech is not None and not self.orphan:
            self.speech.feed(text)

    def place(self, word: Word) -> str:
        """A word's time is known; what the framework is told of it, empty where it needs nothing.

        It takes a lone sign along with the word beside it. But it looks for a word either at the first sign that it has not come
        to or at the first letter behind: of "😀 **Hello**" it finds "Hello**" only.
        """
        self.script.words.append(word)
        if not any(map(str.isalnum, word.text)):
            return ""
        told = word.text
        if not told[0].isalnum():
            fed = "".join(piece.fed for piece in self.script.pieces)
            if fed[self.named_to : word.char_start].strip():
                told = "".join(dropwhile(_is_sign, told))
        self.named_to = word.char_end
        return told

    def end(self) -> None:
        """No more text; idempotent."""
        self.text_ended = True
        if self.speech is not None:
            self.speech.end()

    def stop(self) -> None:
        """No more sound; never waits."""
        if self.speech is not None:
            self.speech.stop()


def _is_sign(char: str) -> bool:
    """Whether the framework passes over it to the next letter; a tag it does not."""
    return not char.isalnum() and char != "<"


class PlayoutTracker(FrameProcessor):
    """Counts what the output transport has played, and lets words through when they have been heard.

    Place it right after ``transport.output()``, before the assistant's aggregator, and give it the service. Words of the
    service reach the aggregator as the LLM wrote them, each when half of its sound has been written by the transport;
    what ends a reply (``LLMFullResponseEndFrame``) waits for its last word.
    """

    def __init__(self, tts: HiggsTTSService, **kwargs: Any) -> None:
        # Direct mode: a frame is counted in the same step in which the transport pushes it.
        super().__init__(enable_direct_mode=True, **kwargs)
        self._tts = tts
        self._current: Utterance | None = None
        self._in_transcript = True
        self._held: list[Frame] = []
        self._misplaced = False

    async def setup(self, setup: FrameProcessorSetup) -> None:
        await super().setup(setup)
        self._tts.follow(self)

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        utterance: Utterance | None = frame.metadata.get(self._tts.mark)
        if isinstance(frame, InterruptionFrame):
            await self._interrupted()
        elif direction == FrameDirection.DOWNSTREAM:
            await self._release()
            if isinstance(frame, TTSStartedFrame):
                self._current = utterance
                self._in_transcript = frame.append_to_context
            elif isinstance(frame, TTSAudioRawFrame):
                await self._played(frame)
            elif isinstance(frame, TTSStoppedFrame):
                await self._stopped(frame, utterance)
                return
            elif isinstance(frame, TTSTextFrame) and self._tts.mark in frame.metadata:
                return  # it came by the clock; the word goes by what is played
            elif utterance is not None:
                self._held.append(frame)
                await self._release()
                return
        await self.push_frame(frame, direction)

    async def _played(self, frame: TTSAudioRawFrame) -> None:
        if frame.context_id is not None and not self._misplaced:
            self._misplaced = True
            await self.push_error(
                f"{self} gets audio that has not been played: place it after transport.output(), before the assistant's "
                "aggregator"
            )
        utterance = self._current
        if utterance is None or utterance.over or self._misplaced:
            return  # of an interrupted one, what was played before it was cut still counts, until it is settled
        utterance.played_s += len(frame.audio) / (2 * frame.num_channels * frame.sample_rate)
        self._tts.progress(utterance)
        words = utterance.script.words_by(utterance.played_s, utterance.said)
        if words > utterance.said:
            utterance.said = words
            await self._show(utterance, utterance.script.written_by_word(words))
            await self._release()

    async def _stopped(self, frame: TTSStoppedFrame, utterance: Utterance | None) -> None:
        if utterance is not None and utterance.done and not utterance.dead:
            if not utterance.failed:
                utterance.said = len(utterance.script.words)
                await self._show(utterance, len(utterance.script.written))
            heard = utterance.played_s if utterance.failed else math.inf
            self._tts.settle(utterance, heard, utterance.said)
        self._current = None
        await self.push_frame(frame)
        await self._release()

    async def _interrupted(self) -> None:
        if self._current is not None and self._current.dead:
            self._current = None
        self._held = [frame for frame in self._held if not frame.interruptible]
        for utterance in self._tts.interrupted:
            self._tts.settle(utterance, utterance.played_s, utterance.said)
        # An InterruptionFrame overtakes the words before it in the aggregator's queue: a few turns of the loop let them
        # arrive, so that the aggregator commits what the session was just told.
        for _ in range(8):
            await asyncio.sleep(0)

    async def _show(self, utterance: Utterance, until: int) -> None:
        """Let the written text through up to a character."""
        text = utterance.script.written[utterance.shown : until]
        if not text:
            return
        if utterance.shown == 0 and not text[0].isspace():
            text = f" {text}"  # it may follow another utterance in the same message
        utterance.shown = until
        frame = TTSTextFrame(text, TextType.WORD)
        frame.context_id = utterance.context_id
        frame.append_to_context = self._in_transcript
        frame.includes_inter_frame_spaces = True
        frame.will_be_spoken = True
        frame.interruptible = utterance.interruptible
        await self.push_frame(frame)

    async def _release(self) -> None:
        """Let go what waited for words, in order."""
        while self._held and self._due(self._held[0]):
            await self.push_frame(self._held.pop(0))

    def _due(self, frame: Frame) -> bool:
        utterance: Utterance = frame.metadata[self._tts.mark]
        return utterance.over or (AFTER in frame.metadata and utterance.shown >= frame.metadata[AFTER])
