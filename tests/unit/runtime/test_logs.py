import json
import logging

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from services.runtime import logs


def test_a_record_is_one_json_line_with_the_trace_it_belongs_to(capsys):
    root = logging.getLogger()
    before = root.handlers[:], root.level
    try:
        logs.configure("codec")
        with TracerProvider().get_tracer("test").start_as_current_span("work") as span:
            logging.getLogger("x").info("slot %d\nfree", 3, extra={"frames": 7})
            ids = span.get_span_context()
        lines = capsys.readouterr().err.splitlines()
    finally:
        root.handlers[:], root.level = before[0], before[1]
        logging.captureWarnings(False)
    assert len(lines) == 1
    record = json.loads(lines[0])
    assert record["message"] == "slot 3\nfree" and record["frames"] == 7 and record["service"] == "codec"
    assert record["trace_id"] == trace.format_trace_id(ids.trace_id)
    assert record["span_id"] == trace.format_span_id(ids.span_id)


@pytest.mark.parametrize("form", ["json", "text"])
def test_grpc_logs_nothing_of_what_strangers_send(capsys, form):
    root = logging.getLogger()
    before = root.handlers[:], root.level
    token = b"Bearer s3cret\xff\xfe"
    try:
        logs.configure("gateway", form=form)
        grpc_log = logging.getLogger("grpc._cython.cygrpc")
        try:
            token.decode()
        except UnicodeDecodeError:
            grpc_log.exception("Invalid encoding on %s", token)
        grpc_log.error("Failed to read %s", token)
        told = capsys.readouterr().err
    finally:
        root.handlers[:], root.level = before[0], before[1]
        logging.captureWarnings(False)
    assert "s3cret" not in told and "Traceback" not in told
    assert len(told.splitlines()) == 1 and "Failed to read (15 bytes)" in told
