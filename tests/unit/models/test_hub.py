"""A server that speaks as the model hub does, and sends one wrong byte: nothing of it comes to the cache."""

import hashlib
import http.server
import os
import subprocess
import sys
import threading

import pytest

from models.bundle import load_bundle

LARGE = "model.safetensors"  # named by its SHA-256, as files in large storage are; the others as git names them


class Hub(http.server.ThreadingHTTPServer):
    """Files of csm-1b, made up. wrong: path whose content has one other byte than its digest says."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answers)
        self.files, self.wrong, self.sent = {}, "", []
        bundle = load_bundle("csm-1b")
        for part in ("generator", "text_tokenizer", "mimi", "watermark"):
            source = getattr(bundle, part).sources[0]
            weights = source.get("weights", [])
            names = [v for k, v in source.items() if k not in ("repo", "revision", "layout", "weights")]
            for name in [*names, *(weights if isinstance(weights, list) else [weights])]:
                self.files[f"/{source['repo']}/resolve/{source['revision']}/{name}"] = name.encode() * 1000

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def path_of(self, name: str) -> str:
        (path,) = (path for path in self.files if path.endswith(f"/{name}"))
        return path


class Answers(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_HEAD(self):
        if (content := self.server.files.get(self.path)) is None:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        digest = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        if self.path.endswith(LARGE):
            digest = hashlib.sha256(content).hexdigest()
        self.send_response(200)
        self.send_header("ETag", f'"{digest}"')
        self.send_header("X-Repo-Commit", self.path.split("/")[4])
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()

    def do_GET(self):
        self.do_HEAD()
        content = bytearray(self.server.files.get(self.path, b""))
        self.server.sent.append(self.path)
        if self.path == self.server.wrong:
            content[len(content) // 2] ^= 1
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub():
    with Hub() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def fetch(hub, folder):
    environ = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environ |= {"CSM_MODEL": "csm-1b", "HF_ENDPOINT": hub.url, "NO_PROXY": "127.0.0.1"}
    command = [sys.executable, "-m", "models.fetch", str(folder)]
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("name", [LARGE, "config.json"])
def test_one_wrong_byte_ends_the_run_in_which_it_came(hub, tmp_path, name):
    hub.wrong = hub.path_of(name)
    done = fetch(hub, tmp_path)
    (line,) = done.stderr.strip().splitlines()
    assert done.returncode == 1 and "try again" in line
    assert line.startswith("models.fetch: generator: ") and f"sesame/csm-1b:{name}" in line
    assert "the download's SHA-256 is " in line
    cache = tmp_path / "hub/hub"
    assert not [path for path in cache.rglob("*") if path.name == name]
    assert hub.files[hub.wrong] not in [path.read_bytes() for path in cache.rglob("*") if path.is_file()]
    assert not (cache / ".incoming").exists()

    hub.wrong = ""
    assert "csm-1b: 8 files" in fetch(hub, tmp_path).stdout
    found = {path.name: path.read_bytes() for path in cache.glob("*/snapshots/**/*") if path.is_file()}
    assert found == {path.rpartition("/")[2]: content for path, content in hub.files.items()}
    assert not (cache / ".incoming").exists()
    sent = len(hub.sent)
    assert fetch(hub, tmp_path).returncode == 0 and len(hub.sent) == sent  # what is there is not fetched again
