"""The short form of `make chaos`: a stage that streams is killed once while callers speak; slow: each of them."""

import pytest

from chaos.__main__ import run

STAGES = ("backbone", "codec", "watermark")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("stages", [("watermark",), pytest.param(STAGES, marks=pytest.mark.slow)], ids=len)
async def test_no_utterance_is_lost_when_stages_die(tmp_path, stages):
    rows, leaked = await run(rounds=1, stages=stages, faults=["kill"], callers=2, texts=2, quiet_s=0.1, logs=tmp_path)
    undisturbed, *killed = rows
    assert undisturbed.fault == "none" and [row.stage for row in killed] == list(stages)
    for row in killed:
        assert row.streams and not row.failed and not row.off, row
    if len(stages) > 1:  # one kill may come between two utterances
        assert sum(row.resumed for row in killed) >= 1
    assert leaked == 0
