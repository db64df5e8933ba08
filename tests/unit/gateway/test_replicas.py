"""Who gets a call: the least loaded, the one that a key is hashed to, the next one after a refusal."""

import asyncio
import itertools
import random
import time
from collections import Counter
from types import SimpleNamespace

import grpc
import pytest

from gateway import replicas as module
from gateway.replica import Health
from gateway.replicas import LOAD_BOUND, OPEN_ATTEMPTS, ReplicaSet
from gateway.resolver import ResolveError, parse_target
from gateway.stage_calls import StageCall
from services.runtime.errors import InternalError, ResourceExhausted, UnavailableError

ADDRESSES = [f"ipv4:127.0.0.1:{port}" for port in range(1, 6)]


@pytest.fixture
async def replicas():
    """Five replicas without servers: their probes say DOWN unless the test sets them."""
    async with ReplicaSet(
        "codec", ",".join(ADDRESSES).replace(",ipv4:", ","), lambda _: None, max_message_mib=1
    ) as one:
        await one._first_resolution()
        for replica in one.replicas:
            replica._prober.cancel()
            replica.health = Health.SERVING
        yield one


def give_load(replica, calls):
    replica.calls = {StageCall("codec", SimpleNamespace(cancel=lambda: None)) for _ in range(calls)}


def by_address(replicas):
    return {replica.address: replica for replica in replicas.replicas}


async def test_calls_spread_over_idle_replicas(replicas):
    picked = Counter(replicas.pick().address for _ in range(20))
    assert picked == dict.fromkeys(ADDRESSES, 4)


async def test_the_least_loaded_is_picked(replicas):
    for calls, replica in enumerate(replicas.replicas, 1):
        give_load(replica, calls % 5)
    assert replicas.pick().address == ADDRESSES[4]


async def test_unusable_replicas_are_picked_only_when_there_is_no_other(replicas):
    first, second, *others = replicas.replicas
    for replica in others:
        replica.health = Health.EJECTED
    first.health = Health.DRAINING
    assert {replicas.pick() for _ in range(10)} == {second}
    assert replicas.pick(avoid={second}) is None
    second.suspect()
    assert replicas.pick(avoid={second}) is not None


async def test_a_key_stays_where_it_was_while_replicas_come_and_go(replicas):
    keys = [f"conversation-{n}" for n in range(200)]
    homes = {key: replicas.pick(key) for key in keys}
    assert len(set(homes.values())) == 5
    gone = replicas.replicas[2]
    gone.health = Health.DOWN
    moved = {key: replicas.pick(key) for key in keys}
    assert all(moved[key] is homes[key] or homes[key] is gone for key in keys)
    gone.health = Health.SERVING
    assert moved == {key: replicas.pick(key) for key in keys}  # where their rows are now


async def test_a_gateway_that_does_not_know_a_key_sends_it_where_others_do(replicas, monkeypatch):
    keys = [f"conversation-{n}" for n in range(200)]
    homes = {key: replicas.pick(key) for key in keys}
    replicas._homes.clear()
    assert homes == {key: replicas.pick(key) for key in reversed(keys)}
    monkeypatch.setattr(module, "_MAX_HOMES", 200)
    replicas.pick("one more")
    assert len(replicas._homes) == 200 and keys[-1] not in replicas._homes  # the least recently used


@pytest.mark.parametrize(("conversations", "speaking"), [(100, 50), (400, 200)])
@pytest.mark.parametrize("seed", range(3))
async def test_conversations_stay_with_their_rows_while_many_speak_at_once(replicas, conversations, speaking, seed):
    """Turns begin and end in a random order: 95 % of them where the turn before was, and loads alike all the time."""
    draw = random.Random(seed)
    turns = dict.fromkeys(range(conversations), 20)
    at, homes, kept, again = {}, {}, 0, 0
    while any(turns.values()):
        waiting = [number for number, left in turns.items() if left and number not in at]
        if waiting and len(at) < speaking:
            number = draw.choice(waiting)
            turns[number] -= 1
            replica = replicas.pick(f"{seed}-{number}")
            if number in homes:
                again, kept = again + 1, kept + (homes[number] is replica)
            call = StageCall("codec", SimpleNamespace(cancel=lambda: None))
            replica.calls.add(call)
            homes[number], at[number] = replica, (replica, call)
            mean = len(at) / len(replicas.replicas)
            assert replica.load <= LOAD_BOUND * mean + 1
        else:
            replica, call = at.pop(draw.choice(list(at)))
            replica.calls.discard(call)
    assert again == 19 * conversations and kept >= 0.95 * again, kept / again


