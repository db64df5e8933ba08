"""A service as a process: what it does with signals, settings and its command line."""

import asyncio
import dataclasses
import json
import signal
import sys
from pathlib import Path

import grpc
import pytest
from csm.codec.v1 import codec_pb2, codec_pb2_grpc

from services.runtime.settings import ServerSettings
from support.codec_stub import SERVICE
from support.raw_http2 import frame, raw_caller

TESTS = Path(__file__).parents[1]

PROCESS = """
import asyncio, sys
from contextlib import asynccontextmanager
from services.runtime.server import Stage, main
from services.runtime.settings import ServerSettings
sys.path.insert(0, {tests!r})
from csm.codec.v1 import codec_pb2_grpc
from support.codec_stub import SERVICE, Codec

@asynccontextmanager
async def open_stage(settings):
    codec = Codec()
    yield Stage(SERVICE, lambda server: codec_pb2_grpc.add_CodecServiceServicer_to_server(codec, server))
    print("closed", flush=True)

main("codec", ServerSettings, open_stage)
"""


STUCK = PROCESS.replace(
    "    yield Stage(",
    """    import threading
    from services.runtime.pool import Pool
    pool = Pool("stuck", 1, stall_s=0.2)
    job = asyncio.ensure_future(pool.run(threading.Event().wait))
    yield Stage(""",
).replace("(codec, server))", "(codec, server), is_live=pool.is_live)")


async def start_process(*arguments, code=PROCESS, **environ):
    code = code.format(tests=str(TESTS))
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        code,
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={"CSM_LOG_FORMAT": "text", "PATH": "", **environ},
        cwd=TESTS.parent,
    )
    while line := (await process.stderr.readline()).decode():
        if "serves on" in line:
            return process, line.split("serves on ")[1].strip()
    return process, None


async def test_sigterm_lets_running_calls_finish_and_refuses_new_ones():
    process, address = await start_process(CSM_GRACE_S="20")
    async with (
        grpc.aio.insecure_channel(address) as channel,
        grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as late,
    ):
        call = codec_pb2_grpc.CodecServiceStub(channel).Decode()
        await call.write(codec_pb2.DecodeRequest())
        assert (await call.read()).finished.frames == 1
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(10):
            while True:  # until the server has stopped taking calls
                try:
                    await codec_pb2_grpc.CodecServiceStub(late).GetModelInfo(codec_pb2.GetModelInfoRequest())
                except grpc.aio.AioRpcError as error:
                    # CANCELLED is what gRPC says to a call that comes in the very moment of the stop.
                    assert error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
                    break
        await call.write(codec_pb2.DecodeRequest())
        assert (await call.read()).finished.frames == 1
        await call.done_writing()
        assert (await call.read()).finished.frames == 0
        assert await call.code() is grpc.StatusCode.OK
    stdout, _ = await asyncio.wait_for(process.communicate(), 15)
    assert process.returncode == 0 and b"closed" in stdout


async def test_a_second_signal_ends_running_calls_at_once():
    process, address = await start_process(CSM_GRACE_S="600")
    async with grpc.aio.insecure_channel(address) as channel:
        call = codec_pb2_grpc.CodecServiceStub(channel).Decode()
        await call.write(codec_pb2.DecodeRequest())
        await call.read()
        process.send_signal(signal.SIGTERM)
        await asyncio.wait_for(process.stderr.readuntil(b"draining"), 5)
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(call.code(), 10) is grpc.StatusCode.UNAVAILABLE
    await asyncio.wait_for(process.communicate(), 15)
    assert process.returncode == 0


async def test_what_strangers_send_is_in_no_log_and_watchers_that_read_nothing_delay_no_end():
    process, address = await start_process(CSM_LOG_FORMAT="json", CSM_GRACE_S="60")
    health = "/grpc.health.v1.Health/"
    odd = [(b"authorization", b"Bearer s3cret\xff\xfe"), (b"s3cret-bin", b"!s3cret!"), (b"grpc-timeout", b"s3cret")]
    async with raw_caller(address.rstrip('"}'), window=0) as caller:
        for header in odd:
            await caller.send(await caller.open(f"{health}Check", header), frame(b""), end=True)
            await caller.send(await caller.open(f"/{SERVICE}/GetModelInfo", header), frame(b"s3cret"), end=True)
        await caller.send(await caller.open(f"{health}Watch"), frame(b""))
        await caller.send(stream := await caller.open("/s3cret/S3cret"), frame(b"s3cret"), end=True)
        assert await caller.status(stream) == grpc.StatusCode.UNIMPLEMENTED.value[0]
        process.send_signal(signal.SIGTERM)
        _, told = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 0
    lines = [json.loads(line) for line in told.decode().splitlines()]
    assert "s3cret" not in str(lines).lower()
    assert not [line for line in lines if line["level"] not in ("INFO", "DEBUG")]


async def test_a_stage_whose_work_is_stuck_leaves_without_waiting_for_it():
    process, address = await start_process(code=STUCK)
    assert address is not None
    await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 1


async def test_a_bad_setting_is_one_line_and_exit_code_one():
    process, address = await start_process(CSM_GRACE_S="-1")
    assert address is None
    _, stderr = await asyncio.wait_for(process.communicate(), 15)
    assert process.returncode == 1
    assert stderr == b""  # start_process has read the one line there was


async def test_help_says_what_can_be_set():
    process, address = await start_process("--help")
    stdout, _ = await asyncio.wait_for(process.communicate(), 15)
    assert address is None and process.returncode == 0
    assert "CSM_GRACE_S  (default 120.0; at least 0; at most 3600)\n      after draining" in stdout.decode()
    assert "CSM_LOG_FORMAT  (default json; json, text)" in stdout.decode()
    assert all(field.metadata["env"] in stdout.decode() for field in dataclasses.fields(ServerSettings))


@pytest.mark.parametrize("arguments", [["up"], ["--port", "1"], ["CSM_GRACE_S=1"]], ids=str)
async def test_a_command_line_is_refused(arguments):
    process, address = await start_process(*arguments)
    await asyncio.wait_for(process.communicate(), 15)
    assert address is None and process.returncode == 2
