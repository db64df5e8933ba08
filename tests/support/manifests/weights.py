"""Where the weights come from and who mounts them. For checks.py."""

from __future__ import annotations

import json
import re
from pathlib import PurePosixPath

from models.bundle import known_bundles, load_bundle
from support.manifests.pods import quantity
from support.manifests.rendered import (
    SERVICES,
    Manifests,
    container,
    deployment,
    environ,
    environ_of,
    fetching,
    of_kind,
    one,
    pod,
)


def check_weights(manifests: Manifests) -> None:
    """One place, filled by the Job or by every pod before it starts, read by the services at the same path."""
    fetchers = fetching(manifests)
    names = {m["metadata"]["name"] for m, _ in fetchers}
    assert names in ({"csm-weights"}, {f"csm-{service}" for service in SERVICES}), names
    assert len({json.dumps(spec, sort_keys=True) for _, spec in fetchers}) == 1, "they fetch different things"
    spec = fetchers[0][1]
    fetch = environ_of(manifests, spec)
    assert "HF_HUB_OFFLINE" not in fetch
    assert spec["args"] == ["/models"]
    place = PurePosixPath(fetch["CSM_MODEL"])
    assert place.name in known_bundles(), "no image has it"
    bundle = load_bundle(place.name)
    if place.is_absolute():  # /models/VERSION/NAME: of one release alone, so that pods that run keep their files
        assert place.parts[:2] == ("/", "models") and len(place.parts) == 4, "releases share a folder"
    if not place.is_absolute() and "CSM_WEIGHTS_URL" not in fetch:  # files of the hub lie below their commits
        assert all("repo" in source for source in bundle.mimi.sources), "not in the services' images"
    for service in SERVICES:
        values = environ(manifests, deployment(manifests, service))
        assert values["HF_HUB_OFFLINE"] == "1" and values["HF_HOME"] == fetch["HF_HOME"]
        assert values["CSM_MODEL"] == fetch["CSM_MODEL"], "it reads another place than is filled"
        named = [each["configMapRef"]["name"] for each in container(deployment(manifests, service))["envFrom"]]
        having = [name for name in named if "CSM_MODEL" in one(manifests, "ConfigMap", name)["data"]]
        assert len(having) == 1, "of two, one does nothing"
    for m, each in [
        (deployment(manifests, name), container(deployment(manifests, name))) for name in SERVICES
    ] + fetchers:
        mounts = {mount["mountPath"]: mount["name"] for mount in each["volumeMounts"]}
        (volume,) = (v for v in pod(m)["volumes"] if v["name"] == mounts["/models"])
        if "emptyDir" in volume:
            assert len(fetchers) > 1 and quantity(volume["emptyDir"]["sizeLimit"]) >= 10e9, (
                "a pod's own folder is empty"
            )
        else:
            own = {} if m["metadata"]["name"] in names else {"readOnly": True}
            assert {"readOnly": False} | volume["persistentVolumeClaim"] == {
                "claimName": "csm-weights",
                "readOnly": False,
            } | own
    for volume in of_kind(manifests, "PersistentVolume"):
        assert len(fetchers) > 1, "a node's folder that no pod of the node fills"
        claim = one(manifests, "PersistentVolumeClaim", volume["metadata"]["name"])["spec"]
        assert claim["volumeName"] == volume["metadata"]["name"]
        assert claim["storageClassName"] == volume["spec"]["storageClassName"]
        assert set(claim["accessModes"]) <= set(volume["spec"]["accessModes"])
        assert quantity(claim["resources"]["requests"]["storage"]) <= quantity(volume["spec"]["capacity"]["storage"])
        assert volume["spec"]["hostPath"]["type"] == "Directory", "kubelet would make it root's"
    if "CSM_WEIGHTS_URL" in fetch:
        assert re.match(r"(s3|gs)://[a-z0-9]", fetch["CSM_WEIGHTS_URL"])
        credentials, _, file = fetch["AWS_SHARED_CREDENTIALS_FILE"].rpartition("/")
        for m, each in fetchers:
            (mount,) = (x for x in each["volumeMounts"] if x["mountPath"] == credentials)
            (volume,) = (v for v in pod(m)["volumes"] if v["name"] == mount["name"])
            assert volume["secret"]["secretName"] == "csm-store" and file == "credentials"
