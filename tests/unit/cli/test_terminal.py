"""What others wrote is printed as text: nothing in it reaches the terminal as a command."""

import io
from types import SimpleNamespace

import grpc
import pytest
from csm.speech.v1 import speech_pb2
from csm_client import exceptions

from gateway.cli import __main__ as cli
from gateway.cli import connection
from gateway.cli.bench import report
from gateway.cli.bench.fleet import Outcome
from gateway.cli.bench.plan import Plan
from gateway.cli.bench.record import Record
from gateway.cli.bench.stats import point
from gateway.cli.commands import voices
from gateway.cli.terminal import PlainConsole, plain
from gateway.cli.trace import command as trace_command
from gateway.cli.trace.spans import Span, TraceStore
from gateway.cli.trace.waterfall import Bar, draw

EVIL = "\x1b]0;owned\x07\x1b[2Jgone\rsorry\u202e\x9b31m\nsecond line"
STEERING = set("\x1b\x07\r\u202e\x9b")
ID = "ab" * 16


def test_text_stays_and_what_steers_is_replaced():
    assert plain('Grüße,\t"b"\nλ') == 'Grüße,\t"b"\nλ'
    assert not STEERING & set(plain(EVIL)) and "owned" in plain(EVIL)


def consoles():
    return PlainConsole(file=io.StringIO(), width=80), PlainConsole(file=io.StringIO(), width=80)


@pytest.mark.parametrize("listed", [True, False])
async def test_csm_trace_prints_spans_as_text(tmp_path, monkeypatch, listed):
    monkeypatch.setenv("CSM_STATE_DIR", str(tmp_path))
    evil = Span("gateway", f"Speech/{EVIL}", "server", "1", "", 0, 10**8, error=EVIL)
    TraceStore(tmp_path / "traces").add(ID, evil)
    TraceStore(tmp_path / "traces").add(ID, Span("codec", f"x/{EVIL}", "server", "2", "9", 0, 10**8))
    out, err = consoles()
    args = SimpleNamespace(id=ID, file=None, list=listed, output=tmp_path / "p.html", text=None)
    assert await trace_command.trace(args, out, err) == 0
    printed = out.file.getvalue()
    assert "owned" in printed and not STEERING & set(printed), repr(printed)
    assert len(printed.splitlines()) == (1 if listed else 3)


def test_a_waterfall_has_a_line_a_bar_whatever_its_name():
    text = draw([Bar(EVIL, "codec", 0, 0.0, 1.0, error=EVIL)], width=200).plain
    assert "owned" in text and not STEERING & set(text)
    assert len(text.splitlines()) == 3


def test_a_servers_words_are_text_on_standard_error(capsys, monkeypatch):
    async def refuse(args):
        raise exceptions.InvalidRequest(EVIL, code=grpc.StatusCode.INVALID_ARGUMENT)

    monkeypatch.setattr(voices, "_voices", refuse)
    assert cli.main(["voices"]) == 3
    printed = capsys.readouterr().err
    assert "owned" in printed and not STEERING & set(printed) and len(printed.splitlines()) == 1


async def test_voices_are_text(capsys, monkeypatch):
    class Server:
        @property
        def named_voices(self):
            return self

        async def list(self):
            return [SimpleNamespace(id="own", name="own", speaker=2)]

        async def __aenter__(self):
            return self

        async def __aexit__(self, *exc):
            pass

        async def voices(self):
            voice = speech_pb2.Voice(speaker=1, name=EVIL, description=EVIL)
            return speech_pb2.ListVoicesResponse(description=EVIL, voices=[voice])

    monkeypatch.setattr(connection, "client", lambda args: Server())
    assert await voices._voices(SimpleNamespace()) == 0
    printed = capsys.readouterr().out
    assert "owned" in printed and not STEERING & set(printed)


async def test_voices_of_a_deployment_without_named_ones(capsys, monkeypatch):
    class Server:
        @property
        def named_voices(self):
            return self

        async def list(self):
            raise exceptions.ServerFault("no such method", code=grpc.StatusCode.UNIMPLEMENTED)

        async def __aenter__(self):
            return self

        async def __aexit__(self, *exc):
            pass

        async def voices(self):
            return speech_pb2.ListVoicesResponse(voices=[speech_pb2.Voice(speaker=1, name="ada")])

    monkeypatch.setattr(connection, "client", lambda args: Server())
    assert await voices._voices(SimpleNamespace()) == 0
    assert "ada" in capsys.readouterr().out


def test_a_bench_reports_a_servers_words_as_text():
    plan = Plan(streams=1)
    failed = Record(intended_s=0.0, sent_s=0.0, status="INTERNAL", problem=EVIL)
    found = point(Outcome(plan, 1, [failed]))
    text = report.markdown([plan], [found], {"address": "x", "bundle": EVIL})
    assert "owned" in text and not STEERING & set(text)
