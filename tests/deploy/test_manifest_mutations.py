"""Each manifest that is spoilt in one place is found out by a check, and each check finds something."""

from __future__ import annotations

import pytest

from support.manifest_mutations.network import NETWORK
from support.manifest_mutations.pods import PODS
from support.manifest_mutations.scaling import KEDA as SPOILT_KEDA
from support.manifest_mutations.scaling import SCALING
from support.manifest_mutations.settings import DEV as SPOILT_DEV
from support.manifest_mutations.settings import SETTINGS
from support.manifests import checks
from support.manifests.places import DEPLOYED, DEV, FULL, KEDA
from support.manifests.rendered import render

ALL = [
    *((FULL, name, spoil) for spoils in (PODS, NETWORK, SCALING, SETTINGS) for name, spoil in spoils.items()),
    *((KEDA, name, spoil) for name, spoil in SPOILT_KEDA.items()),
    *((DEV, name, spoil) for name, spoil in SPOILT_DEV.items()),
]


@pytest.mark.parametrize(
    ("deployed", "spoil"), [pytest.param(deployed, spoil, id=name) for deployed, name, spoil in ALL]
)
def test_a_spoilt_manifest_is_found_out(deployed, spoil, exported):
    manifests = render(*deployed)
    spoil(manifests)
    assert manifests != render(*deployed)
    assert checks.failures(manifests, DEPLOYED[deployed], exported)


def test_every_check_finds_something(exported):
    found: set[str] = set()
    for deployed, _, spoil in ALL:
        manifests = render(*deployed)
        spoil(manifests)
        found |= checks.failures(manifests, DEPLOYED[deployed], exported).keys()
    assert found == {check.__name__ for check in (*checks.CHECKS, checks.check_cards, checks.check_metrics)}
