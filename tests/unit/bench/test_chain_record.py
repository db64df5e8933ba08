"""RECORD of bench_chain.py: scrapes of real pages while a point's load is steady, and a file that the alerts' tests read."""

import asyncio
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import chain_record
import pytest
from chain_layout import Counts, Layout, Process
from chain_points import Wish
from chain_record import Recorder

from support.sample_points import sample_point
from support.telemetry import recording

NAME = "csm_stream_buffer_needed_seconds_count"


@pytest.fixture
def page():
    """A page whose counter is one larger each time that it is read; its address."""
    reads = []

    class Page(BaseHTTPRequestHandler):
        def do_GET(self):
            reads.append(self.path)
            body = f'{NAME}{{otel_scope_name="csm",csm_token="t"}} {len(reads)}.0\nnot_asked_for 1\n'.encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def folder(monkeypatch, tmp_path):
    for name, text in {"RECORD": str(tmp_path / "made"), "RECORD_EVERY_S": "1", "DEVICE": "cpu"}.items():
        monkeypatch.setenv(name, text)
    return tmp_path / "made"


def one_point(wish, *pages, until_whole=True):
    """What the recorder says of a point."""
    processes = [Process(f"codec-{at + 2}" if at else "gateway", "codec", "", page) for at, page in enumerate(pages)]

    async def run():
        recorder = Recorder(Layout(processes, Counts({"gateway": 1})))
        recorder.begin(wish)
        recorder.begin(wish)  # as each news of the load has it
        if until_whole and recorder._scraping is not None:
            await asyncio.wait({recorder._scraping})
        return await recorder.end(sample_point(2))

    return asyncio.run(run())


def test_a_point_is_recorded_as_the_alerts_tests_read_it(page, folder):
    assert one_point(Wish(2, 1.2, 0.2), page, page) == f"metrics recorded in {folder}/2.yaml"
    run, series = recording.load(folder / "2.yaml")
    assert (run["callers"], run["seconds"], run["every_s"], run["carried"]) == ("2", 1, 1, True)
    assert [dict(each.labels)["instance"] for each in series] == ["codec-3:9464", "gateway:9464"]
    assert [each.label("job") for each in series] == ["csm-codec", "csm-gateway"]
    assert all(each.name == NAME and each.label("csm_token") == "t" and len(each.values) == 2 for each in series)
    assert sorted(value for each in series for value in each.values) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("wish", "whole", "why"),
    [
        (Wish(2, 0.5, 0.2), True, "after the ramp it lasts less than RECORD_EVERY_S, 1 s"),
        (Wish(2, 60.0, 0.0), False, "the point was cut off"),
    ],
)
def test_a_point_that_is_too_short_is_not_recorded(page, folder, wish, whole, why):
    assert one_point(wish, page, until_whole=whole) == f"metrics not recorded: {why}"
    assert not folder.exists()


def test_a_page_that_does_not_answer_ends_no_point(page, folder):
    assert "metrics not recorded: <urlopen error" in one_point(Wish(2, 1.2, 0.2), page, "127.0.0.1:1")


def test_a_late_scrape_is_not_taken_for_one_in_time(page, folder, monkeypatch):
    async def slow(*_):
        await asyncio.sleep(0.6)
        return {}

    monkeypatch.setattr(chain_record.recording, "scrape_all", slow)
    assert one_point(Wish(2, 1.2, 0.2), page) == "metrics not recorded: a scrape ended 0.6 s late, of 1 s"


def test_nothing_is_recorded_unless_asked_for(page, monkeypatch):
    monkeypatch.delenv("RECORD", raising=False)
    assert one_point(Wish(2, 1.2, 0.2), page) == ""
