"""The four stages as the gateway sees them: their replicas, and whether they serve the same bundle."""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from csm.backbone.v1 import backbone_pb2, backbone_pb2_grpc
from csm.codec.v1 import codec_pb2, codec_pb2_grpc
from csm.common.v1 import common_pb2
from csm.tokenizer.v1 import tokenizer_pb2, tokenizer_pb2_grpc
from csm.watermark.v1 import watermark_pb2, watermark_pb2_grpc

from gateway.config import GatewaySettings
from gateway.replicas import ReplicaSet
from gateway.stage_names import STAGES
from models.bundle import Bundle
from services.runtime import tls
from services.runtime.errors import CallError
from services.runtime.identity import identity
from services.runtime.reloadable_file import InvalidFile, ReloadableFile
from services.runtime.settings import SettingError

log = logging.getLogger(__name__)
_ASK_S = 1.0  # between two rounds of questions, on average
_STUBS = {
    "tokenizer": tokenizer_pb2_grpc.TokenizerServiceStub,
    "backbone": backbone_pb2_grpc.BackboneServiceStub,
    "codec": codec_pb2_grpc.CodecServiceStub,
    "watermark": watermark_pb2_grpc.WatermarkServiceStub,
}


@dataclass(frozen=True)
class StageInfo:
    """What the stages said of themselves that requests need."""

    watermark_lookahead_samples: int
    watermark_opening_samples: int  # of a stream, that come without the look-ahead
    watermark_trained: bool
    max_seq_len: int
    max_frames: int  # of one generation, by the backbone's own limit


class Stages:
    """Owns the replicas. `info` is None until all four have answered alike.

    Raises: SettingError when they cannot be called as the settings say.
    """

    def __init__(self, settings: GatewaySettings, bundle: Bundle):
        self.identity = identity(bundle)
        credentials = _credentials(settings)
        self._replicas = {
            name: ReplicaSet(
                name,
                getattr(settings, name),
                make_stub,
                max_message_mib=settings.max_message_mib,
                credentials=credentials,
            )
            for name, make_stub in _STUBS.items()
        }
        self.tokenizer, self.backbone, self.codec, self.watermark = (self._replicas[name] for name in STAGES)
        self.info: StageInfo | None = None
        self.why_not = "the stages have not answered yet"
        self._watcher: asyncio.Task[None] | None = None

    @property
    def held_back_frames(self) -> int:
        """Frames of an utterance that the watermark keeps before it gives a sample that has its look-ahead."""
        return 0 if self.info is None else int(self.info.watermark_lookahead_samples / self._samples_per_frame)

    @property
    def opening_frames(self) -> int:
        """First frames of a turn of which the watermark gives samples before that."""
        return 0 if self.info is None else math.ceil(self.info.watermark_opening_samples / self._samples_per_frame)

    @property
    def _samples_per_frame(self) -> float:
        return self.identity.sample_rate_hz / self.identity.frame_rate_hz

    async def __aenter__(self) -> Stages:
        for replicas in self._replicas.values():
            await replicas.__aenter__()
        self._watcher = asyncio.get_running_loop().create_task(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
        await asyncio.gather(*(replicas.__aexit__() for replicas in self._replicas.values()))

    async def _watch(self) -> None:
        while True:
            await self.check()
            # Questions take their turns among a stage's replicas with everything else. Put at a steady beat they would
            # send callers of the same beat all to one replica.
            await asyncio.sleep(_ASK_S * random.uniform(0.5, 1.5))

    async def check(self) -> None:
        """Ask all four what they serve.

        A stage that serves another bundle makes the gateway unready until that ends. A stage that does not answer
        makes it unready at the start alone: later its calls fail one by one, since taking every gateway out of its
        balancer would help no caller.
        """

        async def ask(replicas: ReplicaSet, request: Any) -> Any:
            return await replicas.unary("GetModelInfo", request, timeout=lambda: _ASK_S)

        answers: Sequence[Any] = await asyncio.gather(
            ask(self.tokenizer, tokenizer_pb2.GetModelInfoRequest()),
            ask(self.backbone, backbone_pb2.GetModelInfoRequest()),
            ask(self.codec, codec_pb2.GetModelInfoRequest()),
            ask(self.watermark, watermark_pb2.GetModelInfoRequest()),
            return_exceptions=True,
        )
        silent, strangers = [], []
        for name, answer in zip(STAGES, answers, strict=True):
            if isinstance(answer, CallError):
                silent.append(f"{name} does not answer ({answer.code.name})")
            elif isinstance(answer, BaseException):
                raise answer
            elif answer.bundle != self.identity:
                strangers.append(f"{name} serves {_describe(answer.bundle)}, not {_describe(self.identity)}")
        if strangers or (silent and self.info is None):
            self._not_ready(", ".join(strangers or silent))
        elif not silent:
            _, backbone, _, watermark = answers
            self.info = StageInfo(
                watermark.lookahead_samples,
                watermark.opening_samples,
                watermark.trained,
                backbone.max_seq_len,
                backbone.max_frames,
            )

    def _not_ready(self, why: str) -> None:
        self.info = None
        if why != self.why_not:
            log.warning("not ready: %s", why)
        self.why_not = why


def _describe(of: common_pb2.BundleIdentity) -> str:
    return (
        f"{of.bundle_id or 'no bundle'} ({of.codebooks} codebooks, "
        f"{of.frame_rate_hz:g} frames/s, {of.sample_rate_hz} Hz)"
    )


def _credentials(settings: GatewaySettings) -> ReloadableFile[grpc.ChannelCredentials] | None:
    """By CSM_UPSTREAM_*, for all four; None is plaintext, where that may be."""
    files = tls.ClientFiles(settings.upstream_ca_file, settings.upstream_cert_file, settings.upstream_key_file)
    if files:
        try:
            return tls.reloadable_channel_credentials(files)
        except InvalidFile as error:
            raise SettingError(
                f"CSM_UPSTREAM_CA_FILE, CSM_UPSTREAM_CERT_FILE, CSM_UPSTREAM_KEY_FILE: {error}"
            ) from error
    beyond = []
    for name in STAGES:
        address = getattr(settings, name)
        tls.require_private(f"CSM_{name.upper()}_ADDRESS", address, "CSM_UPSTREAM_CA_FILE", settings.insecure)
        if not tls.is_loopback(address):
            beyond.append(name)
    if beyond:
        log.warning("calls %s in plaintext beyond this machine, as %s asks", ", ".join(beyond), tls.INSECURE)
    return None
