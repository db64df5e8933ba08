"""Whatever arrives: no process dies, none answers with a fault of its own, none grows."""

import pytest

from fuzz.runner import fuzz


@pytest.mark.parametrize("calls", [1_500, pytest.param(50_000, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])])
async def test_fuzzed_calls_break_nothing(tmp_path, calls):
    report = await fuzz(calls, seed=calls, folder=tmp_path)
    told = "\n".join(report.lines())
    assert report.is_clean, told
    assert {name for name, statuses in report.statuses.items() if statuses["OK"]} == set(report.statuses), told
