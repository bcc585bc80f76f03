"""The TTS: options, and whose conversation a stream belongs to."""

from __future__ import annotations

import asyncio
import weakref
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from livekit.agents import DEFAULT_API_CONNECT_OPTIONS, APIConnectOptions, tts, utils

from ...audio import SAMPLE_RATE
from ...config import Sampling
from ...conversation.session import SessionSettings
from ...conversation.synthesizer import Synthesizer
from ...conversation.voice import Voice
from ...errors import HiggsVoiceError
from ...text import Lexicon
from .conversation import Conversation
from .framework import Session, current_session, job_session, log
from .heard import link_of
from .options import Options, several, with_token, without_token
from .streams import ChunkedStream, SynthesizeStream

PROVIDER = "higgs-voice"


class TTS(tts.TTS[Any]):
    """One voice for the whole `AgentSession`, whichever agent or turn speaks.

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

    @property
    def options(self) -> Options:
        """What the next stream takes; streams keep what they began with."""
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
        if session is None:
            if self._own is None:
                self._own = Conversation(self._opts)
                self._conversations.add(self._own)
            return self._own
        link = link_of(session)
        conversation = link.conversations.get(self._key)
        if conversation is None:
            conversation = link.conversations[self._key] = Conversation(self._opts)
        self._conversations.add(conversation)
        link.listen()
        return conversation

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
        ``context="keep"`` keeps it.
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
        self._opts = options
        same = voice is None and scene is None and speakers is None
        for conversation in list(self._conversations):
            conversation.change(options, "keep" if same else context)

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
        try:
            await conversation.ready()
        except HiggsVoiceError as error:
            log.warning("the voice could not be prepared: %s", error)

    async def aclose(self) -> None:
        """End its streams and every conversation it began."""
        if self._warming is not None:
            await utils.aio.cancel_and_wait(self._warming)
        for stream in list(self._streams):
            await stream.aclose()
        for conversation in list(self._conversations):
            await conversation.aclose()
        self._own = None

    async def __aenter__(self) -> TTS:
        return self
