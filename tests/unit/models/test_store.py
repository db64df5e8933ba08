"""Weights through an object store that speaks S3's own protocol, and what a damaged or a forged set comes to."""

from __future__ import annotations

import http.server
import os
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import pytest

from models import store
from models.bundle import load_bundle
from models.files import ModelError
from models.store import StoreError, read_sums
from support.s3 import empty_bucket, s3_server

KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture(scope="module")
def endpoint():
    with s3_server() as url:
        yield url


@pytest.fixture
def s3(endpoint):
    """A client with an empty bucket, and the environment of a pod that may use it."""
    client, bucket = empty_bucket(endpoint)
    return client, bucket, KEYS | {"AWS_ENDPOINT_URL": endpoint}


def fetch(folder: Path, environ: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "models.fetch", str(folder), *arguments]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "AWS_"))}
    return subprocess.run(command, env=inherited | environ, capture_output=True, text=True, timeout=120)


def hub_cache(home: Path) -> dict[str, bytes]:
    """The hub's own cache with the files that csm-1b names. Path below home → content."""
    bundle, files = load_bundle("csm-1b"), {}
    for part in ("generator", "text_tokenizer", "mimi", "watermark"):
        source = getattr(bundle, part).sources[0]
        names = [value for key, value in source.items() if key not in ("repo", "revision", "layout", "weights")]
        weights = source.get("weights", [])
        folder = Path("hub") / f"models--{source['repo'].replace('/', '--')}" / "snapshots" / source["revision"]
        for name in [*names, *(weights if isinstance(weights, list) else [weights])]:
            (home / folder / name).parent.mkdir(parents=True, exist_ok=True)
            (home / folder / name).write_bytes(name.encode())
            files[str(folder / name)] = name.encode()
    return files


def test_a_set_comes_back_whole_and_what_is_there_is_not_fetched_again(s3, tmp_path, monkeypatch):
    client, bucket, environ = s3
    hub = hub_cache(tmp_path / "hub")
    published = fetch(
        tmp_path / "one",
        environ | {"CSM_MODEL": "csm-1b", "HF_HUB_CACHE": str(tmp_path / "hub/hub"), "HF_HUB_OFFLINE": "1"},
        "--publish",
        f"s3://{bucket}/csm-1b/1",
    )
    assert published.returncode == 0, published.stderr
    pin = published.stdout.strip().rpartition("CSM_WEIGHTS_SHA256=")[2]

    node = tmp_path / "node"
    pod = environ | {"CSM_WEIGHTS_URL": f"s3://{bucket}/csm-1b/1", "CSM_WEIGHTS_SHA256": pin}
    first = fetch(node, pod)
    assert "8 files" in first.stdout, first.stderr
    for name, content in hub.items():
        assert (node / "hub" / name).read_bytes() == content
    # Pods without a network find them, and people can check them.
    offline = fetch(tmp_path / "two", {"CSM_MODEL": "csm-1b", "HF_HOME": str(node / "hub"), "HF_HUB_OFFLINE": "1"})
    assert "csm-1b: 8 files" in offline.stdout, offline.stderr
    assert subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=node).returncode == 0

    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    url = pod["CSM_WEIGHTS_URL"]
    damaged, *others = [node / "hub" / name for name in hub]
    times = {path: path.stat().st_mtime_ns for path in others}
    damaged.write_bytes(b"")
    store.download(url, node, pinned=pin)
    assert damaged.read_bytes() == hub[str(damaged.relative_to(node / "hub"))]
    assert {path: path.stat().st_mtime_ns for path in others} == times

    # Nothing is taken that is not what was published.
    client.put_object(Bucket=bucket, Key=f"csm-1b/1/hub/{next(iter(hub))}", Body=b"another")
    damaged.unlink()
    with pytest.raises(StoreError, match="its digest is"):
        store.download(url, node, pinned=pin)
    assert not damaged.exists() and not list(node.rglob("*.partial"))
    client.put_object(Bucket=bucket, Key="csm-1b/1/SHA256SUMS", Body=b"0" * 64 + b"  hub/x\n")
    with pytest.raises(StoreError, match=f"CSM_WEIGHTS_SHA256 says {pin}"):
        store.download(url, node, pinned=pin)