async def test_a_key_stays_whenever_loads_differ_by_less_than_the_bound(replicas, monkeypatch):
    """Every load of two and of three replicas up to 24 calls: the home is left only where one has 1.25 times the mean."""
    left, everyone = 0, replicas.replicas
    for count in (2, 3):
        some = everyone[:count]
        monkeypatch.setattr(replicas, "_replicas", {replica.address: replica for replica in some})
        for loads in itertools.product(range(25 if count == 2 else 9), repeat=count):
            for replica, calls in zip(some, loads, strict=True):
                replica.calls = range(calls)
            for home in some:
                replicas._homes["talk"] = home.address
                stays = replicas.pick("talk") is home
                assert stays or max(loads) >= LOAD_BOUND * sum(loads) / count, (loads, home.address)
                left += not stays
    assert left
    for replica in everyone:
        replica.calls = set()


async def test_a_keys_load_is_bounded(replicas):
    for _ in range(100):
        replica = replicas.pick("one-key")
        give_load(replica, replica.load + 1)
    loads = [replica.load for replica in replicas.replicas]
    assert sum(loads) == 100 and max(loads) <= LOAD_BOUND * 100 / 5 + 1


async def test_a_refusal_is_tried_on_every_other_replica(replicas):
    tried = Counter()

    async def start(replica):
        tried[replica.address] += 1
        if replica.address != ADDRESSES[3]:
            raise ResourceExhausted("all slots are taken", 1.0)
        return replica.address

    for _ in range(10):
        assert await replicas.open(start) == ADDRESSES[3]
    # Those that refused are not asked again at once.
    assert tried[ADDRESSES[3]] == 10 and sum(tried.values()) <= 14


async def test_a_full_replica_says_more_than_one_that_is_gone(replicas):
    tried = Counter()

    async def start(replica):
        tried[replica.address] += 1
        if replica.address == ADDRESSES[0]:
            raise ResourceExhausted("all slots are taken", 1.0)
        raise UnavailableError("gone")

    with pytest.raises(ResourceExhausted):
        await replicas.open(start)
    # Those that are gone are not tried again while there is one that is there.
    assert tried == {**dict.fromkeys(ADDRESSES, 1), ADDRESSES[0]: OPEN_ATTEMPTS}


async def test_an_error_that_no_replica_mends_is_raised_at_once(replicas):
    tried = []

    async def start(replica):
        tried.append(replica)
        raise InternalError("broken")

    with pytest.raises(InternalError):
        await replicas.open(start)
    assert len(tried) == 1


async def test_patience_waits_for_room(replicas):
    ends = asyncio.get_running_loop().time() + 0.8

    async def start(replica):
        if asyncio.get_running_loop().time() < ends:
            raise ResourceExhausted("all slots are taken", 1.0)
        return "open"

    with pytest.raises(ResourceExhausted):
        await replicas.open(start)
    assert await replicas.open(start, patience_s=5.0) == "open"


async def test_a_name_without_address_is_unavailable_and_says_so():
    async with ReplicaSet("codec", "no-such-name.invalid:1", lambda _: None, max_message_mib=1) as one:
        with pytest.raises(UnavailableError, match=r"codec: no-such-name\.invalid"):
            await one.unary("GetModelInfo", None, timeout=lambda: 1.0)


async def test_a_replica_whose_address_left_the_name_is_closed_once_its_calls_have_ended(replicas):
    leaving = by_address(replicas)[ADDRESSES[0]]
    give_load(leaving, 1)
    replicas._update(ADDRESSES[1:])
    assert len(replicas.replicas) == 4 and leaving not in {replicas.pick() for _ in range(10)}
    assert leaving._channel.get_state() is not grpc.ChannelConnectivity.SHUTDOWN
    for call in tuple(leaving.calls):
        leaving._on_done(call)
    await asyncio.gather(*leaving._closing)


