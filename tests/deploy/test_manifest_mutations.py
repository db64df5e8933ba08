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
from support.manifest_mutations.weights import DRA as DRA_MUTATIONS
from support.manifest_mutations.weights import NODE as NODE_MUTATIONS
from support.manifests import checks
from support.manifests.overlays import DEPLOYED, DEV, DRA, FULL, KEDA, NODE
from support.manifests.rendered import render

ALL = [
    *(
        (FULL, name, mutate)
        for mutations in (PODS, NETWORK, SCALING, SETTINGS, HTTP)
        for name, mutate in mutations.items()
    ),
    *((KEDA, name, mutate) for name, mutate in KEDA_MUTATIONS.items()),
    *((DEV, name, mutate) for name, mutate in DEV_MUTATIONS.items()),
    *((NODE, name, mutate) for name, mutate in NODE_MUTATIONS.items()),
    *((DRA, name, mutate) for name, mutate in DRA_MUTATIONS.items()),
]


FOUND: dict[tuple, frozenset[str]] = {}


def objections(deployed, name, mutate, exported) -> frozenset[str]:
    """Names of the checks that object. Each mutation is looked at once for both tests."""
    if (deployed, name) not in FOUND:
        manifests = render(*deployed)
        mutate(manifests)
        assert manifests != render(*deployed)
        FOUND[deployed, name] = frozenset(checks.failures(manifests, DEPLOYED[deployed], exported))
    return FOUND[deployed, name]


@pytest.mark.parametrize(("deployed", "name", "mutate"), [pytest.param(*each, id=each[1]) for each in ALL])
def test_a_mutated_manifest_is_found_out(deployed, name, mutate, exported):
    assert objections(deployed, name, mutate, exported)


def test_every_check_finds_something(exported):
    found = {check for each in ALL for check in objections(*each, exported)}
    assert found == {check.__name__ for check in (*checks.CHECKS, checks.check_cards, checks.check_metrics)}
