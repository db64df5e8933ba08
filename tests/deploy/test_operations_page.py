"""The operations pages name what there is: components, files, make targets, settings, numbers of the manifests."""

from __future__ import annotations

import dataclasses
import re

import pytest
import yaml

from support.manifests.rendered import (
    DEPLOY,
    ROOT,
    SERVICES,
    SETTINGS,
    container,
    deployment,
    one,
    pod,
    render,
    settings_of,
)

FOLDER = ROOT / "docs" / "operations"
PAGES = {path: path.read_text() for path in [*sorted(FOLDER.glob("*.md")), DEPLOY / "README.md"]}
PAGE = "\n".join(PAGES.values())
OPERATIONS = "\n".join(text for path, text in PAGES.items() if path.name != "alerts.md")


def test_every_component_has_a_row_and_every_row_a_component():
    table = OPERATIONS.split("## Components")[1].split("## ")[0]
    rows = {
        name for line in re.findall(r"^\| (`.+?) \|", table, re.MULTILINE) for name in re.findall(r"`([\w-]+)`", line)
    }
    assert rows == {path.name for path in (DEPLOY / "components").iterdir()}


def test_files_it_names_are_there():
    for name in re.findall(r"`([\w./-]+/[\w./-]*)`", OPERATIONS):
        assert (DEPLOY / name).exists() or (ROOT / name).exists(), name
    for path, text in PAGES.items():
        for target in re.findall(r"\]\(([^)#]+)", text):
            assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_commands_it_names_are_there():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([\w-]+)", OPERATIONS, re.MULTILINE))
    assert {"images", "deploy-test"} <= named <= targets


def test_settings_it_names_are_settings():
    known = {field.metadata["env"] for cls in SETTINGS.values() for field in dataclasses.fields(cls)}
    known |= set(re.findall(r'"(CSM_\w+)"', (ROOT / "models/fetch.py").read_text()))  # the Job's own
    assert set(re.findall(r"\bCSM_\w+", OPERATIONS)) <= known


@pytest.mark.parametrize("overlay", ["cpu-dev", "gpu", "one-card"])
def test_the_seconds_of_a_drain_are_those_of_the_manifests(overlay):
    manifests = render(f"overlays/{overlay}")
    said = {name: float(value) for name, value in re.findall(r"`(\w+)` \((\d+) s\)", OPERATIONS)}
    assert said["CSM_MAX_REQUEST_S"] == settings_of(manifests, "gateway").max_request_s
    (pre_stop_s,) = re.findall(r"`preStop` waits (\d+) s", OPERATIONS)
    for service in SERVICES:
        settings = settings_of(manifests, service)
        assert (said["CSM_DRAIN_S"], said["CSM_GRACE_S"]) == (settings.drain_s, settings.grace_s)
        spec = pod(deployment(manifests, service))
        assert said["terminationGracePeriodSeconds"] == spec["terminationGracePeriodSeconds"]
        assert int(pre_stop_s) == container(deployment(manifests, service))["lifecycle"]["preStop"]["sleep"]["seconds"]


def test_the_way_to_runbooks_that_a_pager_can_open_leads_there():
    (recipe,) = (text for text in re.findall(r"```yaml\n(.+?)```", PAGE, re.DOTALL) if "runbook_url" in text)
    manifests = render("overlays/gpu", ("prometheus-operator",), recipe)
    (page,) = re.findall(r"page=(https://[^\]]+)\]", recipe)
    rules = yaml.safe_load((DEPLOY / "alerts/csm.rules.yaml").read_text())
    for group in rules["groups"]:
        for rule in group["rules"]:
            rule["annotations"]["runbook_url"] = f"{page}#{rule['alert'].lower()}"
    assert one(manifests, "PrometheusRule", "csm")["spec"] == rules
    assert "runbooks" not in [m["metadata"]["name"] for m in manifests]


def test_the_way_to_a_local_disk_leaves_a_claim_that_can_be_bound():
    (recipe,) = (text for text in re.findall(r"```yaml\n(.+?)```", PAGE, re.DOTALL) if "local-path" in text)
    manifests = render("overlays/one-card", ("weights-node",), recipe)
    assert not [m for m in manifests if m["kind"] == "PersistentVolume"]
    claim = one(manifests, "PersistentVolumeClaim", "csm-weights")["spec"]
    assert "volumeName" not in claim and claim["storageClassName"] == "local-path"
    assert claim["accessModes"] == ["ReadWriteOnce"]


def test_the_way_to_name_a_version_does():
    (recipe,) = (
        text for text in re.findall(r"```yaml\n(.+?)```", PAGE, re.DOTALL) if "CSM_MODEL=/models/0.3.0/embedded" in text
    )
    manifests = render("overlays/gpu", ("weights-node",), recipe)
    for service in SERVICES:
        assert settings_of(manifests, service).model == "/models/0.3.0/embedded"


def test_the_calls_that_alerts_count_are_those_that_the_page_names():
    rules = yaml.safe_load((DEPLOY / "alerts/csm.rules.yaml").read_text())["groups"]
    counted = {
        methods
        for group in rules
        for rule in group["rules"]
        if rule["alert"] in ("CsmRequestsFail", "CsmRequestsRefused")
        for methods in re.findall(r'rpc_method=~"([^"]+)"', rule["expr"])
    }
    assert counted == {
        "csm.speech.v1.SpeechService/(StreamSynthesize|Synthesize|Converse)"
        "|nvidia.riva.tts.RivaSpeechSynthesis/(Synthesize|SynthesizeOnline)"
    }
    assert "count `Synthesize`, `StreamSynthesize`, `Converse` and Riva's two methods. They do not" in PAGE
