"""deploy/compose.yaml against the code: its settings, its addresses, who can be reached from where."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from gateway.http.config import HttpSettings
from models.bundle import known_bundles
from services.runtime.settings import read
from support.manifests.rendered import DEPLOY, SERVICES, SETTINGS, port_of
from support.telemetry.prometheus import PROMTOOL

FILE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
OTHERS = {"HF_HOME", "HF_HUB_OFFLINE", "HF_TOKEN", "OTEL_EXPORTER_OTLP_ENDPOINT"}


def of_profile(profile: str) -> dict[str, dict]:
    """Service → its definition, by the name that the others call it by."""
    found = {}
    for name, service in FILE["services"].items():
        if profile in service["profiles"]:
            aliases = service.get("networks", {}).get("default", {}).get("aliases", [name])
            found[aliases[0]] = service
    return found


def environ(service: dict) -> dict[str, str]:
    """Its variables as they are without any of the caller's; CSM_MODEL as the file's head says for profile gpu."""
    return {
        key: value
        for key, text in service.get("environment", {}).items()
        if (value := re.sub(r"\$\{\w+:-(.*?)\}", r"\1", str(text)))
    }


@pytest.mark.parametrize("profile", ["cpu", "gpu"])
def test_each_profile_is_a_whole_chain_of_our_settings(profile):
    services = of_profile(profile)
    weights = services.pop("weights" if profile == "cpu" else "weights-gpu")
    assert services.keys() == {*SERVICES, "http"}
    assert environ(weights)["CSM_MODEL"] in known_bundles()
    shared = {field.metadata["env"] for kind in SETTINGS.values() for field in dataclasses.fields(kind)}
    read_settings = {}
    for name, service in services.items():
        kind = SETTINGS.get(name, HttpSettings)
        values = environ(service)
        known = {field.metadata["env"] for field in dataclasses.fields(kind)}
        assert not values.keys() - known - OTHERS - (shared if name == "http" else set()), name
        read_settings[name] = read(kind, {key: value for key, value in values.items() if key in known})
        assert read_settings[name].grace_s <= int(service["stop_grace_period"].removesuffix("s")) - 10
    gateway = read_settings["gateway"]
    for stage in SERVICES[1:]:
        assert getattr(gateway, stage) == f"{stage}:{port_of(read_settings[stage].listen)}"
        wanted = "cuda" if profile == "gpu" and stage != "tokenizer" else "cpu"
        assert read_settings[stage].device in (wanted, "auto" if wanted == "cpu" else wanted), stage
        assert ("deploy" in services[stage]) is (wanted == "cuda")
    assert read_settings["http"].gateway == f"gateway:{port_of(gateway.listen)}"


@pytest.mark.parametrize("profiles", [("cpu",), ("gpu",), ("cpu", "observe"), ("gpu", "observe")])
def test_podman_compose_takes_each_set_of_profiles(profiles):
    command = [str(Path(sys.executable).with_name("podman-compose")), "-f", str(DEPLOY / "compose.yaml")]
    command += [word for profile in profiles for word in ("--profile", profile)]
    done = subprocess.run([*command, "config"], capture_output=True, text=True)
    if done.returncode and "podman" in done.stderr and shutil.which("podman") is None:
        pytest.skip("podman is not installed, which podman-compose asks for its version")
    assert done.returncode == 0, done.stderr
    said = yaml.safe_load(done.stdout)["services"]
    wanted = {name for name, service in FILE["services"].items() if set(service["profiles"]) & set(profiles)}
    assert said.keys() == wanted and all(said[name]["image"] for name in wanted)


def test_only_loopback_is_published_and_containers_may_little():
    for name, service in FILE["services"].items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        if "observe" in service["profiles"]:
            continue
        assert service["read_only"] is True and service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert name.startswith("weights") or service["user"] == "10001:10001", name


def test_prometheus_asks_every_service_by_its_name():
    asked = {
        target
        for job in yaml.safe_load((DEPLOY / "compose/prometheus.yaml").read_text())["scrape_configs"]
        for entry in job["static_configs"]
        for target in entry["targets"]
    }
    assert asked == {f"{name}:9464" for name in (*SERVICES, "http")}


def test_what_is_mounted_is_there():
    for service in FILE["services"].values():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert (DEPLOY / source).exists() if source.startswith(".") else source in FILE["volumes"], volume


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian: apt-get install prometheus)")
def test_promtool_takes_the_configuration(tmp_path):
    config = yaml.safe_load((DEPLOY / "compose/prometheus.yaml").read_text())
    config["rule_files"] = [str(DEPLOY / "alerts/csm.rules.yaml")]
    (tmp_path / "prometheus.yaml").write_text(yaml.safe_dump(config))
    done = subprocess.run([PROMTOOL, "check", "config", tmp_path / "prometheus.yaml"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