def test_the_bundled_model_goes_through_a_store_to_where_services_read_it(tmp_path):
    url = f"file://{tmp_path}/store"
    published = fetch(tmp_path / "one", {"CSM_MODEL": "embedded"}, "--publish", url)
    assert published.returncode == 0, published.stderr
    assert len(store.download(url, tmp_path / "two")) == 10
    copy = load_bundle(str(tmp_path / "two/embedded"))
    assert copy.mimi.resolve()["weights"].read_bytes() == load_bundle("embedded").mimi.resolve()["weights"].read_bytes()


def test_versions_of_a_set_have_folders_of_their_own_and_share_the_hubs_files(tmp_path):
    """CSM_MODEL=FOLDER/<version>/<name>: what is not of the hub's cache goes below FOLDER/<version>."""
    files = {name: tmp_path / name.replace("/", "-") for name in ("mine/bundle.toml", "hub/hub/blob")}
    for content in (b"1", b"2"):
        files["mine/bundle.toml"].write_bytes(content)
        files["hub/hub/blob"].write_bytes(b"shared")
        store.publish(files, f"file://{tmp_path}/store/{content.decode()}")
    node = tmp_path / "node"
    for version in "12":
        environ = {"CSM_WEIGHTS_URL": f"file://{tmp_path}/store/{version}", "CSM_MODEL": f"{node}/{version}/mine"}
        assert "2 files" in fetch(node, environ).stdout
    assert [(node / version / "mine/bundle.toml").read_bytes() for version in "12"] == [b"1", b"2"]
    assert (node / "hub/hub/blob").read_bytes() == b"shared" and not list(node.glob("?/hub"))
    refused = fetch(node, environ | {"CSM_MODEL": f"{node}/1/mine"})
    assert refused.returncode == 1 and "holds another version" in refused.stderr
    assert (node / "1/mine/bundle.toml").read_bytes() == b"1"


class Proxy(http.server.BaseHTTPRequestHandler):
    """What a company has: a plain HTTP proxy. It notes what it was asked for."""

    asked: list[str] = []  # noqa: RUF012

    def do_GET(self) -> None:
        self.asked.append(self.path)
        headers = {name: value for name, value in self.headers.items() if name.lower() != "proxy-connection"}
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        request = urllib.request.Request(self.path, headers=headers, method=self.command)
        with direct.open(request, timeout=10) as answer:
            body = answer.read()
            self.send_response(answer.status)
            for name in ("Content-Type", "Content-Length", "ETag", "Last-Modified"):
                if name in answer.headers:
                    self.send_header(name, answer.headers[name])
        self.end_headers()
        self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass


def test_a_proxy_is_used_for_the_download(s3, tmp_path):
    client, bucket, environ = s3
    data = tmp_path / "data"
    data.write_bytes(b"weights")
    client.put_object(Bucket=bucket, Key="data", Body=b"weights")
    client.put_object(Bucket=bucket, Key="SHA256SUMS", Body=f"{store.sha256(data)}  data\n".encode())
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{proxy.server_address[1]}"
        done = fetch(
            tmp_path / "node",
            environ | {"CSM_WEIGHTS_URL": f"s3://{bucket}", "HTTP_PROXY": address, "NO_PROXY": "", "no_proxy": ""},
        )
        proxy.shutdown()
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "node/data").read_bytes() == b"weights"
    assert {path.rpartition("/")[2] for path in Proxy.asked} >= {"SHA256SUMS", "data"}


def test_a_place_without_a_set_says_what_to_do(tmp_path):
    with pytest.raises(StoreError, match="no SHA256SUMS; publish the bundle there first"):
        store.download(f"file://{tmp_path}/empty", tmp_path)
    with pytest.raises(ModelError, match="carrier"):
        store.download("carrier://pigeon", tmp_path)


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "hub/../../x", ".", "./", "x\0y"])
def test_no_name_leads_out_of_the_folder(name):
    with pytest.raises(StoreError, match="line 2 is not"):
        read_sums(f"{'0' * 64}  good\n{'0' * 64}  {name}\n".encode(), "SHA256SUMS")
    with pytest.raises(StoreError, match="names no file"):
        read_sums(b"", "SHA256SUMS")
