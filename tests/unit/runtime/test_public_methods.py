"""What gRPC cannot be made to do at will on a real connection."""

import asyncio
from types import SimpleNamespace

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from services.runtime.public_methods import PublicMethodGuard


class Gone:
    """The context of a call whose caller has left after one request."""

    def __init__(self, request):
        self.request = request

    async def read(self):
        request, self.request = self.request, grpc.aio.EOF
        return request

    async def write(self, answer):
        self.tried = answer
        raise grpc.aio.InternalError("a send on a dead call")


async def check(request, context):
    return health_pb2.HealthCheckResponse()


async def reflect(requests, context):
    async for request in requests:
        yield reflection_pb2.ServerReflectionResponse(original_request=request)


@pytest.mark.parametrize(
    ("handler", "request_type"),
    [
        (grpc.unary_unary_rpc_method_handler(check), health_pb2.HealthCheckRequest),
        (grpc.stream_stream_rpc_method_handler(reflect), reflection_pb2.ServerReflectionRequest),
    ],
    ids=["Check", "reflection"],
)
async def test_a_caller_who_left_is_no_failure(handler, request_type):
    async def continuation(details):
        return handler

    handler = handler._replace(request_deserializer=request_type.FromString)
    served = await PublicMethodGuard().intercept_service(
        continuation, SimpleNamespace(method="/grpc.some.Service/Method")
    )
    context = Gone(request_type().SerializeToString())
    with pytest.raises(asyncio.CancelledError):  # for which gRPC logs nothing
        await served.stream_stream(None, context)
    assert context.tried is not None
