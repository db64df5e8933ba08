"""What one point of a bench asks of the gateway."""

from __future__ import annotations

from dataclasses import dataclass, replace

from csm.speech.v1 import speech_pb2

from gateway.cli.bench import prompts
from gateway.cli.bench.texts import sentences
from gateway.cli.options import milliseconds
from gateway.lengths import frames_of_ms


@dataclass(frozen=True)
class Plan:
    """One load, held for some time. Exactly one of `streams` and `rate_hz` is set.

    streams: closed loop, number of callers, each with one utterance at a time.
    rate_hz: open loop, utterances that begin each second (Poisson), whether earlier ones have ended or not.
    duration_s: when the last utterance may begin; those under way are heard to their end.
    ramp_up_s: closed loop: the callers' first utterances begin spread over this time.
    warmup_s: what begins before this is made and checked, but counts in no latency.
    buffer_s: audio a listener waits for in hand, as time after the first piece, before playing.
    audio_s: longest audio of every utterance; None: by its text, `ms_per_character`.
    listens: closed loop: a caller hears the utterance out, in real time, before the next.
    timeout_s: for one utterance. max_in_flight: open loop, utterances at once; more wait, and their wait counts.
    target: whose door is asked: csm, riva or openai. peer_voice, peer_model: what the latter two are asked for.
    turns: closed loop: a caller holds conversations of this many turns, pause_s between two; 0: single utterances.
    prompt_s: length of the voice prompt that each utterance brings; shares_prompt: whether it is the same one.
    max_seq_len: tokens that text and audio of an utterance may take; 0 when that is not known. frame_rate_hz: of the audio.
    """

    streams: int | None = None
    rate_hz: float | None = None
    duration_s: float = 30.0
    ramp_up_s: float = 1.0
    warmup_s: float = 0.0
    buffer_s: float = 0.2
    audio_s: float | None = None
    ms_per_character: float = 80.0
    listens: bool = False
    timeout_s: float = 120.0
    max_in_flight: int = 4096
    connections: int = 4
    speaker: int = 0
    seed: int = 0
    target: str = "csm"
    peer_voice: str = ""
    peer_model: str = "tts-1"
    turns: int = 0
    pause_s: float = 1.0
    prompt_s: float = 0.0
    shares_prompt: bool = False
    max_seq_len: int = 0
    frame_rate_hz: float = 12.5

    @property
    def texts(self) -> tuple[str, ...]:
        """The sentences that surely fit: a token of text is a byte of it at least."""
        return tuple(
            text for text in sentences() if not self.max_seq_len or self._most_tokens(text) <= self.max_seq_len
        )

    def _most_tokens(self, text: str) -> int:
        """Of `[speaker]text` between begin and end, and of the longest audio."""
        frames = frames_of_ms(self.max_audio_ms(text), self.frame_rate_hz)
        prompt = prompts.tokens(self.prompt_s, self.frame_rate_hz)
        return prompt + len(f"[{self.speaker}]{text}".encode()) + 2 + frames

    def within(self, answer: speech_pb2.ListVoicesResponse) -> Plan:
        """This load with what the bundle's rows allow."""
        return replace(self, max_seq_len=answer.max_seq_len, frame_rate_hz=answer.bundle.frame_rate_hz)

    @property
    def load(self) -> float:
        """The number that a sweep is over."""
        return self.rate_hz if self.rate_hz is not None else self.streams or 0

    @property
    def label(self) -> str:
        """How a table names this point."""
        return f"{self.rate_hz:g}/s" if self.rate_hz is not None else str(self.streams)

    @property
    def expected_streams(self) -> float:
        """Utterances under way at once. Open loop: by Little's law, if each takes as long as its longest audio."""
        if self.rate_hz is None:
            return self.streams or 0
        texts = self.texts
        return self.rate_hz * sum(self.max_audio_ms(text) for text in texts) / len(texts) / 1000

    @property
    def full_load_s(self) -> tuple[float, float] | None:
        """From when until when all callers of a closed loop are there, one utterance each; None: never."""
        begin_s, end_s = self.ramp_up_s, self.duration_s
        is_full = self.streams is not None and not self.listens and not self.turns and begin_s < end_s
        return (begin_s, end_s) if is_full else None

    @property
    def longest_s(self) -> float:
        """After this the point is over, whatever happens."""
        return self.duration_s + self.timeout_s + 5.0

    def max_audio_ms(self, text: str) -> int:
        """The limit to ask for: bundles of random weights never end by themselves."""
        by_text_s = len(text) * self.ms_per_character / 1000
        return milliseconds(max(0.08, by_text_s if self.audio_s is None else self.audio_s))

    def shares(self, processes: int) -> list[Plan]:
        """This load split over at most `processes` processes; each part has a seed of its own."""
        if self.rate_hz is not None:
            most = max(1, self.max_in_flight // processes)
            return [
                replace(self, rate_hz=self.rate_hz / processes, max_in_flight=most, seed=self.seed * 1000 + index)
                for index in range(processes)
            ]
        assert self.streams is not None
        counts = [len(range(index, self.streams, processes)) for index in range(processes)]
        return [
            replace(self, streams=count, seed=self.seed * 1000 + index) for index, count in enumerate(counts) if count
        ]
