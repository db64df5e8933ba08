"""Several replicas of a stage behind one name: who gets new streams, and what becomes of the running ones.

Real servers on loopback addresses, found by a list of addresses or by DNS (a name server of our own).
"""

import asyncio
import random
import socket
import struct
from contextlib import AsyncExitStack

import pytest
from csm.codec.v1 import codec_pb2, codec_pb2_grpc
from csm.speech.v1 import speech_pb2
from csm_client import SpeechClient, exceptions

from gateway.replicas import ReplicaSet
from models.bundle import load_bundle
from services.runtime import tls
from services.runtime.errors import ResourceExhausted, UnavailableError
from services.runtime.server import Stage, StageServer
from services.runtime.settings import ServerSettings, read
from support.authority import Authority
from support.fake_stages import SAMPLES_PER_FRAME, StageProbe, servicers
from support.talk import talking

NAME = "replicas.test"


class Replica:
    """One server of a stage; its probe knows what came to it."""

    def __init__(self, stage: str):
        self.stage, self.probe = stage, StageProbe(load_bundle("embedded"))

    async def start(self, listen: str = "127.0.0.1:0", **settings) -> None:
        servicer, add = servicers(self.probe)[self.stage]
        self.server = StageServer(
            Stage(f"csm.{self.stage}.v1.{self.stage.capitalize()}Service", lambda server: add(servicer, server)),
            read(ServerSettings, environ={}, listen=listen, **settings),
        )
        self.address = await self.server.start()

    @property
    def calls(self) -> int:
        return self.probe.calls[self.stage]


@pytest.fixture
async def open_replicas(open_chain):
    """Call it with a stage and a number: a chain whose `stage` has so many replicas, all in use."""
    async with AsyncExitStack() as stack:

        async def start(stage: str, count: int):
            replicas = [Replica(stage) for _ in range(count)]
            for replica in replicas:
                await replica.start()
                stack.push_async_callback(replica.server.stop, 0)
            target = "ipv4:" + ",".join(replica.address for replica in replicas)
            chain = await open_chain(**{stage: target})
            await everyone_is_called(chain, replicas)
            return chain, replicas

        yield start


async def speak(chain, timeout=20):
    """Samples of one whole utterance, and its summary."""
    request = speech_pb2.StreamSynthesizeRequest(utterance=speech_pb2.Utterance(text="hello"))
    audio, summary = 0, None
    async for response in chain.speech.StreamSynthesize(request, timeout=timeout):
        audio += len(response.audio.data) // 2
        if response.HasField("finished"):
            summary = response.finished.summary
    return audio, summary


async def everyone_is_called(chain, replicas, within_s=30):
    """Speak until every replica has had a stream."""
    async with asyncio.timeout(within_s):
        while not all(replica.calls for replica in replicas):
            await speak(chain)


async def calls_during(replicas, work):
    """How many calls each replica gets while `work` runs."""
    before = [replica.calls for replica in replicas]
    await work
    return [replica.calls - count for replica, count in zip(replicas, before, strict=True)]


@pytest.mark.parametrize("stage", ["backbone", "codec", "watermark"])
async def test_new_streams_spread_evenly(open_replicas, stage):
    chain, replicas = await open_replicas(stage, 2)
    got = await calls_during(replicas, asyncio.gather(*(speak(chain) for _ in range(20))))
    # The gateway's own questions take turns too, so it need not be ten each.
    assert sum(got) == 20 and min(got) >= 7


@pytest.mark.parametrize("stage", ["backbone", "codec", "watermark"])
async def test_a_full_replicas_refusal_is_retried_on_another(open_replicas, stage):
    chain, replicas = await open_replicas(stage, 3)
    for full in replicas[:2]:
        full.probe.refuse[stage] = ResourceExhausted("all permits are in use", 1.0)
    answers = await asyncio.gather(*(speak(chain) for _ in range(12)))
    for audio, summary in answers:
        assert audio == summary.samples == summary.frames * SAMPLES_PER_FRAME > 0
    assert replicas[2].calls >= 12


async def test_a_draining_replica_gets_nothing_new_and_finishes_what_it_has(open_replicas):
    chain, replicas = await open_replicas("backbone", 2)
    leaving, staying = replicas
    leaving.probe.gate = staying.probe.gate = 2
    running = []
    while leaving.probe.active["backbone"] < 2:
        running.append(await begin(chain, replicas))
    await leaving.server.drain()
    others = 0
    async with asyncio.timeout(30):
        while others < 5:  # in a row: the gateway asks for it twice a second, so it may take a moment
            before = leaving.calls
            running.append(await begin(chain, replicas))
            others = others + 1 if leaving.calls == before else 0
    staying.probe.gate = None
    staying.probe.touch()
    has = leaving.probe.active["backbone"]
    assert await calls_during(replicas, asyncio.gather(*(speak(chain) for _ in range(6)))) == [0, 6]
    assert leaving.probe.active["backbone"] == has >= 2
    stopping = asyncio.ensure_future(leaving.server.stop(20))
    leaving.probe.gate = None
    leaving.probe.touch()
    for audio, summary in await asyncio.gather(*running):
        assert audio == summary.frames * SAMPLES_PER_FRAME == 10 * SAMPLES_PER_FRAME
    await stopping
    assert not leaving.probe.active["backbone"]


