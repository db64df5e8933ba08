"""Who imports whom: each package knows what lies below it, and no circle closes while modules load."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STAGES = ("tokenizer", "backbone", "codec", "watermark")
SHARED = ("services.runtime", "services.engine")
OURS = ("csm_client", "gateway", "models", "services", "training", "deploy", "examples", "tests", "support")
# A package → what of ours it may import beside itself. The longest name that fits counts.
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "models": (),
    "services.runtime": (),
    "services.engine": ("services.runtime",),
    **{f"services.{stage}": (*SHARED, "models") for stage in STAGES},
    "csm_client": (),
    "gateway": ("services.runtime", "models"),
    "gateway.http": ("csm_client", "services.runtime"),
    "gateway.cli": ("gateway", "csm_client", "services.runtime", "models"),
}
# A package → what it may not import, however deep it lies.
MUST_NOT_LOAD = {
    "csm_client": ("torch", "numpy", "services", "gateway", "models"),
    "gateway.servicer": ("torch", "services.tokenizer", "services.backbone", "services.codec", "services.watermark"),
    "services.runtime.server": ("torch", "models"),
    **{f"services.{stage}.servicer": ("torch",) for stage in STAGES},
}


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


@cache
def modules() -> dict[str, Path]:
    found = {}
    for root, top in ((ROOT, "gateway"), (ROOT, "services"), (ROOT, "models"), (ROOT / "gateway/client", "csm_client")):
        for path in sorted((root / top).rglob("*.py")):
            name = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
            if not within(name, "gateway.client"):
                found[name] = path
    return found


def imports(tree: ast.AST, package: str, *, deep: bool) -> Iterator[str]:
    """Names that are imported; without `deep` only while the module loads, and not for types alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: -node.level + 1 or None] if node.level else []
            base = ".".join([*parts, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif deep or not (
            isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            or (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
        ):
            yield from imports(node, package, deep=deep)


@cache
def imported(name: str, *, deep: bool) -> frozenset[str]:
    """Modules that `name` imports: ours by their full names, others as they are written."""
    path = modules()[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for target in imports(ast.parse(path.read_text()), package, deep=deep):
        found.add(target if target in modules() else target.rpartition(".")[0] or target)
    return frozenset(found)


def package_of(name: str) -> str:
    return max((package for package in MAY_IMPORT if within(name, package)), key=len)


def test_there_is_a_rule_for_every_module():
    assert len(modules()) > 100
    for name in modules():
        assert name in ("services", "services.__init__") or package_of(name)


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_package_imports_only_what_lies_below_it(package):
    own = [name for name in modules() if name != "services" and package_of(name) == package]
    allowed = (package, *MAY_IMPORT[package])
    wrong = {
        (name, target)
        for name in own
        for target in imported(name, deep=True)
        if (target.split(".")[0] in OURS and not any(within(target, each) for each in allowed))
        or (package == "gateway" and within(target, "gateway.cli"))
    }
    assert not wrong


def test_no_circle_closes_while_modules_load():
    graph = {name: {t for t in imported(name, deep=False) if t in modules() and t != name} for name in modules()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" → ".join(error.args[1]))


def test_core_modules_know_no_grpc():
    """What a stage computes with can be tested and read without a server."""
    edges = ("__main__", "servicer", "detect_servicer", "config")
    assert set(edges) <= {name.split(".")[-1] for name in modules() if name.startswith("services.")}
    wrong = {
        (name, target)
        for name in modules()
        if any(within(name, f"services.{stage}") for stage in STAGES) and name.split(".")[-1] not in edges
        for target in imported(name, deep=True)
        if within(target, "grpc") or target.endswith(("_pb2", "_pb2_grpc"))
    }
    assert not wrong


@pytest.mark.parametrize("module", MUST_NOT_LOAD)
def test_what_is_loaded_with_a_module(module):
    """In a process of its own: other packages import, too."""
    look = f"import {module}, sys; print(*sys.modules)"
    paths = {"PYTHONPATH": ":".join([str(ROOT), str(ROOT / "protos"), str(ROOT / "gateway/client")])}
    loaded = subprocess.run([sys.executable, "-c", look], env=paths, capture_output=True, text=True, check=True)
    assert not set(MUST_NOT_LOAD[module]) & set(loaded.stdout.split())


def test_the_rules_can_fail(tmp_path):
    code = "import services.codec\nfrom . import tape\ndef f():\n    import torch\n"
    assert list(imports(ast.parse(code), "services.backbone", deep=True)) == [
        "services.codec", "services.backbone.tape", "torch",
    ]  # fmt: skip
    assert list(imports(ast.parse(code), "services.backbone", deep=False)) == [
        "services.codec",
        "services.backbone.tape",
    ]
