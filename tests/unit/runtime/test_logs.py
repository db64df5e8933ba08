import json
import logging

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
