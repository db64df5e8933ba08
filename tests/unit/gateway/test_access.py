"""Limits of tokens against a clock of the test's own."""

import asyncio
from types import SimpleNamespace

import grpc
import pytest

from gateway.access import Access
from gateway.config import GatewaySettings
from gateway.token_metrics import TokenMetrics
from services.runtime import instruments
from services.runtime.errors import CallError, InvalidArgument, ResourceExhausted
from services.runtime.settings import SettingError, read

RADIO, TV = "the-token-of-the-radio", "the-token-of-television"


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def refusals(monkeypatch):
    counted = []

    def add(count, labels):
        counted.extend([labels["reason"]] * count)

    monkeypatch.setattr(instruments, "refusals", SimpleNamespace(add=add))
    return counted


@pytest.fixture
def clock():
    return Clock()


def tokens_file(tmp_path):
    return tmp_path / "tokens.toml"


@pytest.fixture
def guarded(tmp_path, clock):
    """call(token, work): run `work(access)` as a call that shows `token`."""
    file = tokens_file(tmp_path)
    file.write_text(f'[radio]\ntoken = "{RADIO}"\nmax_streams = 2\ncharacters_per_minute = 60\n[tv]\ntoken = "{TV}"\n')
    guard = Access(read(GatewaySettings, {}, tokens_file=str(file)), clock)

    async def call(token, work, *, metadata=None, method="/csm.speech.v1.SpeechService/Synthesize"):
        async def behavior(request, context):
            return await work(guard)

        async def continuation(_):
            return grpc.unary_unary_rpc_method_handler(behavior)

        if metadata is None:
            metadata = (("authorization", f"Bearer {token}"),)
        details = SimpleNamespace(method=method, invocation_metadata=metadata)

        async def run():  # in a task of its own, as gRPC runs a call
            handler = await guard.intercept_service(continuation, details)
            if handler.unary_unary:
                return await handler.unary_unary(None, None)
            return [answer async for answer in handler.stream_stream(None, None)]  # a refusal

        return await asyncio.get_running_loop().create_task(run())

    return call


def speak(characters, *, kept=True):
    async def work(guard):
        with guard.enter(characters) as grant:
            if kept:
                grant.keep()

    return work


async def test_a_text_counts_for_a_minute(guarded, clock, refusals):
    await guarded(RADIO, speak(50))
    clock.now += 20
    with pytest.raises(ResourceExhausted) as caught:
        await guarded(RADIO, speak(30))
    assert caught.value.retry_after_s == pytest.approx(40) and caught.value.reason == "TOKEN_CHARACTERS"
    assert not caught.value.retryable and refusals == ["TOKEN_CHARACTERS"]
    await guarded(RADIO, speak(10))
    clock.now += 40  # the 50 are forgotten, the 10 are not
    with pytest.raises(ResourceExhausted) as caught:
        await guarded(RADIO, speak(51))
    assert caught.value.retry_after_s == pytest.approx(20)
    await guarded(RADIO, speak(50))
    clock.now += 3600  # an idle hour saves up one minute
    await guarded(RADIO, speak(60))
    with pytest.raises(ResourceExhausted):
        await guarded(RADIO, speak(1))


async def test_no_60_seconds_see_more_than_the_limit(guarded, clock):
    spoken = []
    for _ in range(400):
        try:
            await guarded(RADIO, speak(7))
            spoken.append(clock.now)
        except ResourceExhausted:
            pass
        clock.now += 0.5
    assert len(spoken) >= 24  # what three minutes may have
    for begin in spoken:
        assert 7 * sum(begin <= at < begin + 59.9 for at in spoken) <= 60


@pytest.mark.parametrize("spent", [1, 7, 33, 59])
async def test_who_comes_back_when_told_to_gets_in(guarded, clock, spent):
    await guarded(RADIO, speak(60))
    with pytest.raises(ResourceExhausted) as caught:
        await guarded(RADIO, speak(spent))
    clock.now += int(caught.value.retry_after_s * 1e9) / 1e9  # as RetryInfo carries it
    await guarded(RADIO, speak(spent))


