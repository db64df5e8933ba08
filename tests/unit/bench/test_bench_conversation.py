"""bench_conversation.py on a CPU, with small shapes: its table, and what a turn prefills."""

import bench_conversation

from services.backbone.blocks import BLOCK_TOKENS


def test_the_last_turn_prefills_what_the_early_one_does(capsys):
    options = ["--tiny", "--device", "cpu", "--dtype", "float32", "--conversations", "1", "3", "--rounds", "1"]
    sizes = ["--voice", "40", "--text", "5", "--frames", "6", "--turns", "5"]
    bench_conversation.main([*options, *sizes, "--uncached"])
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == 8
    for _, cached, turn, prompt_tokens, prefilled, samples, median, p95 in rows:
        assert int(prompt_tokens) == 40 + 5 * int(turn) + 7 * (int(turn) - 1)
        assert int(samples) >= 1 and 0 < float(median) <= float(p95)
        if cached == "on":  # the last frame, the one that ends it, and the text
            assert int(prefilled) < 1 + 1 + 5 + BLOCK_TOKENS
        else:
            assert prefilled == prompt_tokens
    assert {(row[0], row[1], row[2]) for row in rows} == {(n, c, t) for n in "13" for c in ("on", "off") for t in "25"}
