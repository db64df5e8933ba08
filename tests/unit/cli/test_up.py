"""Processes that start, die, hang and stop under the supervisor; ports; the note for other terminals."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from csm_client.exceptions import Unavailable

from gateway.cli import state
from gateway.cli.ports import consecutive_ports, free_ports
from gateway.cli.supervisor import Child, ChildDied, Supervisor, _dies_with_us
from services.runtime.settings import StartError

# A server that says SERVING, told by its environment what else to do.
SERVER = textwrap.dedent("""
    import os, signal, sys, threading
    from concurrent import futures
    import grpc
    from grpc_health.v1 import health, health_pb2, health_pb2_grpc
    stop = threading.Event()
    ignore = os.environ.get("TEST_IGNORES") == "SIGTERM"
    signal.signal(signal.SIGTERM, signal.SIG_IGN if ignore else lambda *_: stop.set())
    server = grpc.server(futures.ThreadPoolExecutor(2))
    servicer = health.HealthServicer()
    servicer.set("readiness", getattr(health_pb2.HealthCheckResponse, os.environ.get("TEST_SAYS", "SERVING")))
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    server.add_insecure_port(os.environ["TEST_LISTEN"])
    server.start()
    print("serves", flush=True)
    while not stop.wait(0.05):
        pass
    server.stop(0)
    sys.exit(int(os.environ.get("TEST_EXIT", "0")))
