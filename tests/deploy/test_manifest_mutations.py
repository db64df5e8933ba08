"""Each manifest with one mutation fails a check, and each check finds some mutation."""

from __future__ import annotations

import pytest

from support.manifest_mutations.http import HTTP
from support.manifest_mutations.network import NETWORK
from support.manifest_mutations.pods import PODS
from support.manifest_mutations.scaling import KEDA as KEDA_MUTATIONS
from support.manifest_mutations.scaling import SCALING
from support.manifest_mutations.settings import DEV as DEV_MUTATIONS
from support.manifest_mutations.settings import SETTINGS
from support.manifests import checks
from support.manifests.overlays import DEPLOYED, DEV, FULL, KEDA
from support.manifests.rendered import render

ALL = [
    *(
        (FULL, name, mutate)
        for mutations in (PODS, NETWORK, SCALING, SETTINGS, HTTP)
        for name, mutate in mutations.items()
    ),
    *((KEDA, name, mutate) for name, mutate in KEDA_MUTATIONS.items()),
    *((DEV, name, mutate) for name, mutate in DEV_MUTATIONS.items()),
]


@pytest.mark.parametrize(
    ("deployed", "mutate"), [pytest.param(deployed, mutate, id=name) for deployed, name, mutate in ALL]
)
def test_a_mutated_manifest_is_found_out(deployed, mutate, exported):
    manifests = render(*deployed)
    mutate(manifests)
    assert manifests != render(*deployed)
    assert checks.failures(manifests, DEPLOYED[deployed], exported)


def test_every_check_finds_something(exported):
    found: set[str] = set()
    for deployed, _, mutate in ALL:
        manifests = render(*deployed)
        mutate(manifests)
        found |= checks.failures(manifests, DEPLOYED[deployed], exported).keys()
    assert found == {check.__name__ for check in (*checks.CHECKS, checks.check_cards, checks.check_metrics)}
