"""The short form of `make chaos`: each stage that streams is killed once while callers speak."""

import pytest

from chaos.__main__ import run

STAGES = ("backbone", "codec", "watermark")


@pytest.mark.timeout(600)
async def test_no_utterance_is_lost_when_stages_die(tmp_path):
    rows, leaked = await run(rounds=1, stages=STAGES, faults=["kill"], callers=3, quiet_s=0.1, logs=tmp_path)
    undisturbed, *killed = rows
    assert undisturbed.fault == "none" and [row.stage for row in killed] == list(STAGES)
    for row in killed:
        assert row.streams and not row.failed and not row.off, row
    assert sum(row.resumed for row in killed) >= 1  # something was hit
    assert leaked == 0
