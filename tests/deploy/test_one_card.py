"""The overlay one-card is the measured run: its settings those of the bench, its streams those of the documents."""

from __future__ import annotations

import dataclasses
import os
import re

import chain_setup
import pytest
from chain_layout import Counts

from services.runtime.settings import read
from support.manifests.overlays import ONE_CARD
from support.manifests.pods import quantity
from support.manifests.rendered import ROOT, SERVICES, SETTINGS, container, deployment, pod, render, settings_of

# What the bench says outright and `auto` finds on a card; and the key, which is a Secret.
SAID_OTHERWISE = {"CSM_BACKBONE_RUNNER", "CSM_BACKBONE_DTYPE", "CSM_WATERMARK_KEY"}
MEASURED = (ROOT / "docs/performance.md").read_text()


@pytest.fixture
def bench(monkeypatch) -> tuple[dict[str, str], Counts]:
    """What the bench sets for its services with its own defaults, and how many of each it starts."""
    monkeypatch.setattr(os, "environ", {})
    counts = Counts.read()
    chain_setup.configure("csm-1b", counts)
    return dict(os.environ), counts


def test_settings_are_those_of_the_bench(bench):
    wanted, counts = bench
    manifests = render(*ONE_CARD)
    found = set()
    for service in SERVICES:
        assert deployment(manifests, service)["spec"]["replicas"] == counts.of[service]
        ours, theirs = settings_of(manifests, service), read(SETTINGS[service], wanted)
        for field in dataclasses.fields(ours):
            if (name := field.metadata["env"]) in wanted and name not in SAID_OTHERWISE:
                found.add(name)
                assert getattr(ours, field.name) == getattr(theirs, field.name), name
    assert found == {name for name in wanted if name.startswith("CSM_")} - SAID_OTHERWISE


def test_the_set_of_a_card_is_one_node_and_fits_the_machine_that_was_measured():
    manifests = render(*ONE_CARD)
    (processors,) = re.findall(r"One H100 with (\d+) processors", MEASURED)
    asked = 0.0
    for service in SERVICES:
        requests = container(deployment(manifests, service))["resources"]["requests"]
        asked += quantity(requests["cpu"]) * deployment(manifests, service)["spec"]["replicas"]
    assert asked <= int(processors)
    for stage in ("codec", "watermark"):
        (term,) = pod(deployment(manifests, stage))["affinity"]["podAffinity"][
            "requiredDuringSchedulingIgnoredDuringExecution"
        ]
        assert term["topologyKey"] == "kubernetes.io/hostname"
        backbone = deployment(manifests, "backbone")["spec"]["template"]["metadata"]["labels"]
        assert term["labelSelector"]["matchLabels"].items() <= backbone.items()


def test_it_has_slots_for_the_streams_of_the_documents():
    (most,) = re.findall(r"^\| streams \|.* ([\d,]+) \|$", MEASURED, re.MULTILINE)
    streams = int(most.replace(",", ""))
    manifests = render(*ONE_CARD)
    assert streams == 1000
    assert streams <= settings_of(manifests, "backbone").slots
    assert streams <= settings_of(manifests, "codec").slots
    assert streams <= settings_of(manifests, "watermark").streams
    assert streams <= settings_of(manifests, "gateway").max_streams
