"""The metric that only a service with TLS has, as Prometheus fetches it from a real process."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from support.authority import Authority
from support.telemetry import tables

ROOT = Path(__file__).parents[2]
NAME = "csm_tls_certificate_remaining_seconds"


@pytest.fixture
def page(tmp_path):
    """The gateway's page: it shows a certificate of 5 days to callers and an expired one to the stages."""
    authority = Authority()
    cert, key = authority.issue(days=5).write(tmp_path)
    client_cert, client_key = authority.issue(days=-1).write(tmp_path, "client")
    ca = authority.write(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    environment = {
        "CSM_LISTEN": "127.0.0.1:0", "CSM_METRICS_LISTEN": f"127.0.0.1:{port}", "CSM_GRACE_S": "1",
        "CSM_TLS_CERT_FILE": cert, "CSM_TLS_KEY_FILE": key,
        "CSM_UPSTREAM_CA_FILE": ca, "CSM_UPSTREAM_CERT_FILE": client_cert, "CSM_UPSTREAM_KEY_FILE": client_key,
    }  # fmt: skip
    with (tmp_path / "log").open("wb") as log:
        gateway = subprocess.Popen([sys.executable, "-m", "gateway"], cwd=ROOT, env=environment, stdout=log, stderr=log)
    try:
        # The page is there before the channels to the stages are.
        until = time.monotonic() + 60
        while time.monotonic() < until and gateway.poll() is None:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
                    text = answer.read().decode()
            except (urllib.error.URLError, ConnectionError):
                text = ""
            if 'shown_to="servers"' in text and 'shown_to="callers"' in text:
                break
            time.sleep(0.05)
        else:
            pytest.fail((tmp_path / "log").read_text()[-3000:])
        yield text
    finally:
        gateway.terminate()
        gateway.wait(20)


def test_how_long_certificates_last(page):
    (family,) = [family for family in text_string_to_metric_families(page) if family.name == NAME]
    days = {sample.labels["shown_to"]: sample.value / 86_400 for sample in family.samples}
    assert days == {"callers": pytest.approx(5, abs=0.1), "servers": pytest.approx(-1, abs=0.1)}
    (row,) = [row for row in tables.metrics() if row.exposed == NAME]
    assert (family.type, {"shown_to"}) == (row.type, set(row.labels))
