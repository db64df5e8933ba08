"""One utterance through the chain."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import numpy as np
from csm.backbone.v1 import backbone_pb2
from csm.common.v1 import common_pb2
from csm.speech.v1 import speech_pb2

from gateway.chain.chain import SpeechChain
from gateway.chain.generation import Generation
from gateway.chain.resumes import ResumeBudget
from gateway.prompt import build_prompt
from gateway.stages import Stages
from gateway.timeline import Timeline

_MAX_HELD_BACK_FRAMES = 64  # of ChunkPolicy, by the contract


@dataclass(frozen=True)
class Started:
    """First event: every stage has admitted the utterance."""

    seed: int
    prompt_tokens: int


@dataclass(frozen=True)
class AudioChunk:
    """Marked audio, float32 [T] at the bundle's rate."""

    samples: np.ndarray


class Synthesis:
    """`events` may be iterated once. finish_reason and frames are set when it ends."""

    def __init__(
        self,
        stages: Stages,
        utterance: speech_pb2.Utterance,
        *,
        max_frames: int,
        ramp_frames: list[int],
        resumes: int,
        timeout: Callable[[], float],
    ):
        """max_frames: a cap; fewer when the prompt leaves room for fewer. timeout: seconds left for the request."""
        self._stages, self._utterance, self._timeout = stages, utterance, timeout
        self._request = backbone_pb2.GenerateRequest(
            sampling=utterance.sampling,
            max_frames=max_frames,
            chunk_policy=backbone_pb2.ChunkPolicy(
                ramp_frames=ramp_frames, held_back_frames=min(stages.held_back_frames, _MAX_HELD_BACK_FRAMES)
            ),
        )
        self._budget = ResumeBudget(resumes)
        self.timeline = Timeline()
        self.spoken_text = ""
        self.frames = 0
        self.finish_reason = common_pb2.FINISH_REASON_UNSPECIFIED

    @property
    def resumes(self) -> int:
        """How often a stage died under it."""
        return self._budget.used

    async def events(self) -> AsyncIterator[Started | AudioChunk]:
        """Started, then AudioChunk until the speech ends. Close it early and everything upstream is cancelled.

        Raises: CallError.
        """
        try:
            prompt = await build_prompt(self._stages, self._utterance, self._timeout)
            self.spoken_text = prompt.spoken_text
            self._request.prompt.extend(prompt.parts)
            self._request.max_frames = self._stages.cap_frames(self._request.max_frames, prompt.tokens)
            self.timeline.output("tokenizer")
            async with (
                Generation(self._stages, self._request, resumes=self._budget, timeout=self._timeout) as generation,
                SpeechChain(
                    self._stages, resumes=self._budget, timeout=self._timeout, on_output=self.timeline.output
                ) as chain,
            ):
                started = await generation.open()
                await chain.open()
                yield Started(started.seed, started.prompt_tokens)
                chain.spawn(self._speak(generation, chain))
                async for samples in chain.audio():
                    yield AudioChunk(samples)
        finally:
            self.timeline.close()

    async def _speak(self, generation: Generation, chain: SpeechChain) -> None:
        await chain.speak(generation)
        self.frames, self.finish_reason = chain.frames, generation.finish_reason
        chain.finish()