async def test_a_text_that_can_never_pass_is_no_overload(guarded, refusals):
    with pytest.raises(InvalidArgument, match="has 61 characters, token radio may have 60"):
        await guarded(RADIO, speak(61))
    assert refusals == ["TOKEN_CHARACTERS"]


async def test_what_the_chain_did_not_take_on_is_given_back(guarded):
    for _ in range(5):
        await guarded(RADIO, speak(60, kept=False))
    await guarded(RADIO, speak(60))


async def test_calls_that_fail_side_by_side_leave_nothing_behind(guarded, clock):
    async def refused_late(guard):
        with guard.enter(30), guard.enter(30):
            clock.now += 30

    await guarded(RADIO, refused_late)
    await guarded(RADIO, speak(60))


async def test_a_call_that_fails_after_its_minute_gives_nothing_back(guarded, clock):
    async def refused_late(guard):
        with guard.enter(40):
            clock.now += 61
            await guarded(RADIO, speak(50))

    await guarded(RADIO, refused_late)
    with pytest.raises(ResourceExhausted):
        await guarded(RADIO, speak(20))


async def test_places_are_held_for_as_long_as_calls_run(guarded, refusals):
    release, entered = asyncio.Event(), []

    async def hold(guard):
        with guard.enter():
            entered.append(1)
            await release.wait()

    running = [asyncio.create_task(guarded(RADIO, hold)) for _ in range(2)]
    while len(entered) < 2:
        await asyncio.sleep(0)
    with pytest.raises(ResourceExhausted, match="token radio: all 2 permits are in use"):
        await guarded(RADIO, speak(1))
    assert refusals == ["TOKEN_STREAMS"]
    await guarded(TV, speak(10_000))  # another's, without limits
    running[0].cancel()
    await asyncio.gather(running[0], return_exceptions=True)
    await guarded(RADIO, speak(1))
    release.set()
    await running[1]


async def test_conversations_of_a_token_are_bounded(guarded, refusals):
    release, entered = asyncio.Event(), []

    async def converse(guard):
        with guard.converse():
            entered.append(1)
            await release.wait()

    running = [asyncio.create_task(guarded(RADIO, converse)) for _ in range(8)]
    while len(entered) < 8:
        await asyncio.sleep(0)
    with pytest.raises(ResourceExhausted, match="token radio: all 8 conversations are open"):
        await guarded(RADIO, converse)
    assert refusals == ["TOKEN_CONVERSATIONS"]
    await guarded(RADIO, speak(1))  # turns are counted by themselves
    running += [asyncio.create_task(guarded(TV, converse)) for _ in range(9)]  # another's, without limits
    while len(entered) < 17:
        await asyncio.sleep(0)
    release.set()
    await asyncio.gather(*running)
    await guarded(RADIO, converse)


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ((), "NO_TOKEN"),
        (None, "WRONG_TOKEN"),
        ((("authorization", RADIO),), "NO_TOKEN"),
        ((("authorization", f"Basic {RADIO}"),), "NO_TOKEN"),
        ((("authorization", "Bearer "),), "NO_TOKEN"),
        ((("authorization", f"Bearer {RADIO}x"),), "WRONG_TOKEN"),
        ((("authorization", f"Bearer {RADIO},Bearer {RADIO}x"),), "NO_TOKEN"),
        ((("authorization", f"Bearer {RADIO}"), ("authorization", f"Bearer {RADIO}x")), "NO_TOKEN"),
        ((("authorization", f"Bearer {RADIO},Basic {RADIO}"),), "WRONG_TOKEN"),
    ],
)
async def test_calls_without_a_good_token_are_refused(guarded, refusals, metadata, reason):
    with pytest.raises(CallError) as caught:
        await guarded("some-token-or-other", speak(1), metadata=metadata)
    assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.UNAUTHENTICATED, reason)
    assert refusals == [reason]
    await guarded(RADIO, speak(1), metadata=(("authorization", f"bearer {RADIO}"),))


@pytest.mark.parametrize(
    "values",
    [
        [f"Bearer {RADIO},Bearer {RADIO}"],
        [f"Bearer {RADIO}, bearer {RADIO}"],
        [f"Bearer {RADIO}", f"Bearer {RADIO}"],
        [f"Bearer {RADIO}".encode()],
    ],
)
async def test_a_token_that_is_shown_twice_is_one_token(guarded, values):
    await guarded(RADIO, speak(1), metadata=tuple(("authorization", value) for value in values))


