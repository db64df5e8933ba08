"""The backbone's link: one prompt to its frames."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from csm.backbone.v1 import backbone_pb2
from csm.common.v1 import common_pb2

from gateway.chain.frame_log import FrameLog
from gateway.chain.resumes import RESUME_PATIENCE_S, ResumeBudget
from gateway.replica import Replica
from gateway.stage_calls import StageCall
from gateway.stages import Stages
from services.runtime.errors import CallError, InternalError


class Generation:
    """One stream of the backbone, or several when replicas die. An async context manager: leaving it frees the slot.

    log: the frames so far, in order. finish_reason: set once `read` has given None.
    """

    def __init__(
        self,
        stages: Stages,
        request: backbone_pb2.GenerateRequest,
        *,
        resumes: ResumeBudget,
        timeout: Callable[[], float],
        key: str | None = None,
        path: str = "utterance",
    ):
        """timeout: seconds left for the request. key: calls with the same key go to the same replica if they can.

        path: of what holds the options in the caller's request, for errors.
        """
        self._replicas, self._request = stages.backbone, request
        self._resumes, self._timeout, self._key, self._path = resumes, timeout, key, path
        self._call: StageCall | None = None
        self._replica: Replica | None = None
        self.log = FrameLog()
        self.finish_reason = common_pb2.FINISH_REASON_UNSPECIFIED

    async def __aenter__(self) -> Generation:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def open(self, patience_s: float = 0.0) -> backbone_pb2.GenerateStarted:
        """Wait until the backbone has admitted the request and read its prompt.

        patience_s: try full replicas for at least so long. Raises: CallError.
        """
        started = await self._open(patience_s=patience_s)
        # What another replica would have to know.
        self._request.sampling.seed = started.seed
        return started

    async def read(self) -> Sequence[common_pb2.Frame] | None:
        """The next frames, at least one; None at the end. Raises: CallError."""
        while self._call is not None and self._replica is not None:
            try:
                response = await self._call.read()
            except CallError as error:
                await self._resumes.resume("backbone", self._replica, error, self._reopen)
                continue
            match response and response.WhichOneof("event"):
                case "chunk":
                    frames = response.chunk.frames
                    self.log.extend(frames)
                    return frames
                case "finished":
                    self.finish_reason = response.finished.finish_reason
                    await self._call.end()
                    return None
                case _:
                    raise InternalError("backbone: the stream ended without finished")
        raise InternalError("backbone: read before open")

    async def close(self) -> None:
        """Cancel what still runs."""
        call, self._call = self._call, None
        if call is not None:
            await call.close()

    async def _open(self, avoid: Collection[Replica] = (), patience_s: float = 0.0) -> backbone_pb2.GenerateStarted:
        def start(replica: Replica) -> StageCall:
            return replica.call("Generate", self._request, timeout=self._timeout(), rename=self._caller_field)

        async def admit(call: StageCall) -> backbone_pb2.GenerateStarted:
            return await call.first("started")

        self._replica, self._call, started = await self._replicas.stream(
            start, admit, key=self._key, avoid=avoid, patience_s=patience_s
        )
        self._call.is_owed, self._call.is_resumable = lambda: True, self._resumes.is_left
        return started

    async def _reopen(self) -> None:
        """Same prompt, same seed, the frames made so far: the next frame is the one that was owed."""
        failed = self._replica
        await self.close()
        del self._request.generated[:]
        self._request.generated.extend(self.log.frames())
        await self._open({failed} if failed is not None else (), RESUME_PATIENCE_S)

    def _caller_field(self, field: str) -> str:
        """The backbone's field paths as the caller knows them."""
        if field.startswith("sampling"):
            return f"{self._path}.{field}"
        if field.startswith("prompt"):
            return self._path
        if field.startswith("max_frames"):
            return f"{self._path}.max_audio_ms"
        return field
