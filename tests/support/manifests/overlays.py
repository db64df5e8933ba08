"""What is deployed, as the tests of the manifests look at it."""

from __future__ import annotations

WATCHED = ("observability", "prometheus-operator")
# What is deployed → which services have a card. Every component is in one of them.
DEPLOYED: dict[tuple[str, tuple[str, ...]], frozenset[str]] = {
    ("overlays/cpu-dev", ()): frozenset(),
    ("overlays/cpu-dev", ("gateway-api", "cors", "http", "voices")): frozenset(),
    ("overlays/gpu", ()): frozenset({"backbone", "codec"}),
    (
        "overlays/gpu",
        (
            *WATCHED,
            "hpa",
            "hpa-stages",
            "priority",
            "http-tls",
            "external-secrets",
            "gateway-api-tls",
            "gpu-tokenizer",
            "gpu-watermark",
            "nvidia-runtime",
        ),
    ): frozenset({"tokenizer", "backbone", "codec", "watermark"}),
    ("overlays/gpu", (*WATCHED, "keda")): frozenset({"backbone", "codec"}),
    ("overlays/gpu", ("prometheus-operator", "gpu-shared", "hub-proxy")): frozenset({"backbone", "codec"}),
    ("overlays/one-card", ()): frozenset({"backbone", "codec", "watermark"}),
    ("overlays/gpu", ("gpu-mig",)): frozenset({"backbone", "codec"}),
}
DEV, _, _, FULL, KEDA, _, ONE_CARD, _ = DEPLOYED
