"""One side of a call over RTP: µ-law at 8 kHz, a packet of 20 ms every 20 ms, and a listener who may speak up.

    python examples/telephony.py [address] [far end, host:port]

The session around it (SIP, or a carrier's media stream) says where packets go. A real agent asks a voice activity
detector whether the far end speaks; here three loud packets in a row do.
"""

import asyncio
import random
import struct
import sys

from csm.common.v1 import common_pb2
from csm.speech.v1 import speech_pb2
from csm_client import SpeechClient

TEXT = "Thank you for calling. How can I help you today?"
PACKET = 160  # samples, and bytes, of 20 ms
PCMU = 0  # RTP's payload type of µ-law
SILENCE = b"\xff"  # in µ-law
LOUD = 0x40  # of 127, in µ-law's steps
SPEAKS_UP = 3  # loud packets


class Rtp(asyncio.DatagramProtocol):
    """Sends what is queued, each packet at its time. `played_s`: how much of the speech has gone out."""

    def __init__(self) -> None:
        self.spoke_up = asyncio.Event()
        self.played_s, self.packets = 0.0, 0
        self._queue, self._is_whole, self._loud = bytearray(), False, 0
        self._number, self._clock, self._source = random.getrandbits(16), random.getrandbits(32), random.getrandbits(32)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: object) -> None:
        payload = data[12:]
        loudness = sum(~byte & 0x7F for byte in payload) / max(len(payload), 1)
        self._loud = self._loud + 1 if loudness > LOUD else 0
        if self._loud >= SPEAKS_UP:
            self.spoke_up.set()

    def add(self, ulaw: bytes) -> None:
        """More of the speech."""
        self._queue += ulaw

    def drop(self) -> None:
        """What has not gone out is not sent."""
        self._queue.clear()

    def end(self) -> None:
        """No more comes: the last packet is filled with silence."""
        self._is_whole = True

    async def run(self) -> None:
        """Until all has gone out."""
        loop = asyncio.get_running_loop()
        due_s = loop.time()
        while self._queue or not self._is_whole:
            if len(self._queue) >= PACKET or (self._queue and self._is_whole):
                self._send(bytes(self._queue[:PACKET]))
                del self._queue[:PACKET]
            self._clock += PACKET  # time goes on while there is nothing to send
            due_s += PACKET / 8000
            await asyncio.sleep(due_s - loop.time())

    def _send(self, payload: bytes) -> None:
        marker = 0x80 if self.packets == 0 else 0  # speech begins
        clock = self._clock & 0xFFFFFFFF
        header = struct.pack(">BBHII", 0x80, marker | PCMU, self._number & 0xFFFF, clock, self._source)
        self._transport.sendto(header + payload.ljust(PACKET, SILENCE))
        self._number += 1
        self.packets += 1
        self.played_s += len(payload) / 8000


async def main(address: str = "localhost:50050", far_end: str = "127.0.0.1:40000") -> None:
    host, _, port = far_end.rpartition(":")
    loop = asyncio.get_running_loop()
    transport, rtp = await loop.create_datagram_endpoint(Rtp, remote_addr=(host, int(port)))
    async with (
        SpeechClient(address) as client,
        client.converse(voice="heart", encoding="mulaw", sample_rate_hz=8000) as talk,
    ):
        sending = asyncio.create_task(rtp.run())
        interrupting = asyncio.create_task(interrupt(rtp, talk))
        await talk.say(TEXT)
        async for event in talk:
            match event:
                case speech_pb2.TurnAudio() if not rtp.spoke_up.is_set():
                    rtp.add(event.data)
                case speech_pb2.TurnFinished(finish_reason=common_pb2.FINISH_REASON_INTERRUPTED):
                    print(f"interrupted: {event.heard_text!r} was heard, {event.heard.ToMilliseconds()} ms of it")
                    break
                case speech_pb2.TurnFinished():
                    # Speech is made faster than it is heard: the listener may still speak up while it is played.
                    rtp.end()
                    await asyncio.wait({sending, interrupting}, return_when=asyncio.FIRST_COMPLETED)
                    if not rtp.spoke_up.is_set():
                        break
        rtp.end()
        await sending
        interrupting.cancel()
    transport.close()
    print(f"{rtp.packets} packets, {rtp.played_s:.2f} s")


async def interrupt(rtp: Rtp, talk) -> None:
    await rtp.spoke_up.wait()
    rtp.drop()
    await talk.interrupt(rtp.played_s)


asyncio.run(main(*sys.argv[1:]))