@pytest.mark.parametrize(
    ("target", "addresses"),
    [
        ("127.0.0.1:50053", ["ipv4:127.0.0.1:50053"]),
        ("[::1]:50053", ["ipv6:[::1]:50053"]),
        ("dns:///127.0.0.1:50053", ["ipv4:127.0.0.1:50053"]),
        ("ipv4:10.0.0.1:1,10.0.0.2:2", ["ipv4:10.0.0.1:1", "ipv4:10.0.0.2:2"]),
        ("ipv6:[::1]:1,[::2]:2", ["ipv6:[::1]:1", "ipv6:[::2]:2"]),
        ("unix:/tmp/codec.sock", ["unix:/tmp/codec.sock"]),
        ("unix:///tmp/codec.sock", ["unix:///tmp/codec.sock"]),
    ],
)
async def test_targets_that_need_no_look_up(target, addresses):
    assert list(await parse_target(target).addresses()) == addresses


def test_names():
    target = parse_target("csm-codec.csm.svc:50053")
    assert (target.host, target.port, target.name_server) == ("csm-codec.csm.svc", "50053", None)
    target = parse_target("dns://10.0.0.10:5353/csm-codec:50053")
    assert (target.host, target.port, target.name_server) == ("csm-codec", "50053", "10.0.0.10:5353")


async def test_localhost_is_resolved_and_an_unknown_name_is_not():
    assert "ipv4:127.0.0.1:7" in await parse_target("localhost:7").addresses()
    with pytest.raises(ResolveError, match="no-such-name"):
        await parse_target("no-such-name.invalid:7").addresses()


class SilentHealth:
    """A health service whose answers never come: each probe misses."""

    def __init__(self):
        self.probes = 0

    async def Check(self, *_, **__):
        self.probes += 1
        await asyncio.sleep(0)
        raise grpc.aio.AioRpcError(grpc.StatusCode.DEADLINE_EXCEEDED, grpc.aio.Metadata(), grpc.aio.Metadata())


@pytest.mark.parametrize(("gives", "probes"), [(False, 2), (True, 6)])
async def test_a_replica_at_work_is_given_longer_to_answer(replicas, monkeypatch, gives, probes):
    replica = replicas.replicas[0]
    call = StageCall("codec", SimpleNamespace(cancel=lambda: None))
    call.last_message_s = time.monotonic() + 100 if gives else 0.0
    replica.calls = {call}
    health = replica._health_stub = SilentHealth()
    monkeypatch.setattr(replica, "_connect", lambda: replica._channel)
    replica.start()
    while replica.health is not Health.EJECTED:
        await asyncio.sleep(0)
    assert health.probes == probes and call._abandoned
    replica.calls = set()


def test_a_stream_is_stalled_when_it_alone_or_all_of_its_replica_get_nothing():
    call = StageCall("codec", SimpleNamespace(cancel=lambda: None))
    call._reading, call.is_owed = True, lambda: True
    assert call.stalled_s(100.0, 0.0) is None  # from here on it counts
    assert call.stalled_s(109.0, 0.0) is None
    assert call.stalled_s(111.0, 0.0) == 11.0
    assert call.stalled_s(111.0, 105.0) is None  # another stream of the replica got something: slow, at worst
    assert call.stalled_s(131.0, 130.0) == 31.0
    call._longest_step_s = 2.0
    assert call.stalled_s(119.0, 0.0) is None and call.stalled_s(121.0, 0.0) == 21.0
    call.is_owed = lambda: False
    assert call.stalled_s(200.0, 0.0) is None


async def test_a_stream_without_a_resume_left_waits_for_its_replica(replicas, monkeypatch):
    replica = replicas.replicas[0]
    calls = [StageCall("codec", SimpleNamespace(cancel=lambda: None)) for _ in range(2)]
    calls[0].is_resumable = lambda: False
    replica.calls = set(calls)
    replica._eject(reconnect=True)
    assert calls[0]._abandoned is None and calls[1]._abandoned
    replica.calls = set()
