"""The trace id that answers carry."""

from opentelemetry import trace


def trace_id() -> str:
    """Of the request that is being served, 32 hexadecimal digits."""
    return f"{trace.get_current_span().get_span_context().trace_id:032x}"