async def begin(chain, replicas):
    """A task that speaks, once its stream has reached a replica."""
    calls = sum(replica.calls for replica in replicas)
    task = asyncio.ensure_future(speak(chain))
    async with asyncio.timeout(10):
        while sum(replica.calls for replica in replicas) == calls:
            await asyncio.sleep(0.005)
    return task


class NameServer(asyncio.DatagramProtocol):
    """Answers every question for an IPv4 address with `addresses` (RFC 1035); has nothing else."""

    def __init__(self):
        self.addresses: list[str] = []
        self.asked = 0

    def connection_made(self, transport):
        self.transport = transport
        self.port = transport.get_extra_info("sockname")[1]

    def datagram_received(self, data, peer):
        end = data.index(b"\0", 12) + 5  # the question: labels up to an empty one, type, class
        (kind,) = struct.unpack(">H", data[end - 4 : end - 2])
        found = self.addresses if kind == 1 else []
        self.asked += kind == 1
        head = data[:2] + struct.pack(">HHHHH", 0x8180, 1, len(found), 0, 0)
        answers = b"".join(
            b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 0, 4) + socket.inet_aton(address) for address in found
        )
        self.transport.sendto(head + data[12:end] + answers, peer)


async def test_a_new_replica_is_found_by_name_when_connections_are_renewed(open_chain):
    loop = asyncio.get_running_loop()
    transport, names = await loop.create_datagram_endpoint(NameServer, local_addr=("127.0.0.1", 0))
    old, new = Replica("backbone"), Replica("backbone")
    async with AsyncExitStack() as stack:
        stack.callback(transport.close)
        await old.start(max_connection_age_s=1)
        stack.push_async_callback(old.server.stop, 0)
        port = old.address.rpartition(":")[2]
        try:
            await new.start(f"127.0.0.2:{port}")
        except Exception as error:
            pytest.skip(f"a second loopback address cannot be had: {error}")
        stack.push_async_callback(new.server.stop, 0)
        names.addresses = ["127.0.0.1"]
        target = f"dns://127.0.0.1:{names.port}/{NAME}:{port}"
        chain = await open_chain(backbone=target, insecure="plaintext")
        await speak(chain)
        assert old.calls and not new.calls and names.asked
        names.addresses = ["127.0.0.1", "127.0.0.2"]
        async with asyncio.timeout(60):
            while not new.calls:
                await speak(chain)
                await asyncio.sleep(0.05)
        got = await calls_during([old, new], asyncio.gather(*(speak(chain) for _ in range(20))))
        assert sum(got) == 20 and min(got) > 0


async def test_two_gateways_behind_one_name_share_nothing(open_chain, probe):
    """Streams spread over both; one that is full sends the caller on to the other; one that drains gets none."""
    chain = await open_chain(max_streams=2)
    async with AsyncExitStack() as stack:
        other = type(chain)(probe, chain.gateway_settings["voices_url"])
        other.addresses = {name: address for name, address in chain.addresses.items() if name != "gateway"}
        await other.start_gateway(stack, max_streams=2)
        stack.push_async_callback(other.servers["gateway"].stop, 0)
        name = f"ipv4:{chain.addresses['gateway']},{other.addresses['gateway']}"
        client = await stack.enter_async_context(SpeechClient(name))
        probe.gate = 1  # no stream ends
        running = []
        for count in range(1, 5):  # as many as both admit: some are refused by one and taken by the other
            running.append(asyncio.ensure_future(client.synthesize("hello", timeout_s=60)))
            await probe.until(lambda count=count: probe.active["backbone"] == count, 20)
        with pytest.raises(exceptions.Overloaded, match="permits are in use"):
            await client.synthesize("hello", timeout_s=20)
        await chain.servers["gateway"].drain()
        stopping = asyncio.ensure_future(chain.servers["gateway"].stop(20))
        probe.gate = None
        probe.touch()
        for answer in await asyncio.gather(*running):
            assert answer.summary.samples == 10 * SAMPLES_PER_FRAME
        await stopping
        for _ in range(4):
            assert (await client.synthesize("hello", timeout_s=20)).summary.frames == 10


