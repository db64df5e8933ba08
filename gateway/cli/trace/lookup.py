"""From what a user has of a request, an id or a part of it or nothing, to the spans of its trace."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from gateway.cli import state
from gateway.cli.errors import CommandError
from gateway.cli.trace.otlp_file import MalformedFile, read_trace, requests_in
from gateway.cli.trace.spans import Span, TraceStore

_ID = re.compile(r"[0-9a-f]{32}")
_PART = re.compile(r"[0-9a-f]{4,31}")
_FIRST_S, _REST_S = 1.5, 4.5  # for the first span to come here, and for the others
WHERE_IDS_ARE = "a request's id is in its answer (trace_id), in the logs, and printed by `csm say --trace`"


class TraceError(CommandError):
    """One line on why there is nothing to draw."""


@dataclass(frozen=True)
class Found:
    """A trace. chosen: why this one, when it was not named."""

    trace_id: str
    spans: list[Span]
    chosen: str = ""


async def find(wanted: str | None, file: Path | None, folder: Path) -> Found:
    """The trace `wanted`, or the last request's, from `file` or from what `csm up` keeps.

    wanted: a trace id, the beginning of one, or a traceparent header. folder: that of `state`.
    Raises: TraceError, OSError.
    """
    last = state.last_request(folder)
    try:
        if file is not None:
            return _in_file(_read_id(wanted), file, last)
        return await _in_stores(_read_id(wanted), folder, last)
    except MalformedFile as error:
        raise TraceError(str(error)) from error


def known(file: Path | None, folder: Path) -> list[Found]:
    """Every request that is there, newest first, with at least the gateway's spans. Raises: TraceError, OSError."""
    try:
        if file is not None:
            return [Found(trace_id, spans) for trace_id, spans in requests_in(file).items()]
        return [Found(trace_id, _read(store, trace_id)) for store in _stores(folder) for trace_id in store.ids()]
    except MalformedFile as error:
        raise TraceError(str(error)) from error


def _in_file(wanted: str | None, file: Path, last: state.LastRequest | None) -> Found:
    chosen = ""
    if wanted is None or not _ID.fullmatch(wanted):
        ids = list(requests_in(file))
        if wanted is not None:
            wanted = _completed(wanted, ids, str(file))
        elif last is not None and last.trace_id in ids:
            wanted, chosen = last.trace_id, "the last `csm say`"
        elif ids:
            wanted, chosen = ids[0], f"the newest of {len(ids)} in {file}"
        else:
            raise TraceError(f"{file}: holds no request to a csm gateway")
    spans = read_trace(file, wanted)
    if not spans:
        raise TraceError(f"no trace {wanted} in {file}; `csm trace --list --file {file}` shows what is there")
    return Found(wanted, spans, chosen)


async def _in_stores(wanted: str | None, folder: Path, last: state.LastRequest | None) -> Found:
    chosen = ""
    if wanted is None:
        if last is None:
            raise TraceError(
                f"which request? none was made by `csm say` here; {WHERE_IDS_ARE};"
                " `csm trace --list` shows those kept here"
            )
        wanted, chosen = last.trace_id, "the last `csm say`"
    stores = _stores(folder, last)
    if not stores:
        raise TraceError(_no_store(folder))
    places = ", ".join(str(store.folder) for store in stores)
    if not _ID.fullmatch(wanted):
        wanted = _completed(wanted, [trace_id for store in stores for trace_id in store.ids()], places)
    writing = {running.traces for running in state.running(folder)}
    for store in stores:
        spans = _read(store, wanted)
        if str(store.folder) in writing:  # spans leave each service in batches, some moments after the answer
            if not spans:
                spans, _ = await store.wait(wanted, _FIRST_S)
            if spans:
                spans, _ = await store.wait(wanted, _REST_S)
        if spans:
            return Found(wanted, spans, chosen)
    if chosen:
        why = (
            "was for a gateway elsewhere: give its collector's file by --file"
            if last is not None and last.traces is None
            else "may not have reached its gateway"
        )
        raise TraceError(
            f"the last `csm say` {why} (trace {wanted}); `csm trace --list` shows the requests kept in {places}"
        )
    kept = sum(len(store.ids()) for store in stores)
    raise TraceError(
        f"no trace {wanted} in {places} ({kept} kept there, the newest 200; `csm trace --list` shows them);"
        f" {WHERE_IDS_ARE}"
    )


def _stores(folder: Path, last: state.LastRequest | None = None) -> list[TraceStore]:
    """What traces lie on this machine: those of a running `csm up` first, then earlier ones'."""
    noted = [running.traces for running in state.running(folder)]
    noted += [last.traces] if last is not None else []
    folders = [Path(name) for name in noted if name] + [
        directory / "traces" for directory in state.instance_dirs(folder)
    ]
    return [TraceStore(one) for one in dict.fromkeys(folders) if one.is_dir()]


def _no_store(folder: Path) -> str:
    if any(running.traces is None for running in state.running(folder)):
        return "`csm up` sends its spans to OTEL_EXPORTER_OTLP_ENDPOINT; look there, or give a file of them by --file"
    kept = f"no traces in {folder / 'traces'}: `csm up` keeps them there"
    return f"{kept}; other deployments' are read from --file SPANS.json"


def _read(store: TraceStore, trace_id: str) -> list[Span]:
    try:
        return store.read(trace_id)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TraceError(f"{store.folder / trace_id}.jsonl: holds a line that is no span ({error!s:.100})") from error


def _read_id(wanted: str | None) -> str | None:
    """A trace id, or the beginning of one, in small letters."""
    if wanted is None:
        return None
    text = wanted.strip().lower()
    if traceparent := re.fullmatch(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}", text):
        return traceparent[1]
    text = text.replace("-", "")
    if not _ID.fullmatch(text) and not _PART.fullmatch(text):
        raise TraceError(
            f"{wanted!r:.80} is no trace id: 32 hexadecimal digits, or the first four or more; {WHERE_IDS_ARE}"
        )
    return text


def _completed(part: str, ids: list[str], where: str) -> str:
    matches = sorted({trace_id for trace_id in ids if trace_id.startswith(part)})
    if len(matches) != 1:
        many = f"{len(matches)} traces begin" if matches else "no trace begins"
        raise TraceError(f"{many} with {part} in {where}; `csm trace --list` shows what is there")
    return matches[0]
