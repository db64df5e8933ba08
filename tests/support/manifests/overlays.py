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
            "http-tls",
            *WATCHED,
            "hpa",
            "hpa-stages",
            "priority",
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
    ("overlays/gpu", ("gpu-dra",)): frozenset({"backbone", "codec"}),
    ("overlays/one-card", ("gpu-shared",)): frozenset({"backbone", "codec", "watermark"}),
    ("overlays/gpu", ("gpu-tokenizer", "gpu-watermark", "gpu-mig")): frozenset(
        {"tokenizer", "backbone", "codec", "watermark"}
    ),
    ("overlays/gpu", ("gpu-tokenizer", "gpu-watermark", "gpu-dra")): frozenset(
        {"tokenizer", "backbone", "codec", "watermark"}
    ),
    ("overlays/cpu-dev", ("weights-pod",)): frozenset(),
    ("overlays/cpu-dev", ("weights-node",)): frozenset(),
    ("overlays/gpu", ("hub-proxy", "weights-node")): frozenset({"backbone", "codec"}),
    ("overlays/gpu", ("weights-store",)): frozenset({"backbone", "codec"}),
    ("overlays/gpu", ("weights-node", "weights-store", "voices-store", "external-secrets-store")): frozenset(
        {"backbone", "codec"}
    ),
}
DEV, _, _, FULL, KEDA, _, ONE_CARD, _, DRA, *_others, NODE = DEPLOYED


def oldest(deployed: tuple[str, tuple[str, ...]]) -> str:
    """The oldest Kubernetes that it is for. 1.30 is the first whose preStop can sleep by itself."""
    return "1.34" if "gpu-dra" in deployed[1] else "1.30"
