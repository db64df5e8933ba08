"""Settings: frozen dataclasses whose fields are read from the environment, once, at start.

    @dataclass(frozen=True)
    class CodecSettings(ServerSettings):
        slots: int = setting("CSM_CODEC_SLOTS", 8, "streams decoded at once", min=1, max=4096)

    settings = read(CodecSettings)

A value that does not parse or lies outside its limits is a SettingError that names variable and limit.
"""

from __future__ import annotations

import dataclasses
import os
import textwrap
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")


class StartError(Exception):
    """A process cannot start. The message is one line that says what to do about it."""


class SettingError(StartError):
    """A variable of the environment cannot be used. The message names it, its value and the limit."""


def setting(
    name: str,
    default: Any,
    doc: str,
    *,
    min: float | None = None,
    max: float | None = None,
    choices: tuple[str, ...] | None = None,
    secret: bool = False,
) -> Any:
    """A dataclass field that is read from environment variable `name`.

    min, max: inclusive limits of a number. secret: the value is never printed.
    """
    meta = {"env": name, "doc": doc, "min": min, "max": max, "choices": choices, "secret": secret}
    return dataclasses.field(default=default, metadata=meta)


@dataclass(frozen=True)
class ServerSettings:
    """What every server reads."""

    listen: str = setting("CSM_LISTEN", "127.0.0.1:0", "address and port to listen on")
    model: str = setting("CSM_MODEL", "embedded", "bundle: embedded, noise, csm-1b, or a folder with a bundle.toml")
    drain_s: float = setting(
        "CSM_DRAIN_S", 0.0, "after SIGTERM: seconds of NOT_SERVING before calls are refused", min=0, max=600
    )
    grace_s: float = setting(
        "CSM_GRACE_S", 120.0, "after draining: seconds that running calls may take", min=0, max=3600
    )
    reader_stall_s: float = setting(
        "CSM_READER_STALL_S", 30.0, "a stream whose reader takes nothing for longer is ended", min=0.1, max=3600
    )
    share_port: bool = setting(
        "CSM_SHARE_PORT", False, "other processes may listen on the same port: the kernel spreads connections over them"
    )
    max_message_mib: int = setting("CSM_MAX_MESSAGE_MIB", 64, "largest message taken, MiB", min=1, max=1024)
    request_timeout_s: float = setting(
        "CSM_REQUEST_TIMEOUT_S", 10.0, "time for a call's request to arrive, seconds", min=0.1, max=3600
    )
    request_memory_mib: int = setting(
        "CSM_REQUEST_MEMORY_MIB",
        1024,
        "memory of requests being served, MiB; also bounds how many may arrive slowly: one for each CSM_MAX_MESSAGE_MIB",
        min=1,
    )
    stream_idle_s: float = setting(
        "CSM_STREAM_IDLE_S",
        60.0,
        "a stage's stream that sends no message for longer, counted from when its audio has been played, is ended",
        min=0.1,
        max=3600,
    )
    patient_deadline_s: float = setting(
        "CSM_PATIENT_DEADLINE_S",
        30.0,
        "a deadline that passes is this server's fault when the caller gave at least so long; seconds",
        min=0,
    )
    max_connections: int = setting(
        "CSM_MAX_CONNECTIONS", 4096, "connections at once; fewer where the process may not open so many files", min=1
    )
    max_concurrent_streams: int = setting(
        "CSM_MAX_CONCURRENT_STREAMS", 4096, "calls at once on one connection; further ones wait at the caller", min=1
    )
    max_watchers: int = setting("CSM_MAX_WATCHERS", 1024, "Watch calls of the health service at once", min=1)
    max_connection_age_s: int = setting(
        "CSM_MAX_CONNECTION_AGE_S", 30, "connections are renewed after this, so that new replicas are found", min=1
    )
    connection_grace_s: int = setting(
        "CSM_CONNECTION_GRACE_S", 600, "how long calls on a connection that is renewed may go on", min=1
    )
    metrics_listen: str | None = setting(
        "CSM_METRICS_LISTEN", None, "host:port where Prometheus may fetch metrics; without it, nowhere"
    )
    tls_cert_file: str | None = setting(
        "CSM_TLS_CERT_FILE", None, "certificate of this server with its chain, PEM; without it, plaintext"
    )
    tls_key_file: str | None = setting("CSM_TLS_KEY_FILE", None, "its key, PEM")
    tls_client_ca_file: str | None = setting(
        "CSM_TLS_CLIENT_CA_FILE", None, "authorities, PEM; callers must show a certificate of one of them"
    )
    health_listen: str | None = setting(
        "CSM_HEALTH_LISTEN", None, "host:port of a second, plaintext server of health checks alone"
    )
    insecure: str | None = setting(
        "CSM_INSECURE",
        None,
        "what may be open beyond this machine: `plaintext`, `no-tokens`, or both with a comma between",
    )
    log_format: str = setting("CSM_LOG_FORMAT", "json", "json or text", choices=("json", "text"))
    log_level: str = setting(
        "CSM_LOG_LEVEL", "INFO", "lowest level logged", choices=("DEBUG", "INFO", "WARNING", "ERROR")
    )


def read(cls: type[T], environ: Mapping[str, str] | None = None, **overrides: Any) -> T:
    """An instance of `cls` from the environment; `overrides` (for tests, command lines) win and are checked too.

    Raises: SettingError.
    """
    environ = os.environ if environ is None else environ
    types = typing.get_type_hints(cls)
    values: dict[str, Any] = {}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        meta = field.metadata
        name = meta.get("env", field.name)
        if field.name in overrides:
            values[field.name] = _check(name, overrides[field.name], meta)
        elif environ.get(name, "") != "":
            values[field.name] = _check(name, _parse(name, environ[name], types[field.name]), meta)
    return cls(**values)


def as_dict(settings: Any) -> dict[str, Any]:
    """Environment name → value in use, secrets masked; printed once at start."""
    shown = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if field.metadata.get("secret"):
            value = "(set)" if value else "(not set)"
        shown[field.metadata.get("env", field.name)] = value
    return shown


def help_text(cls: type[Any]) -> str:
    """The settings for `--help`: each variable, its default and limits, its meaning."""
    lines = []
    for field in dataclasses.fields(cls):
        meta = field.metadata
        told = [] if field.default is None else [f"default {field.default}"]
        told += [", ".join(meta["choices"])] if meta["choices"] else []
        told += [f"at least {meta['min']}"] if meta["min"] is not None else []
        told += [f"at most {meta['max']}"] if meta["max"] is not None else []
        lines.append(f"  {meta['env']}" + (f"  ({'; '.join(told)})" if told else ""))
        lines += textwrap.wrap(meta["doc"], 100, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


def _parse(name: str, text: str, kind: Any) -> Any:
    options = [option for option in (typing.get_args(kind) or (kind,)) if option is not type(None)]
    kind = options[0]
    try:
        if kind is bool:
            return {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}[text.lower()]
        return kind(text)
    except (ValueError, KeyError) as error:
        raise SettingError(f"{name}={text!r}: not a {kind.__name__}") from error


def _check(name: str, value: Any, meta: Mapping[str, Any]) -> Any:
    minimum, maximum, choices = meta.get("min"), meta.get("max"), meta.get("choices")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        # Written so that NaN fails too.
        if minimum is not None and not value >= minimum:
            raise SettingError(f"{name}={value}: must be at least {minimum}")
        if maximum is not None and not value <= maximum:
            raise SettingError(f"{name}={value}: must be at most {maximum}")
    if choices is not None and value not in choices:
        raise SettingError(f"{name}={value!r}: must be one of {', '.join(choices)}")
    return value