async def test_the_last_token_is_taken_out_by_a_file_without_any(guarded, tmp_path, caplog):
    file = tokens_file(tmp_path)
    file.write_text("# no token\n")
    for token in (RADIO, TV):
        with pytest.raises(CallError) as caught:
            await guarded(token, speak(1))
        assert caught.value.reason == "WRONG_TOKEN"
    warned = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert warned == [f"{file} names no token: every call is refused"]
    file.write_text(f'[radio]\ntoken = "{RADIO}"')
    await guarded(RADIO, speak(1))
    # A file that is gone or wrong may be one that is just being written: it takes no token out.
    file.unlink()
    await guarded(RADIO, speak(1))
    assert "the old ones stay in use" in caplog.text


def test_a_start_without_any_token_is_a_mistake(tmp_path):
    file = tokens_file(tmp_path)
    file.write_text("")
    with pytest.raises(SettingError, match=r"CSM_TOKENS_FILE: .*tokens.toml: names no token"):
        Access(read(GatewaySettings, {}, tokens_file=str(file)))


async def test_a_call_whose_token_was_not_checked_gets_no_permit(guarded):
    """The servicer without its interceptor is shut, not open."""
    with pytest.raises(CallError, match="was not checked"):
        await guarded(RADIO, speak(1), method="/grpc.health.v1.Health/Check")


def test_without_tokens_only_this_machine_unless_asked_for(caplog):
    Access(read(GatewaySettings, {}))
    with pytest.raises(SettingError, match="set CSM_TOKENS_FILE, or CSM_INSECURE=no-tokens") as caught:
        Access(read(GatewaySettings, {}, listen="0.0.0.0:50050", insecure="plaintext"))
    assert "\n" not in str(caught.value) and not caplog.records
    Access(read(GatewaySettings, {}, listen="0.0.0.0:50050", insecure="no-tokens"))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    with pytest.raises(SettingError, match=r"CSM_TOKENS_FILE: none.toml: No such file"):
        Access(read(GatewaySettings, {}, tokens_file="none.toml"))


def counted(measured, name):
    return {point.attributes["csm.token"]: point.value for point in measured.get(name, ()) if point.value}


async def test_what_tokens_use_is_counted_by_their_names(metrics, guarded):
    async def audible(guard):
        with guard.enter(40) as grant:
            grant.keep()
            guard.count_audio(1.5)

    begun = {(p.attributes["csm.token"], p.attributes["reason"]): p.value for p in metrics()["csm.token.refusals"]}
    assert begun["tv", "TOKEN_STREAMS"] == 0 and len(begun) == 6  # there before anything is counted
    await guarded(RADIO, audible)
    await guarded(TV, speak(7))
    await guarded(TV, speak(9, kept=False))  # gave nothing, so it costs nothing
    with pytest.raises(ResourceExhausted):
        await guarded(RADIO, speak(40))
    measured = metrics()
    assert counted(measured, "csm.token.characters") == {"radio": 40, "tv": 7}
    assert counted(measured, "csm.token.audio") == {"radio": 1.5}
    refused = {(p.attributes["csm.token"], p.attributes["reason"]): p.value for p in measured["csm.token.refusals"]}
    assert refused.pop(("radio", "TOKEN_CHARACTERS")) == 1 and not any(refused.values())


def test_token_names_in_metrics_are_bounded(metrics):
    metrics()
    counts = TokenMetrics(3)
    for number in range(100):
        counts.characters(f"token-{number}", 1)
        counts.refused(f"token-{number}", "TOKEN_STREAMS")
    counts.audio("token-1", 2.0)
    TokenMetrics(0).characters("silent", 1)
    measured = metrics()
    assert counted(measured, "csm.token.characters") == {"token-0": 1, "token-1": 1, "token-2": 1, "(other)": 97}
    assert counted(measured, "csm.token.audio") == {"token-1": 2.0}
    assert counted(measured, "csm.token.refusals")["(other)"] == 97
