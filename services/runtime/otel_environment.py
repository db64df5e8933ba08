"""OpenTelemetry's environment variables, made usable before its packages read them.

The specification wants an empty variable to count as unset and an unusable one to be ignored with a warning. The
Python packages raise for some of them, at import, with a traceback.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from importlib.metadata import entry_points

_CHOICES = {
    "OTEL_EXPORTER_OTLP_PROTOCOL": ("grpc", "http/protobuf"),
    "OTEL_EXPORTER_OTLP_COMPRESSION": ("none", "gzip", "deflate"),
    "OTEL_LOGS_EXPORTER": ("none",),
}
_LISTS = {
    "OTEL_TRACES_EXPORTER": ("otlp", "console", "none"),
    "OTEL_METRICS_EXPORTER": ("otlp", "prometheus", "console", "none"),
}
_NUMBERS = (
    "OTEL_METRIC_EXPORT_INTERVAL",
    "OTEL_METRIC_EXPORT_TIMEOUT",
    "OTEL_BSP_SCHEDULE_DELAY",
    "OTEL_BSP_EXPORT_TIMEOUT",
    "OTEL_BSP_MAX_QUEUE_SIZE",
    "OTEL_BSP_MAX_EXPORT_BATCH_SIZE",
    "OTEL_EXPORTER_OTLP_TIMEOUT",
    "OTEL_EXPORTER_PROMETHEUS_PORT",
    "OTEL_TRACES_SAMPLER_ARG",
)
_PER_SIGNAL = ("TRACES", "METRICS")


def clean(environ: MutableMapping[str, str]) -> list[str]:
    """Drop what cannot be used; one line for each variable that was."""
    warnings: list[str] = []
    for name in [name for name in environ if name.startswith("OTEL_")]:
        value = environ[name].strip()
        if not value:
            del environ[name]
        elif (problem := _problem(name, value)) is not None:
            usable, wanted = problem
            warnings.append(f"{name}={value!r}: {wanted}; " + (f"{usable!r} is used" if usable else "ignored"))
            if usable:
                environ[name] = usable
            else:
                del environ[name]
    return warnings


def _problem(name: str, value: str) -> tuple[str, str] | None:
    """What of a value can be used, and what it should be. None: it is fine."""
    general = name
    for signal in _PER_SIGNAL:
        general = general.replace(f"OTEL_EXPORTER_OTLP_{signal}_", "OTEL_EXPORTER_OTLP_")
    if general in _CHOICES and value.lower() not in _CHOICES[general]:
        return "", f"must be {' or '.join(_CHOICES[general])}"
    if general in _NUMBERS and not _is_number(value):
        return "", "must be a number"
    if name in _LISTS:
        return _subset(value, _LISTS[name])
    if name == "OTEL_PROPAGATORS":
        known = sorted({each.name for each in entry_points(group="opentelemetry_propagator")} | {"none"})
        return _subset(value, known)
    return None


def _subset(value: str, known: tuple[str, ...] | list[str]) -> tuple[str, str] | None:
    words = [word.strip().lower() for word in value.split(",") if word.strip()]
    usable = [word for word in words if word in known]
    return None if usable == words else (",".join(usable), f"must be a list of {', '.join(known)}")


def _is_number(value: str) -> bool:
    try:
        return float(value) >= 0
    except ValueError:
        return False


WARNINGS = clean(os.environ)
