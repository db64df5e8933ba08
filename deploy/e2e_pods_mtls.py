"""The second half of `make deploy-test`: components mtls and tokens as real pods, with certificates made here.

    .venv/bin/python deploy/e2e_pods_mtls.py

Needs the images that e2e_pods.py builds. A sentence goes through with a token; without one, and without the
authority, it does not; the codec accepts the gateway's certificate and no other.
"""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import yaml
from e2e_pods import ROOT, probes_pass, render, until
from pods import Manifest, containers_conf, play_all, say, show_logs, take_down

sys.path.append(str(ROOT / "tests"))
from support.authority import Authority

SERVICES = ("gateway", "tokenizer", "backbone", "codec", "watermark")
GATEWAY = "csm-gateway-pod-0-gateway"
FOLDER = ROOT / "out/deploy/mtls"
OVERLAY = {
    "resources": ["../../../deploy/base"],
    "components": ["../../../deploy/components/mtls", "../../../deploy/components/tokens"],
    "images": [
        {"name": f"csm-{name}", "newName": f"localhost/csm-{name}", "newTag": "dev"} for name in (*SERVICES, "weights")
    ],
}
# What a pod that got past the NetworkPolicies would try, and what the gateway does.
CALL_CODEC = """
import grpc
from csm.codec.v1 import codec_pb2, codec_pb2_grpc
ca, cert, key = (open(f"/etc/csm/tls/{name}", "rb").read() for name in ("ca.crt", "tls.crt", "tls.key"))
for credentials in (grpc.ssl_channel_credentials(ca), grpc.ssl_channel_credentials(ca, key, cert)):
    with grpc.secure_channel("csm-codec:50053", credentials) as channel:
        try:
            codec_pb2_grpc.CodecServiceStub(channel).GetModelInfo(codec_pb2.GetModelInfoRequest(), timeout=10)
            print("OK")
        except grpc.RpcError as error:
            print(error.code().name)
"""


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "kustomization.yaml").write_text(yaml.safe_dump(OVERLAY))
    token = secrets.token_hex(32)
    manifests = [*made_secrets(token), *render(FOLDER)]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CONTAINERS_CONF"] = str(containers_conf(Path(folder)))
        try:
            say("pods with mtls and tokens")
            play_all(manifests, Path(folder))
            for deployment in (m for m in manifests if m["kind"] == "Deployment"):
                until(partial(probes_pass, deployment), f"{deployment['metadata']['name']} is ready")
            look(token)
        except BaseException:
            show_logs()
            raise
        finally:
            take_down(manifests)


def look(token: str) -> None:
    authority = ("--tls-ca", "/etc/csm/tls/ca.crt")
    for what, environ, options, code in (
        ("token and authority", {"CSM_TOKEN": token}, authority, 0),
        ("another token", {"CSM_TOKEN": secrets.token_hex(32)}, authority, 8),
        ("no token", {}, authority, 8),
        ("no authority", {"CSM_TOKEN": token}, (), 5),
    ):
        command = [
            "csm",
            "say",
            "Signed and sealed.",
            "-o",
            "/tmp/said.wav",
            "--address",
            "csm-gateway:50050",
            *options,
        ]
        done = inside(command, environ)
        said = (done.stdout + done.stderr).strip()
        if done.returncode != code:
            raise RuntimeError(f"{what}: csm say ended with {done.returncode}, not {code}: {said}")
        say(f"{what}: {said.splitlines()[0][:100]}")
    answers = inside(["python", "-c", CALL_CODEC], {}).stdout.split()
    if answers != ["UNAVAILABLE", "OK"]:
        raise RuntimeError(f"the codec, called without a certificate and with the gateway's: {answers}")
    say("the codec hangs up on a caller without the gateway's certificate")


def inside(command: list[str], environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """In the gateway's container: it has the csm command, the authority, and the names of the others."""
    options = [f"--env={name}={value}" for name, value in environ.items()]
    return subprocess.run(["podman", "exec", *options, GATEWAY, *command], capture_output=True, text=True, timeout=120)


def made_secrets(token: str) -> list[Manifest]:
    authority = Authority()
    files: dict[str, dict[str, bytes]] = {"csm-watermark-key": {"key": b"7a1c94e35b"}}
    files["csm-tokens"] = {
        "tokens.toml": f'[test]\nsha256 = "{hashlib.sha256(token.encode()).hexdigest()}"\n'
        "max_streams = 2\ncharacters_per_minute = 5000\n".encode()
    }
    for name in SERVICES:
        issued = authority.issue(f"csm-{name}")
        files[f"csm-{name}-tls"] = {"tls.crt": issued.cert, "tls.key": issued.key, "ca.crt": authority.pem}
    return [
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name},
            "data": {key: base64.b64encode(value).decode() for key, value in content.items()},
        }
        for name, content in files.items()
    ]


if __name__ == "__main__":
    main()
