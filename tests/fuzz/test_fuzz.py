"""Whatever arrives: no process dies, none answers with a fault of its own, none grows."""

from fuzz.runner import fuzz


async def test_fuzzed_calls_break_nothing(tmp_path):
    """Beside the tests of `make test` run more, by `fuzz.beside`."""
    report = await fuzz(5_000, seed=1_500, folder=tmp_path)
    assert report.is_clean, "\n".join(report.lines())