""")


@pytest.fixture
def address():
    return f"127.0.0.1:{free_ports()['gateway']}"


def server(name, address, **env):
    return Child(name, (sys.executable, "-c", SERVER), address, {"TEST_LISTEN": address, **env})


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_all_are_ready_and_all_stop(tmp_path):
    ports = free_ports()
    children = [server(name, f"127.0.0.1:{ports[name]}") for name in ("codec", "backbone")]
    ready = []
    async with Supervisor(children, tmp_path) as supervisor:
        await supervisor.wait_ready(30, lambda child, took_s: ready.append(child.name))
        assert sorted(ready) == ["backbone", "codec"]
        pids = [process.pid for process in supervisor._processes.values()]
        assert await supervisor.stop() == {"codec": 0, "backbone": 0}
    assert not any(is_alive(pid) for pid in pids)
    assert supervisor.log("codec").read_text() == "serves\n"


async def test_a_long_wait_is_not_silent(tmp_path):
    ports = free_ports()
    children = [
        server("codec", f"127.0.0.1:{ports['codec']}"),
        server("backbone", f"127.0.0.1:{ports['backbone']}", TEST_SAYS="NOT_SERVING"),
    ]
    reported = []
    async with Supervisor(children, tmp_path) as supervisor:
        with pytest.raises(Unavailable, match="NOT_SERVING"):
            await supervisor.wait_ready(
                5, lambda child, took_s: None, lambda names, waited_s: reported.append(list(names)), report_s=0.5
            )
    assert reported[0] in (["codec", "backbone"], ["backbone"]) and reported[-1] == ["backbone"]


async def test_one_that_cannot_start_is_named_with_its_last_words(tmp_path, address):
    code = "import sys; print('\\n'.join(f'line {n}' for n in range(99))); sys.exit('no such bundle')"
    broken = Child("backbone", (sys.executable, "-c", code), address)
    slow = Child("codec", (sys.executable, "-c", "import time; time.sleep(600)"), address)
    async with Supervisor([slow, broken], tmp_path) as supervisor:
        with pytest.raises(ChildDied) as caught:
            await supervisor.wait_ready(30, print)
        pid = supervisor._processes["codec"].pid
    assert caught.value.code == 1
    text = str(caught.value)
    assert text.startswith("backbone ended with exit code 1") and "no such bundle" in text
    assert "line 98" in text and "line 50" not in text
    assert not is_alive(pid), "the others are stopped"


async def test_one_that_dies_later_is_noticed(tmp_path, address):
    async with Supervisor([server("codec", address)], tmp_path) as supervisor:
        await supervisor.wait_ready(30, lambda child, took_s: None)
        supervisor._processes["codec"].send_signal(signal.SIGKILL)
        with pytest.raises(ChildDied, match="codec ended by SIGKILL"):
            await asyncio.wait_for(supervisor.wait_died(), 10)


async def test_one_that_never_gets_ready_is_named(tmp_path, address):
    async with Supervisor([server("gateway", address, TEST_SAYS="NOT_SERVING")], tmp_path) as supervisor:
        async with asyncio.timeout(60):  # on a busy machine it may take a while to say anything at all
            while "serves" not in supervisor.log("gateway").read_text():
                await asyncio.sleep(0.01)
        with pytest.raises(Unavailable, match=r"gateway .* not ready after 3 s: .*NOT_SERVING"):
            await supervisor.wait_ready(3, print)


async def test_one_that_ignores_sigterm_is_killed(tmp_path, address):
    stubborn = server("codec", address, TEST_IGNORES="SIGTERM")
    async with Supervisor([stubborn], tmp_path, stop_s=0.5) as supervisor:
        await supervisor.wait_ready(30, lambda child, took_s: None)
        assert await supervisor.stop() == {"codec": -signal.SIGKILL}


async def test_who_is_cancelled_while_stopping_kills(tmp_path, address):
    stubborn = server("codec", address, TEST_IGNORES="SIGTERM")
    async with Supervisor([stubborn], tmp_path, stop_s=600) as supervisor:
        await supervisor.wait_ready(30, lambda child, took_s: None)
        stopping = asyncio.create_task(supervisor.stop())
        await asyncio.wait({stopping}, timeout=0.2)
        stopping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(stopping, 10)
        assert supervisor._processes["codec"].returncode == -signal.SIGKILL


async def test_a_program_that_is_not_there_stops_those_before_it(tmp_path, address):
    supervisor = Supervisor([server("codec", address), Child("backbone", ("/no/such/program",), address)], tmp_path)
    with pytest.raises((FileNotFoundError, ChildDied)):
        async with supervisor:
            await supervisor.wait_ready(30, lambda child, took_s: None)
    assert all(process.returncode is not None for process in supervisor._processes.values())


@pytest.mark.skipif(not _dies_with_us(), reason="setpriv is not here")
async def test_children_do_not_outlive_a_killed_supervisor(tmp_path):
    code = textwrap.dedent(f"""
        import asyncio, sys
        from pathlib import Path
        from gateway.cli.supervisor import Child, Supervisor
        async def main():
            child = Child("codec", (sys.executable, "-c", "import time; time.sleep(600)"), "127.0.0.1:1")
            async with Supervisor([child], Path({str(tmp_path)!r})) as supervisor:
                print(supervisor._processes["codec"].pid, flush=True)
                await supervisor.wait_died()
        asyncio.run(main())
    """)
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=subprocess.PIPE)
    pid = int(await process.stdout.readline())
    assert is_alive(pid)
    async with asyncio.timeout(60):  # what setpriv asks of the kernel stands once it has become the child
        while "setpriv" in _command(pid):
            await asyncio.sleep(0.01)
    process.kill()
    await process.wait()
    async with asyncio.timeout(60):
        while is_alive(pid) and "Z" not in _status(pid):
            await asyncio.sleep(0.01)


def _command(pid):
    return Path(f"/proc/{pid}/cmdline").read_text()


def _status(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "Z"


def test_ports():
    assert len(set(free_ports().values())) == 5
    assert len(set(free_ports(http=True).values())) == 6
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(StartError, match=f"port {port}, for the tokenizer"):
            consecutive_ports(port - 1)
    with pytest.raises(StartError, match="70000"):
        consecutive_ports(70_000)


def test_other_terminals_find_the_one_that_runs(tmp_path):
    assert state.find(tmp_path) is None
    ours = state.Running("127.0.0.1:5", os.getpid(), str(tmp_path))
    state.register(ours, tmp_path)
    assert state.find(tmp_path) == ours
    later = state.Running("127.0.0.1:6", os.getpid(), None)
    state.register(later, tmp_path)
    state.unregister(ours, tmp_path)
    assert state.find(tmp_path) == later
    state.unregister(later, tmp_path)
    assert state.find(tmp_path) is None
    assert not list(tmp_path.iterdir())


def test_several_have_a_place_each_and_the_first_is_found(tmp_path):
    with state.acquire_instance_dir(tmp_path) as first, state.acquire_instance_dir(tmp_path) as second:
        assert (first, second) == (tmp_path, tmp_path / "up-2")
        notes = [state.Running(f"127.0.0.1:{number}", os.getpid(), None) for number in (1, 2)]
        state.register(notes[1], second)
        assert state.find(tmp_path) == notes[1], "the first is not ready yet"
        state.register(notes[0], first)
        assert state.running(tmp_path) == notes and state.find(tmp_path) == notes[0]
        state.unregister(notes[0], first)
        assert state.running(tmp_path) == notes[1:]
    with state.acquire_instance_dir(tmp_path) as again:
        assert again == tmp_path


def test_the_claim_of_a_killed_one_is_gone_and_children_do_not_keep_it(tmp_path):
    code = textwrap.dedent(f"""
        import subprocess, sys, time
        from pathlib import Path
        from gateway.cli import state
        with state.acquire_instance_dir(Path({str(tmp_path)!r})) as place:
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], stdout=subprocess.DEVNULL)
            print(place, child.pid, flush=True)
            time.sleep(600)
    """)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    place, child = process.stdout.readline().split()
    try:
        assert place == str(tmp_path)
        with state.acquire_instance_dir(tmp_path) as other:
            assert other == tmp_path / "up-2"
        process.kill()
        process.wait()
        assert is_alive(int(child))
        with state.acquire_instance_dir(tmp_path) as again:
            assert again == tmp_path
    finally:
        os.kill(int(child), signal.SIGKILL)
        process.kill()
        process.communicate()


def test_more_than_fit_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(state, "MAX_INSTANCES", 2)
    with (
        state.acquire_instance_dir(tmp_path),
        state.acquire_instance_dir(tmp_path),
        pytest.raises(StartError, match=r"2 `csm up` use .* already"),
    ):
        with state.acquire_instance_dir(tmp_path):
            pass


def test_one_that_was_killed_is_not_found(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    state.register(state.Running("127.0.0.1:5", process.pid, None), tmp_path)
    assert state.find(tmp_path) is None
    (tmp_path / "up.json").write_text("{}")
    assert state.find(tmp_path) is None


def test_where_the_state_lies(monkeypatch, tmp_path):
    for name in ("CSM_STATE_DIR", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert state.state_dir() == tmp_path / ".local" / "state" / "csm"
    monkeypatch.setenv("XDG_STATE_HOME", "/x")
    assert str(state.state_dir()) == "/x/csm"
    monkeypatch.setenv("CSM_STATE_DIR", "/y")
    assert str(state.state_dir()) == "/y"