async def test_a_conversation_stays_with_the_replica_that_has_its_prompt_while_loads_are_alike(open_replicas):
    chain, replicas = await open_replicas("backbone", 2)
    before = [replica.calls for replica in replicas]
    owners = []  # of each conversation: the replica of each of its turns

    async def converse(client, number):
        seen = []
        async with client.converse() as talk:
            for turn in range(4):
                text = f"Conversation {number}, turn {turn}."
                await talk.say(text)
                async for event in talk:
                    if isinstance(event, speech_pb2.TurnFinished):
                        break
                for index, replica in enumerate(replicas):
                    if any(text.encode() == bytes(one.prompt[-1].text.ids[2:-1]) for one in replica.probe.requests):
                        seen.append(index)
        owners.append(seen)

    async with SpeechClient(chain.addresses["gateway"]) as client:
        for number in range(16):  # one after the other, so that loads are alike
            await converse(client, number)
    turns = [len(seen) for seen in owners]
    kept = sum(max(seen.count(0), seen.count(1)) for seen in owners)
    assert sum(turns) == 64 and kept >= 0.95 * 64
    counts = [replica.calls - had for replica, had in zip(replicas, before, strict=True)]
    assert min(counts) > 0


async def test_conversations_that_speak_at_once_stay_with_their_replica(open_replicas):
    """Sixteen conversations at two replicas: whichever of them begins its next turn while the others speak."""
    chain, replicas = await open_replicas("backbone", 2)
    for replica in replicas:
        replica.probe.gate = 0  # a turn speaks until it is interrupted
    draw, homes = random.Random(5), {}

    async def next_turn(number, talk):
        before = [replica.calls for replica in replicas]
        await talk.conversation.say("hello there")
        async with asyncio.timeout(20):
            while [replica.calls for replica in replicas] == before:
                await asyncio.sleep(0)
        (home,) = [one for one, calls in zip(replicas, before, strict=True) if one.calls > calls]
        return homes.setdefault(number, home) is home

    async def interrupt(talk):
        ended = len(talk.finished)
        await talk.conversation.interrupt()
        await talk.until(lambda: len(talk.finished) > ended)

    async with AsyncExitStack() as stack:
        talks = [(await stack.enter_async_context(talking(chain)))[1] for _ in range(16)]
        for number, talk in enumerate(talks):
            assert await next_turn(number, talk)
        kept, moved = 0, []
        for _ in range(64):
            number = draw.randrange(16)
            await interrupt(talks[number])
            loads = [replica.load for replica in chain.stages.backbone.replicas]
            stays = await next_turn(number, talks[number])
            kept += stays
            if not stays:
                moved.append(loads)
        assert kept == 64, moved


async def test_a_conversation_goes_on_when_its_replica_dies_in_a_turn(open_replicas):
    chain, replicas = await open_replicas("backbone", 2)
    async with SpeechClient(chain.addresses["gateway"]) as client, client.converse() as talk:
        for turn in range(2):
            if turn:
                (owner,) = [one for one in replicas if any(b"turn 0" in bytes(part.text.ids) for request in
                            one.probe.requests for part in request.prompt)]  # fmt: skip
                owner.probe.gate = 4
            await talk.say(f"This is turn {turn}.")
            frames = 0
            async for event in talk:
                if isinstance(event, speech_pb2.TurnAudio):
                    frames += len(event.data) / 2 / SAMPLES_PER_FRAME
                    if turn and owner.probe.gate == 4:
                        owner.probe.gate = None
                        await owner.server.stop(0)
                if isinstance(event, speech_pb2.TurnFinished):
                    break
            assert frames == 10


@pytest.mark.parametrize(("certified", "works"), [("localhost", True), ("other.example", False)])
async def test_a_certificate_is_held_to_the_name_and_not_to_the_address(tmp_path, certified, works):
    """Each replica has a channel to its address; what it must prove is the name that the setting gives."""
    authority = Authority()
    ca = authority.write(tmp_path)
    cert, key = authority.issue(certified).write(tmp_path, "codec")
    codec = Replica("codec")
    await codec.start(tls_cert_file=cert, tls_key_file=key)
    try:
        port = codec.address.rpartition(":")[2]
        with_tls = ReplicaSet(
            "codec",
            f"localhost:{port}",
            codec_pb2_grpc.CodecServiceStub,
            max_message_mib=1,
            credentials=tls.reloadable_channel_credentials(tls.ClientFiles(ca)),
        )
        async with with_tls as replicas:
            asking = replicas.unary("GetModelInfo", codec_pb2.GetModelInfoRequest(), timeout=lambda: 5.0)
            if works:
                assert (await asking).bundle.bundle_id == "embedded"
            else:
                with pytest.raises(UnavailableError):
                    await asking
    finally:
        await codec.server.stop(0)
