"""What the backbone's metrics say when things do not go smoothly: every end is counted, nothing stays counted in."""

from __future__ import annotations

import asyncio
from collections import Counter

import grpc
import pytest

from support.gated_backbone import bench, request

pytestmark = pytest.mark.timeout(60)


def ended(measured) -> Counter[str]:
    """Generate calls by status."""
    points = measured.get("rpc.server.call.duration", ())
    return Counter(
        {
            point.attributes["rpc.response.status_code"]: point.count
            for point in points
            if point.attributes["rpc.method"].endswith("/Generate")
        }
    )


def count(measured, name: str) -> int:
    return sum(point.count for point in measured.get(name, ()))


def value(measured, name: str) -> float:
    (point,) = measured[name]
    return point.value


async def to_its_end(call) -> grpc.StatusCode:
    try:
        while await call.read() is not grpc.aio.EOF:
            pass
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def test_a_broken_device_is_counted_and_holds_nothing(metrics):
    async with bench(slots=2, queue=1) as b:
        calls = [b.stub.Generate(request()) for _ in range(3)]
        while b.engine.load().slots_active + b.engine.load().queue_depth < 3:
            await asyncio.sleep(0.005)
        b.runner.broken = True
        b.runner.allow(1)
        assert {await to_its_end(call) for call in calls} == {grpc.StatusCode.UNAVAILABLE}
        assert await to_its_end(b.stub.Generate(request())) is grpc.StatusCode.UNAVAILABLE
        measured = metrics()
        assert ended(measured) == {"UNAVAILABLE": 4}
        # Three came in, the fourth found the engine broken; one or two of them had slots by then.
        assert count(measured, "csm.backbone.queue.duration") == 3
        assert count(measured, "csm.backbone.prefill.duration") in (1, 2)
        assert value(measured, "csm.backbone.slots.active") == value(measured, "csm.backbone.queue.depth") == 0
        assert value(measured, "csm.backbone.blocks.used") == 0
        assert (
            value(measured, "csm.backbone.slots.capacity") == 2 and value(measured, "csm.backbone.queue.capacity") == 1
        )


async def test_refused_cancelled_and_done_are_counted_apart(metrics):
    async with bench(slots=1, queue=1) as b:
        running, waiting = b.stub.Generate(request(max_frames=3)), b.stub.Generate(request())
        while b.engine.load().slots_active + b.engine.load().queue_depth < 2:
            await asyncio.sleep(0.005)
        assert await to_its_end(b.stub.Generate(request())) is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert value(metrics(), "csm.backbone.queue.depth") >= 1  # and the refusal's count is read here
        waiting.cancel()
        b.runner.open.set()
        codes, waits, steps = Counter(), 0, 0
        assert await to_its_end(running) is grpc.StatusCode.OK
        while codes["CANCELLED"] + codes["OK"] < 2:
            measured = metrics()
            codes += ended(measured)
            waits += count(measured, "csm.backbone.queue.duration")
            steps += count(measured, "csm.backbone.batch.size")
            await asyncio.sleep(0.005)
        await b.idle()
        assert value(metrics(), "csm.backbone.slots.active") == 0
        assert waits == 2  # of those who left while they waited, too
        assert steps >= 3
