"""The TTS: options, and whose conversation a stream belongs to."""

from __future__ import annotations

import asyncio
import weakref
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from livekit.agents import DEFAULT_API_CONNECT_OPTIONS, APIConnectOptions, tts, utils

from ...audio import SAMPLE_RATE
from ...config import Sampling
from ...conversation.session import SessionSettings
from ...conversation.synthesizer import Synthesizer
from ...conversation.voice import Voice
from ...errors import ConnectionLostError, HiggsVoiceError
from ...text import Lexicon
from .conversation import Conversation
from .framework import Session, current_session, job_session, log
from .heard import link_of
from .options import Options, several, with_token, without_token
from .streams import ChunkedStream, SynthesizeStream

PROVIDER = "higgs-voice"
_PREWARM_S = 5.0
"""How long `TTS.prewarm` tries to reach a server."""


class TTS(tts.TTS[Any]):
    """One voice for the whole `AgentSession`, whichever agent or turn speaks.

    TTS objects that mean the same voice on the same engine *now* speak in one conversation, each with its own sampling, settings
    and lexicon; only the window and the call's id are those of the first.

    Args:
        model: what `create_backend` takes: "nano" (embedded), a hub id, a folder, or "ws://host:port" of a
            ``higgs-voice serve``, which is how jobs share one model (several with commas: the next takes over from one that
            is lost). One process makes one engine of each.
        engine: an engine of your own instead; it is used and never closed.
        token: the server's bearer token.
        voice: a `Voice`, a preset's name (one word: of the operator's folder, of the server, or of those that ship), a
            file that `Voice.save` wrote, or a description such as "feminine; warm".
        scene, speakers: replace the voice's own.
        sampling, settings: how codes are drawn; how a session cuts text and what it remembers.
        lexicon: how words of your own are said.
        run_ahead_s: audio that is generated ahead of what is played, where playing is known.
    """

    def __init__(
        self,
        *,
        model: str = "nano",
        engine: Synthesizer | None = None,
        token: str | None = None,
        voice: Voice | str | Path | None = None,
        scene: str | None = None,
        speakers: str | list[str] | tuple[str, ...] | None = None,
        sampling: Sampling | None = None,
        settings: SessionSettings | None = None,
        lexicon: Lexicon | None = None,
        run_ahead_s: float = 10.0,
    ) -> None:
        super().__init__(
            capabilities=tts.TTSCapabilities(streaming=True, aligned_transcript=True),
            sample_rate=SAMPLE_RATE,
            num_channels=1,
        )
        settings = settings or SessionSettings()
        if sampling is not None:
            settings = settings.replace(sampling=sampling)
        self._opts = Options(
            model=with_token(model, token),
            engine=engine,
            voice=voice,
            scene=scene,
            speakers=several(speakers),
            settings=settings,
            lexicon=lexicon,
            run_ahead_s=run_ahead_s,
        )
        self._key = self._opts.key()
        self._own: Conversation | None = None
        self._conversations: weakref.WeakSet[Conversation] = weakref.WeakSet()
        self._streams: weakref.WeakSet[SynthesizeStream | ChunkedStream] = weakref.WeakSet()
        self._warming: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        """Where its conversations live."""

    @property
    def options(self) -> Options:
        """What the next stream takes; streams keep what they began with. A voice that could not be had is taken out again."""
        return self._opts

    @property
    def model(self) -> str:
        if self._opts.engine is None:
            return without_token(self._opts.model)
        with suppress(HiggsVoiceError):
            return self._opts.engine.info.model
        return "unknown"

    @property
    def provider(self) -> str:
        return PROVIDER

    def conversation(self, session: Session | None = None) -> Conversation:
        """The conversation of an `AgentSession`; without one, that of the session this is called in, or this TTS's own."""
        session = session or current_session()
        self._loop = _running_loop() or self._loop
        if session is None:
            if self._own is None:
                self._own = Conversation(self._opts)
                self._join(self._own)
            return self._own
        link = link_of(session)
        conversation = link.conversations.get(self._key)
        if conversation is None or conversation.closed:
            conversation = link.conversations[self._key] = Conversation(self._opts, link.conversations)
        self._join(conversation)
        link.listen()
        return conversation

    def _join(self, conversation: Conversation) -> None:
        self._conversations.add(conversation)
        conversation.users.add(self)

    def _leave(self, conversation: Conversation) -> None:
        self._conversations.discard(conversation)
        conversation.users.discard(self)

    def stream(self, *, conn_options: APIConnectOptions = DEFAULT_API_CONNECT_OPTIONS) -> SynthesizeStream:
        stream = SynthesizeStream(tts=self, conn_options=conn_options, conversation=self.conversation())
        self._streams.add(stream)
        return stream

    def synthesize(self, text: str, *, conn_options: APIConnectOptions = DEFAULT_API_CONNECT_OPTIONS) -> ChunkedStream:
        stream = ChunkedStream(tts=self, input_text=text, conn_options=conn_options, conversation=self.conversation())
        self._streams.add(stream)
        return stream

    def update_options(
        self,
        *,
        voice: Voice | str | Path | None = None,
        scene: str | None = None,
        speakers: str | list[str] | tuple[str, ...] | None = None,
        sampling: Sampling | None = None,
        lexicon: Lexicon | None = None,
        context: Literal["keep", "new"] = "new",
    ) -> None:
        """Change the voice or how it speaks, from the next speech on; what is being said is not cut.

        A new voice, scene or description begins a new context, because the old sound would hold the voice back;
        ``context="keep"`` keeps it. Where another TTS speaks in the same conversation, that one's voice stays as it is, and this one
        goes on in a conversation of its own, or in that of the voice it takes where the session has one. A voice that cannot be had
        is logged, and the old one stays. May be called from any thread; from another than the event loop's it holds a moment later.
        """
        options = self._opts
        if voice is not None:
            options = replace(options, voice=voice)
        if scene is not None:
            options = replace(options, scene=scene)
        if speakers is not None:
            options = replace(options, speakers=several(speakers))
        if sampling is not None:
            options = replace(options, settings=options.settings.replace(sampling=sampling))
        if lexicon is not None:
            options = replace(options, lexicon=lexicon)
        if voice is None and scene is None and speakers is None:
            self._opts = options  # the next stream brings them along
        elif self._loop is None or self._loop.is_closed() or self._loop is _running_loop():
            self._opts = options
            self._change_voice(context)
        else:
            again = partial(self.update_options, voice=voice, scene=scene, speakers=speakers, context=context)
            self._loop.call_soon_threadsafe(partial(again, sampling=sampling, lexicon=lexicon))

    def _change_voice(self, context: Literal["keep", "new"]) -> None:
        before, self._key = self._key, self._opts.key()
        for conversation in list(self._conversations):
            mine = conversation
            if conversation is not self._own and conversation.siblings.get(before) is not conversation:
                continue
            if conversation is not self._own and self._key != before:
                if (other := conversation.siblings.get(self._key)) is not None and not other.closed:
                    self._leave(conversation)
                    continue
                if len(conversation.users) > 1:
                    self._leave(conversation)
                    mine = conversation.fork()
                    self._join(mine)
                else:
                    del conversation.siblings[before]
                mine.siblings[self._key] = mine
            mine.change(self._opts, context, self._refused)

    def _refused(self, conversation: Conversation, wanted: Options, kept: Options) -> None:
        """A voice cannot be had: the conversation speaks on with the one it has, and so does this TTS."""
        key, old = wanted.key(), kept.key()
        if self._key == key:
            self._opts = replace(self._opts, voice=kept.voice, scene=kept.scene, speakers=kept.speakers)
            self._key = old
        if conversation.siblings.get(key) is conversation and key != old:
            del conversation.siblings[key]
            if conversation.siblings.setdefault(old, conversation) is not conversation:
                conversation.siblings[object()] = conversation  # until the session ends

    def prewarm(self) -> None:
        """Load or connect the engine and prefill the voice, in the background. In a job this also attaches the tracker of
        what was heard."""
        session = job_session()
        if session is not None:
            link_of(session).attach()
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return
        if self._warming is None or self._warming.done():
            self._warming = loop.create_task(self._warm(self.conversation(session)), name="higgs prewarm")

    async def _warm(self, conversation: Conversation) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + _PREWARM_S
        while True:
            try:
                await conversation.ready()
            except ConnectionLostError as error:
                if loop.time() < until:
                    await asyncio.sleep(0.1)
                    continue
                log.warning("the voice could not be prepared: %s", error)
            except HiggsVoiceError as error:
                log.warning("the voice could not be prepared: %s", error)
            return

    async def aclose(self) -> None:
        """End its streams, and every conversation that no other TTS speaks in."""
        if self._warming is not None:
            await utils.aio.cancel_and_wait(self._warming)
        for stream in list(self._streams):
            await stream.aclose()
        for conversation in list(self._conversations):
            self._leave(conversation)
            if not conversation.users:
                await conversation.aclose()
        self._own = None

    async def __aenter__(self) -> TTS:
        return self


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
