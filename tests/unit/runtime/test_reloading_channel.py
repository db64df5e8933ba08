"""A channel to a change of certificates that does not come about at once; test_tls has real ones."""

import asyncio

import grpc

from services.runtime.reloading_channel import ReloadingChannel


class Files:
    """In place of ReloadableFile: gives what the test sets."""

    now = "old"

    def current(self):
        return self.now


class Channel:
    """Ready at once; its calls say which credentials it was made with."""

    def __init__(self, credentials):
        self.credentials, self.closed = credentials, False

    def unary_unary(self, method):
        return lambda request: Call(self.credentials)

    def get_state(self, try_to_connect=False):
        return grpc.ChannelConnectivity.READY

    async def close(self, grace=None):
        self.closed = True


class Call:
    def __init__(self, credentials):
        self.credentials = credentials

    def add_done_callback(self, ended):
        ended(self)


async def test_a_channel_that_could_not_be_made_is_tried_again_at_the_next_call(caplog):
    made, files, wrong = [], Files(), [RuntimeError("no more of them")]

    def connect(credentials):
        if credentials == "new" and wrong:
            raise wrong.pop()
        made.append(Channel(credentials))
        return made[-1]

    async with ReloadingChannel("here:1", files, connect) as channel:
        ask = channel.unary_unary("/a/B")
        assert ask(b"").credentials == "old"
        files.now = "new"
        for _ in range(2):  # in vain, then not
            assert ask(b"").credentials == "old"
            await asyncio.gather(channel._reload)
        assert ask(b"").credentials == "new"
        assert [one.credentials for one in made] == ["old", "new"]
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [
        "here:1: no channel with the new certificates; the next call tries again: no more of them"
    ]
    assert all(one.closed for one in made)


async def test_a_call_whose_end_is_told_twice_does_not_close_the_channel_under_another_one():
    """gRPC runs a call's callbacks again when its status comes after a write has failed."""
    made, files, endings = [], Files(), []

    class Running:
        def add_done_callback(self, ended):
            endings.append(lambda: ended(self))

    class Slow(Channel):
        def unary_unary(self, method):
            return lambda request: Running()

    def connect(credentials):
        made.append(Slow(credentials))
        return made[-1]

    async with ReloadingChannel("here:1", files, connect) as channel:
        ask = channel.unary_unary("/a/B")
        ask(b"")
        files.now = "new"
        ask(b"")  # on the old channel, until the new one is ready
        await asyncio.gather(channel._reload)
        for _ in range(2):
            endings[0]()
        await asyncio.sleep(0)
        assert not made[0].closed  # the second call runs on it
        endings[1]()
        await asyncio.gather(*channel._closing)
        assert made[0].closed and not made[1].closed
