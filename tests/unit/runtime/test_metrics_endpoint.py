"""The Prometheus endpoint's address: an address that cannot be had is an error at the start."""

import socket

import pytest

from services.runtime import telemetry
from services.runtime.settings import SettingError


@pytest.mark.parametrize("listen", ["9464x", "127.0.0.1", "127.0.0.1:99999", "no.such.host.invalid:9464"])
def test_an_address_that_is_none(listen):
    with pytest.raises(SettingError, match="CSM_METRICS_LISTEN"):
        telemetry._prometheus(listen)


def test_a_port_that_is_taken():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(SettingError, match=r"CSM_METRICS_LISTEN.*cannot listen there"):
            telemetry._prometheus(f"127.0.0.1:{taken.getsockname()[1]}")
