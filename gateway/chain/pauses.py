"""Silence between pieces of speech: the codec's samples, with zeros put in where the speaker has to wait."""

from __future__ import annotations

import asyncio

import numpy as np

from gateway.chain.codec import CodecLink


class PausedAudio:
    """Between codec and watermark. `read` and `rewind` by one task, `pause` by another.

    A pause's place is counted in samples, so a stream that is decoded again has it at the same place.
    """

    def __init__(self, codec: CodecLink):
        self._codec = codec
        self._pauses: list[tuple[int, int]] = []  # samples of speech before it, its length
        self._added = asyncio.Event()
        self._begin(0)

    def _begin(self, sample: int) -> None:
        """Let `read` go on with `sample`."""
        # Samples of speech that `read` has given, and of the next pause.
        self._position, self._next_pause, self._given = self._place(sample)
        self._rest: np.ndarray | None = None
        self._reading: asyncio.Task[np.ndarray | None] | None = None
        self._ended = False

    @property
    def samples(self) -> int:
        """All there are so far: of the frames that were fed, and of the pauses."""
        return self._speech + sum(length for _, length in self._pauses)

    @property
    def samples_per_frame(self) -> int:
        """As the codec's."""
        return self._codec.samples_per_frame

    @property
    def _speech(self) -> int:
        return self._codec.samples

    def pause(self, samples: int) -> None:
        """Put `samples` of silence behind the frames that were fed."""
        self._pauses.append((self._speech, samples))
        self._added.set()

    async def read(self) -> np.ndarray | None:
        """The next samples, float32 [T]; None at the end. Raises: CallError."""
        while True:
            if self._next_pause < len(self._pauses):
                begin, length = self._pauses[self._next_pause]
                if begin == self._position:
                    self._next_pause, given, self._given = self._next_pause + 1, self._given, 0
                    return np.zeros(length - given, np.float32)
            if self._ended:
                return None
            samples = await self._speech_samples()
            if samples is None:
                continue
            if self._next_pause < len(self._pauses):
                room = self._pauses[self._next_pause][0] - self._position
                if len(samples) > room:
                    self._rest, samples = samples[room:], samples[:room]
            self._position += len(samples)
            return samples

    async def _speech_samples(self) -> np.ndarray | None:
        """The codec's next samples. None: it has ended, or a pause was added meanwhile."""
        if self._rest is not None:
            rest, self._rest = self._rest, None
            return rest
        if self._reading is None:
            self._reading = asyncio.ensure_future(self._codec.read())
        self._added.clear()
        added = asyncio.ensure_future(self._added.wait())
        try:
            await asyncio.wait((self._reading, added), return_when=asyncio.FIRST_COMPLETED)
        finally:
            added.cancel()
        if not self._reading.done():
            return None
        reading, self._reading = self._reading, None
        samples = reading.result()
        self._ended = samples is None
        return samples

    async def rewind(self, sample: int) -> None:
        """Begin again with `sample`, pauses counted. Raises: CallError."""
        await self.close()
        self._begin(sample)
        await self._codec.rewind(self._position)

    def forget(self, sample: int) -> None:
        """No `rewind` will go back before `sample`."""
        speech, _, _ = self._place(sample)
        self._codec.forget(speech)

    def _place(self, sample: int) -> tuple[int, int, int]:
        """Where `sample` is: samples of speech before it, whole pauses before it, and samples of the pause it lies in."""
        for number, (begin, length) in enumerate(self._pauses):
            if sample < begin:
                return sample, number, 0
            if sample - begin < length:
                return begin, number, sample - begin
            sample -= length
        return sample, len(self._pauses), 0

    def cancel(self) -> None:
        """Stop what still reads."""
        if self._reading is not None:
            self._reading.cancel()

    async def close(self) -> None:
        """Stop what still reads, and wait for it."""
        self.cancel()
        if self._reading is not None:
            await asyncio.gather(self._reading, return_exceptions=True)
