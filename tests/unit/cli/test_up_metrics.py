"""`csm up` gives each of its services a metrics port of its own."""

from pathlib import Path

import pytest

from gateway.cli import up


@pytest.mark.parametrize(
    ("listen", "expected"),
    [
        ("127.0.0.1:9464", [f"127.0.0.1:{port}" for port in range(9464, 9470)]),
        ("[::1]:9464", [f"[::1]:{port}" for port in range(9464, 9470)]),
        ("127.0.0.1:0", ["127.0.0.1:0"] * 6),
        ("nonsense", ["nonsense"] * 6),  # for the services to refuse, each by its name
    ],
)
def test_ports_follow_each_other(monkeypatch, listen, expected):
    monkeypatch.setenv("CSM_METRICS_LISTEN", listen)
    names = ("gateway", *up.STAGES, "http")
    plan = up.Plan("embedded", dict.fromkeys(names, 1), Path("nowhere"))
    assert [up._child(plan, name, {}).env["CSM_METRICS_LISTEN"] for name in names] == expected


def test_none_unless_asked_for(monkeypatch):
    monkeypatch.delenv("CSM_METRICS_LISTEN", raising=False)
    plan = up.Plan("embedded", {"codec": 1}, Path("nowhere"))
    assert "CSM_METRICS_LISTEN" not in up._child(plan, "codec", {}).env
