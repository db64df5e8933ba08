"""The points of bench_chain.py: what counts as carried, which come next, and what is written of them; no chain runs."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
from chain_points import Wish, carried, next_streams
from chain_report import write, write_logs
from chain_text import brief, limits, ratio_text, spread
from chain_use import Gpu, Reading, children, use_between

from gateway.cli.bench.record import UNFINISHED
from support.sample_points import sample_point


def test_a_point_is_streams_seconds_and_ramp():
    assert Wish.read("64:6") == Wish(64, 6.0, 3.0)
    assert Wish.read("1000:20:20") == Wish(1000, 20.0, 20.0)
    plan = Wish.read("1000:20:20").plan(20.0, True)
    assert (plan.streams, plan.duration_s, plan.ramp_up_s, plan.audio_s, plan.listens) == (1000, 20.0, 20.0, 20.0, True)


def test_a_point_may_be_a_rate_of_short_utterances():
    wish = Wish.read("20/s:10")
    plan = wish.plan(20.0, False)
    assert (plan.streams, plan.rate_hz, plan.duration_s, plan.audio_s) == (None, 20.0, 10.0, 4.3)
    assert wish.longest_s(20.0) == Wish.read("86:10").longest_s(4.3)
    assert wish.times(2).plan(20.0, False).rate_hz == 40.0
    assert (str(wish), wish.label, str(Wish.read("64:6"))) == ("20/s", "20/s", "64 streams")
    assert carried([replace(sample_point(86), wish=wish), sample_point(4)], "1 backbone") == 4
    for text in ("0/s:5", "nan/s:5", "20/s:5:2", "20/s:0", "99999/s:5"):
        with pytest.raises(ValueError):
            Wish.read(text)


@pytest.mark.parametrize(
    "change",
    [
        {"underruns": 1},
        {"status": "UNAVAILABLE"},
        {"status": UNFINISHED, "is_complete": False},
        {"first_s": 5.0},
    ],
)
def test_a_point_is_carried_when_all_heard_all(change):
    assert sample_point(4).is_carried
    assert not sample_point(4, **change).is_carried


def test_a_stream_cut_off_after_an_underrun_counts_as_one():
    assert sample_point(4, status=UNFINISHED, underruns=2, is_complete=False).underrun == 4


def test_how_long_a_point_may_take_is_learnt_from_the_one_before():
    wish, audio_s = Wish.read("512:6"), 20.0
    unknown = wish.expected_s(audio_s, None)
    assert unknown == pytest.approx(wish.longest_s(audio_s))
    quick = wish.expected_s(
        audio_s, sample_point(256, took_s=2.0)
    )  # 0.1 of real time, so 0.26 with margin at twice as many
    assert quick == pytest.approx(4.0 + 6.0 + 0.26 * 20.0)
    assert wish.expected_s(audio_s, sample_point(256, took_s=30.0)) == pytest.approx(unknown)


def test_the_search_ends_when_it_is_known_to_a_tenth():
    tried = [sample_point(512), sample_point(1000, underruns=1)]
    while (streams := next_streams(tried, "1 backbone", 1024)) is not None:
        tried.append(sample_point(streams, underruns=int(streams > 700)))
        assert len(tried) < 12
    most = carried(tried, "1 backbone")
    failed = min(one.wish.streams for one in tried if not one.is_carried)
    assert 630 <= most <= 700 < failed <= 1.1 * most


def test_the_search_goes_up_to_the_slots_and_down_from_failure():
    assert next_streams([sample_point(512)], "1 backbone", 1024) == 768
    assert next_streams([sample_point(1024)], "1 backbone", 1024) is None
    assert next_streams([sample_point(64, underruns=1)], "1 backbone", 1024) == 8
    assert next_streams([sample_point(1, underruns=1)], "1 backbone", 1024) is None
    assert next_streams([], "1 backbone", 1024) is None


def test_two_phases_are_compared():
    both = [
        sample_point(500),
        sample_point(1000, underruns=1),
        sample_point(900, phase="2 backbones"),
        sample_point(1000, took_s=5.0, phase="2 backbones"),
    ]
    text = ratio_text(both)
    assert "1 backbone: 500 streams carried" in text and "2 backbones: 1000 streams carried" in text
    assert "2 backbones : 1 backbone = 2.00 by streams carried, 2.00 by audio a second" in text


def page(**calls):
    """A metrics page as read_page gives it: calls of Generate and their waits."""
    told = {}
    for code, count in calls.items():
        labels = f"rpc_method=csm.backbone.v1.BackboneService/Generate,rpc_response_status_code={code}"
        told |= {
            ("rpc_server_call_duration_seconds_bucket", f"{labels},le=+Inf"): count,
            ("rpc_server_call_duration_seconds_sum", labels): 1.0 * count,
        }
        waits = "rpc_method=csm.backbone.v1.BackboneService/Generate,stage=backbone"
        told |= {
            ("csm_stage_queue_duration_seconds_bucket", f"{waits},le=+Inf"): count,
            ("csm_stage_queue_duration_seconds_sum", waits): 0.5 * count,
        }
    return told


def test_use_is_what_came_between_two_readings():
    first = Reading(
        10.0, {"backbone": (7, {"all": 1.0, "main": 0.5}, 100.0)}, {"backbone": page(OK=3), "backbone-2": page(OK=1)}
    )
    last = Reading(
        14.0, {"backbone": (7, {"all": 5.0, "main": 4.1}, 120.0)}, {"backbone": page(OK=10), "backbone-2": page(OK=1)}
    )
    gpu = Gpu()
    for line in (
        "0, 99, 50, 1000, 300, 1980",
        "1, 10, 5, 900, 100, 1980",
        "name, of, something",
        "0, 97, 50, 1000, 300, 1980",
    ):
        try:
            gpu._read_device(line)
        except ValueError:
            continue
    gpu.device = [(12.0, numbers) for _, numbers in gpu.device]
    use = use_between(first, last, {"backbone": {"all": 1.2, "main": 0.95}}, gpu)
    assert use["gpus"]["0"]["utilization.gpu"] == 98 and use["gpus"]["1"]["utilization.gpu"] == 10
    took = use["processes"]["backbone"]
    assert (
        took["cores"] == 1.0
        and took["threads"]["main"] == pytest.approx(0.9)
        and took["peak_threads"] == {"main": 0.95}
    )
    assert spread(use) == {"backbone": {"backbone": 7, "backbone-2": 0}}
    told = "\n".join(limits(sample_point(4, use=use)))
    assert "backbone: thread main had 0.95 of a core" in told and "GPU 0: busy 98 %" in told and "GPU 1" not in told
    assert "backbone: waited 500 ms for a turn" in told
    assert (
        "gateways: 95 of 100 calls were taken in after up to 100 ms" in told
    )  # first audio here, and at the gateway 0


def test_what_is_written_can_be_read(tmp_path):
    points = [sample_point(4), sample_point(8, status="UNAVAILABLE")]
    write(points, {"address": "a chain", "machine": "this one"}, "s\n", tmp_path)
    text, told = (tmp_path / "chain.md").read_text(), json.loads((tmp_path / "chain.json").read_text())
    assert "| 1 backbone | 4 " in text and "machine: this one" in text and "4 streams carried" in text
    assert [(one["phase"], one["carried"], one["load"]) for one in told["points"]] == [
        ("1 backbone", True, 4),
        ("1 backbone", False, 8),
    ]
    assert "8 streams: NOT carried" in brief(points[1])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chain.json", "chain.md", "gpu.csv"]


def test_logs_are_cut(tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/codec.log").write_text("\n".join(f"line {number}" for number in range(100)))
    write_logs(tmp_path / "logs", tmp_path)
    lines = (tmp_path / "logs.txt").read_text().splitlines()
    assert lines[0] == "==> codec.log" and lines[1] == "line 70" and lines[-1] == "line 99"


def test_children_are_known_by_where_they_listen():
    with subprocess.Popen(
        [sys.executable, "-c", "print(flush=True); input()"], env=os.environ | {"CSM_LISTEN": "127.0.0.1:9"},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as child:  # fmt: skip
        child.stdout.readline()  # before, the kernel may not yet show its environment
        assert children()[child.pid] == "127.0.0.1:9"
        child.stdin.close()
    assert child.pid not in children()
