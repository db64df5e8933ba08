"""A point of bench_chain.py as it is when it is over, its utterances made up."""

from chain_points import Done, Wish

from gateway.cli.bench.fleet import Outcome
from gateway.cli.bench.record import OK, Record
from gateway.cli.bench.stats import point


def sample_point(
    streams, *, took_s=10.0, underruns=0, status=OK, first_s=0.1, is_complete=True, phase="1 backbone", use=None
):
    """A point whose utterances, 20 s of audio each, all went alike."""
    wish = Wish(streams, 5.0, 2.0)
    records = [
        Record(0.0, 0.0, status=status, first_audio_s=first_s, took_s=took_s, audio_s=20.0, gaps_s=[0.1, 0.2],
               underruns=underruns, bytes=960_000, frames=250)
        for _ in range(streams)
    ]  # fmt: skip
    outcome = Outcome(wish.plan(20.0, False), 1, records, [0.01], wall_s=took_s, is_complete=is_complete)
    empty = {"wall_s": took_s, "gpus": {}, "processes": {}, "metrics": {}, "clients_cpu_s": 1.0}
    return Done(phase, wish, outcome.plan, point(outcome), empty | (use or {}))
