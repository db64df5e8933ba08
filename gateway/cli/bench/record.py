"""What one utterance of a bench came to."""

from __future__ import annotations

from dataclasses import dataclass, field

from gateway.cli.bench.listener import Listener

OK = "OK"
ACCOUNTING = "BYTES_DO_NOT_ADD_UP"
UNFINISHED = "UNFINISHED"  # under way when the bench was stopped: not an error


@dataclass
class Record:
    """Times in seconds. status: OK, a gRPC code's name, or one of the two above.

    intended_s, sent_s: since the load began; the difference is the tool's own lateness.
    first_audio_s, took_s: since `intended_s`: a caller whose turn came late has waited all the same. first_audible_s:
    likewise, to the first sample that is not silence, for who plays at once. turn: of a conversation, from 1; else 0.
    full_load_audio_s: of its audio, what came while all callers were there.
    stages: stage → its first output, as the gateway's own clock had it since the request came in.
    """

    intended_s: float
    sent_s: float
    status: str = UNFINISHED
    problem: str = ""
    first_audio_s: float | None = None
    first_audible_s: float | None = None
    took_s: float = 0.0
    audio_s: float = 0.0
    full_load_audio_s: float = 0.0
    gaps_s: list[float] = field(default_factory=list)
    underruns: int = 0
    underrun_s: float = 0.0
    bytes: int = 0
    frames: int = 0
    stages: dict[str, float] = field(default_factory=dict)
    server_first_audio_s: float = 0.0
    trace_id: str = ""
    retry_after_s: float | None = None
    turn: int = 0

    def note(self, listener: Listener, now_s: float) -> None:
        """What its listener heard; it ends now."""
        self.took_s = now_s - self.intended_s
        self.audio_s, self.gaps_s = listener.heard_s, listener.gaps_s
        self.full_load_audio_s = listener.counted_s
        self.underruns, self.underrun_s = listener.underruns, listener.underrun_s
        if listener.first_s is not None:
            self.first_audio_s = listener.first_s - self.intended_s
        if listener.audible_s is not None:
            self.first_audible_s = listener.audible_s - self.intended_s
