"""Identity of the bundle that a process serves: each stage reports it, and the gateway compares."""

from __future__ import annotations

from typing import Protocol

from csm.common.v1 import common_pb2


class Identified(Protocol):
    """The facts of a bundle that all stages must agree on."""

    @property
    def id(self) -> str: ...
    @property
    def codebooks(self) -> int: ...
    @property
    def frame_rate_hz(self) -> float: ...
    @property
    def sample_rate_hz(self) -> int: ...


def identity(bundle: Identified) -> common_pb2.BundleIdentity:
    """`bundle` as a message."""
    return common_pb2.BundleIdentity(
        bundle_id=bundle.id,
        codebooks=bundle.codebooks,
        frame_rate_hz=bundle.frame_rate_hz,
        sample_rate_hz=bundle.sample_rate_hz,
    )
