"""Writes the Grafana dashboards: `python deploy/dashboards/build.py`.

A panel is a title, a unit, a description, and queries; the rest is the same on all. Metrics are those
of docs/telemetry.md.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

_FOLDER = Path(__file__).parent
_COLUMNS = 24
_SPEECH = (
    'rpc_method=~"csm.speech.v1.SpeechService/(StreamSynthesize|Synthesize|Converse)'
    '|nvidia.riva.tts.RivaSpeechSynthesis/(Synthesize|SynthesizeOnline)"'
)
_NAMESPACE = 'namespace=~"$namespace"'


def quantiles(metric: str, labels: str = "", by: str = "", *, of: tuple[float, ...] = (0.5, 0.95, 0.99)) -> list:
    """Quantiles of a histogram; by: labels to keep apart."""
    keep = f"le, {by}" if by else "le"
    what = " ".join(f"{{{{{label.strip()}}}}}" for label in by.split(",")) if by else ""
    return [
        (
            f"histogram_quantile({q:g}, sum by ({keep}) (rate({metric}_bucket{{{labels}}}[$__rate_interval])))",
            f"p{q * 100:g} {what}".strip(),
        )
        for q in of
    ]


def here(expr: str) -> str:
    """A query of the chosen namespaces. Series that carry none, where no operator scrapes, are among all of them."""
    return re.sub(
        r"\b(?!csm_token\b)((?:csm|rpc_server)_\w+)(?:\{([^}]*)\})?",
        lambda found: f"{found[1]}{{{', '.join(filter(None, [found[2], _NAMESPACE]))}}}",
        expr,
    )


def panel(
    title: str, unit: str, description: str, queries: list, *, width: int = 12, limit: float | None = None
) -> dict:
    """limit: where it begins to hurt, drawn as a line."""
    defaults: dict = {"unit": unit, "min": 0, "custom": {"lineWidth": 1, "fillOpacity": 10, "showPoints": "never"}}
    if limit is not None:
        defaults["thresholds"] = {
            "mode": "absolute",
            "steps": [{"color": "green", "value": None}, {"color": "red", "value": limit}],
        }
        defaults["custom"]["thresholdsStyle"] = {"mode": "line"}
    return {
        "title": title,
        "description": description,
        "type": "timeseries",
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "gridPos": {"w": width, "h": 8},
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom"},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        "targets": [
            {"refId": chr(ord("A") + n), "expr": here(expr), "legendFormat": legend}
            for n, (expr, legend) in enumerate(queries)
        ],
    }


def dashboard(uid: str, title: str, panels: list[dict], *, instances_of: str | None = None) -> dict:
    """instances_of: a metric whose instances can be chosen among, as $instance."""
    x = y = 0
    for number, each in enumerate(panels, 1):
        width = each["gridPos"]["w"]
        if x + width > _COLUMNS:
            x, y = 0, y + 8
        each["id"] = number
        each["gridPos"] |= {"x": x, "y": y}
        x += width
    variables: list[dict] = [{"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}]
    variables.append(_choice("namespace", "label_values(csm_ready, namespace)"))
    if instances_of:
        variables.append(_choice("instance", f"label_values({here(instances_of)}, instance)"))
    return {
        "uid": uid,
        "title": title,
        "tags": ["csm"],
        "schemaVersion": 39,
        "version": 1,
        "timezone": "browser",
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": variables},
        "links": [{"title": "CSM", "type": "dashboards", "tags": ["csm"], "asDropdown": True}],
        "panels": panels,
    }


def _choice(name: str, query: str) -> dict:
    """A variable: one or more of what `query` finds, or all."""
    return {
        "name": name,
        "type": "query",
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "query": {"query": query, "refId": f"{name}s"},
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def request() -> dict:
    first_audio = "csm_request_time_to_first_audio_seconds"
    return dashboard(
        "csm-request",
        "CSM: requests",
        [
            panel("Time to first audio", "s", "A request's start to its first marked audio.", quantiles(first_audio), limit=1),
            panel(
                "Real-time factor", "none", "Time that the stages took over length of the audio: above 1, speech is made slower than heard.",
                quantiles("csm_request_real_time_factor"), limit=1,
            ),
            panel(
                "Requests by status", "reqps", "Every way for a request to end.",
                [(f"sum by (rpc_response_status_code) (rate(rpc_server_call_duration_seconds_count{{{_SPEECH}}}[$__rate_interval]))", "{{rpc_response_status_code}}")],
            ),
            panel(
                "Requests that failed by our fault", "percentunit", "Of all requests. Refusals for overload are counted apart.",
                [
                    (
                        f'(sum(rate(rpc_server_call_duration_seconds_count{{{_SPEECH}, csm_error_origin="{origin}"}}[$__rate_interval])) or vector(0))'
                        f" / sum(rate(rpc_server_call_duration_seconds_count{{{_SPEECH}}}[$__rate_interval]))",
                        name,
                    )
                    for origin, name in (("server", "failed"), ("load", "refused: no room"))
                ],
                limit=0.02,
            ),
            panel(
                "Buffer needed", "s", "What a player must buffer so that a stream has no underrun.",
                quantiles("csm_stream_buffer_needed_seconds"), limit=0.2,
            ),
            panel(
                "Streams with an underrun", "percentunit", "By how long their listener buffers before playing.",
                [
                    (
                        f'1 - sum(rate(csm_stream_buffer_needed_seconds_bucket{{le="{le}"}}[$__rate_interval]))'
                        " / sum(rate(csm_stream_buffer_needed_seconds_count[$__rate_interval]))",
                        f"{float(le) * 1000:g} ms",
                    )
                    for le in ("0.05", "0.1", "0.2", "0.5")
                ],
                limit=0.05,
            ),
            panel(
                "Underruns", "none", "Gaps in a minute of audio, for a listener who buffers as CSM_LISTENER_BUFFER_MS says.",
                [
                    (
                        "60 * sum(rate(csm_stream_underruns_total[$__rate_interval]))"
                        " / sum(rate(csm_request_audio_seconds_total[$__rate_interval]))",
                        "underruns a minute",
                    )
                ],
            ),
            panel(
                "Ends", "reqps", "Utterances made to their end: the model ended them, or the longest length did.",
                [("sum by (finish_reason) (rate(csm_request_finished_total[$__rate_interval]))", "{{finish_reason}}")],
            ),
            panel(
                "Utterances under way", "none", "In all gateways, and how many there may be.",
                [("sum(csm_gateway_streams_active)", "active"), ("sum(csm_gateway_streams_capacity)", "capacity")],
            ),
            panel(
                "Listeners served in real time", "none", "Seconds of audio given to callers, a second.",
                [("sum(rate(csm_request_audio_seconds_total[$__rate_interval]))", "audio seconds per second")],
            ),
            panel(
                "First output of each stage", "s", "Since the request's start, as the gateway sees it: where the first audio waits.",
                quantiles("csm_request_first_output_duration_seconds", by="stage", of=(0.5, 0.95)),
            ),
            panel(
                "Marks found", "ops", "Utterances of the audit trail's sample, by whether their mark was found afterwards.",
                [("sum by (result) (rate(csm_audit_verifications_total[$__rate_interval]))", "{{result}}")],
            ),
            panel(
                "Event loop lag", "s", "What every chunk waits for in a server whose loop is busy; p99 of each process.",
                quantiles("csm_event_loop_lag_seconds", by="job, instance", of=(0.99,)), limit=0.15,
            ),
            panel(
                "Audio by token", "none", "Seconds of audio a second, of the ten tokens with the most: listeners that each keeps supplied.",
                [("topk(10, sum by (csm_token) (rate(csm_token_audio_seconds_total[$__rate_interval])))", "{{csm_token}}")],
            ),
            panel(
                "Characters by token", "none", "Text a minute, of the ten tokens with the most.",
                [("topk(10, sum by (csm_token) (60 * rate(csm_token_characters_total[$__rate_interval])))", "{{csm_token}}")],
            ),
            panel(
                "Refusals by token", "reqps", "Calls beyond a token's limits.",
                [("sum by (csm_token, reason) (rate(csm_token_refusals_total[$__rate_interval])) > 0", "{{csm_token}} {{reason}}")],
            ),
        ],
    )  # fmt: skip


def stages() -> dict:
    each = "stage, rpc_method"
    return dashboard(
        "csm-stages",
        "CSM: stages",
        [
            panel(
                "First output", "s", "A call's start to its first output, as the stage sees it.",
                quantiles("csm_stage_first_output_duration_seconds", by=each, of=(0.5, 0.95)),
            ),
            panel(
                "Chunk", "s", "Work on one chunk; of the backbone, the wait for a chunk's frames.",
                quantiles("csm_stage_chunk_duration_seconds", by=each, of=(0.5, 0.95)),
            ),
            panel(
                "Queue", "s", "A chunk's wait for its turn; of the backbone, a request's wait for a slot.",
                [
                    *quantiles("csm_stage_queue_duration_seconds", by=each, of=(0.95,)),
                    *[(expr, f"{legend} backbone Generate")
                      for expr, legend in quantiles("csm_backbone_queue_duration_seconds", of=(0.95,))],
                ],
                limit=0.3,
            ),
            panel(
                "Calls that failed by the stage's fault", "reqps", "By service, method and status.",
                [
                    (
                        "sum by (rpc_method, rpc_response_status_code) "
                        '(rate(rpc_server_call_duration_seconds_count{csm_error_origin="server"}[$__rate_interval]))',
                        "{{rpc_method}} {{rpc_response_status_code}}",
                    )
                ],
            ),
            panel(
                "Places taken", "percentunit", "Of those that each kind of work has, in all replicas.",
                [
                    (f"sum({metric}_active) / sum({metric}_capacity)", name)
                    for metric, name in (
                        ("csm_tokenizer_encodings", "tokenizer: encodings"),
                        ("csm_backbone_slots", "backbone: slots"),
                        ("csm_codec_slots", "codec: slots"),
                        ("csm_watermark_streams", "watermark: streams"),
                        ("csm_watermark_detections", "watermark: detections"),
                        ("csm_gateway_verifications", "gateway: verifications"),
                    )
                ],
                limit=0.9,
            ),
            panel(
                "Ready replicas", "none", "Servers whose health says that calls can be served, and how many there are.",
                [
                    ("sum by (rpc_service) (csm_ready)", "{{rpc_service}} ready"),
                    ("count by (rpc_service) (csm_ready)", "{{rpc_service}} running"),
                ],
            ),
            panel(
                "Builds", "none", "Replicas by version, bundle, precision and device: a rollout is two of a kind.",
                [
                    (
                        "count by (rpc_service, version, bundle, precision, device) (csm_build_info)",
                        "{{rpc_service}} {{version}} {{bundle}} {{precision}} {{device}}",
                    )
                ],
                width=24,
            ),
            panel(
                "Clips known to the tokenizer", "percentunit", "Voice prompts that were encoded before; and how full their cache is.",
                [
                    (
                        'sum(rate(csm_tokenizer_cache_lookups_total{result="hit"}[$__rate_interval]))'
                        " / sum(rate(csm_tokenizer_cache_lookups_total[$__rate_interval]))",
                        "hits",
                    ),
                    ("sum(csm_tokenizer_cache_size_bytes) / sum(csm_tokenizer_cache_capacity_bytes)", "cache in use"),
                ],
            ),
        ],
    )  # fmt: skip


def generator() -> dict:
    of = 'instance=~"$instance"'
    return dashboard(
        "csm-generator",
        "CSM: generator",
        [
            panel(
                "Frame", "s", "One step for all slots. At 80 ms, speech is made as fast as it is heard.",
                quantiles("csm_backbone_frame_step_duration_seconds", of), limit=0.08,
            ),
            panel(
                "Batch", "none", "Requests that a step makes a frame for: mean and p95.",
                [
                    (
                        f"sum(rate(csm_backbone_batch_size_sum{{{of}}}[$__rate_interval]))"
                        f" / sum(rate(csm_backbone_batch_size_count{{{of}}}[$__rate_interval]))",
                        "mean",
                    ),
                    *quantiles("csm_backbone_batch_size", of, of=(0.95,)),
                ],
            ),
            panel(
                "Slots", "none", "Requests being generated, and how many there may be.",
                [(f"sum(csm_backbone_slots_active{{{of}}})", "active"), (f"sum(csm_backbone_slots_capacity{{{of}}})", "capacity")],
            ),
            panel(
                "Queue", "none", "Requests that wait for a slot; beyond the capacity they are refused.",
                [(f"sum(csm_backbone_queue_depth{{{of}}})", "waiting"), (f"sum(csm_backbone_queue_capacity{{{of}}})", "capacity")],
            ),
            panel(
                "Wait for a slot", "s", "What a request waits before anything is done for it.", quantiles("csm_backbone_queue_duration_seconds", of), limit=1,
            ),
            panel(
                "Prefill", "s", "From the slot to the prompt being read.", quantiles("csm_backbone_prefill_duration_seconds", of),
            ),
            panel(
                "Blocks of the key-value cache", "none", "Held by live requests, kept for prompts that begin alike, and all.",
                [
                    (f"sum(csm_backbone_blocks_used{{{of}}})", "used"),
                    (f"sum(csm_backbone_blocks_idle{{{of}}})", "kept"),
                    (f"sum(csm_backbone_blocks_capacity{{{of}}})", "capacity"),
                ],
            ),
            panel(
                "Prefix cache hits", "percentunit", "Share of prompt tokens found in the cache.",
                [
                    (
                        f"sum(rate(csm_backbone_prompt_prefix_hit_tokens_total{{{of}}}[$__rate_interval]))"
                        f" / sum(rate(csm_backbone_prompt_tokens_total{{{of}}}[$__rate_interval]))",
                        "hits",
                    )
                ],
            ),
            panel(
                "Frames", "none", "Made in a second, by all slots; 12.5 a second is one listener in real time.",
                [(f"sum(rate(csm_backbone_batch_size_sum{{{of}}}[$__rate_interval]))", "frames per second")],
            ),
            panel(
                "Slots by replica", "none", "Even, when clients balance well.",
                [(f"csm_backbone_slots_active{{{of}}}", "{{instance}}")],
            ),
        ],
        instances_of="csm_backbone_slots_capacity",
    )  # fmt: skip


def main() -> None:
    for make in (request, stages, generator):
        text = json.dumps(make(), indent=2, ensure_ascii=False) + "\n"
        (_FOLDER / f"{make.__name__}.json").write_text(text)


if __name__ == "__main__":
    main()
