"""Which kernels a frame is made of, by batch size and device."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import torch

from models.bundle import load_bundle
from services.backbone import __main__ as backbone
from services.backbone import kernels
from services.backbone.config import BackboneSettings
from services.backbone.graph_runner import kernel_plan_for
from services.backbone.kernels import can_defer_norms, can_overlap


@pytest.mark.parametrize("capability", [(8, 0), (8, 9), (9, 0), (10, 0), (12, 0)])
def test_only_devices_with_room_for_it_overlap_launches(capability, monkeypatch):
    """On an older GPU the instruction does not even compile, and every runner captures a batch of one."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    overlap = can_overlap(torch.device("cuda:0"))
    assert overlap is (capability in [(9, 0), (10, 0)]) and can_overlap(torch.device("cpu"))
    plans = [kernel_plan_for(batch, overlap=overlap) for batch in (1, 2, 32, 64, 512, 4096)]
    assert [plan.matvec for plan in plans] == [True, *[False] * 5]
    assert any(plan.overlap or plan.gated_matmul or plan.split_products for plan in plans) is overlap


def test_only_hopper_gpus_defer_norms(monkeypatch):
    monkeypatch.setattr(kernels, "has_kernels", lambda device: False)
    assert not can_defer_norms(torch.device("cuda:0")) and can_defer_norms(torch.device("cpu"))
    without = [kernel_plan_for(batch, defers=False) for batch in (64, 512, 640)]
    assert not any(plan.deferred_norms for plan in without)
    assert [plan.split_products for plan in without] == [plan.overlap for plan in without] == [True, True, False]
    assert kernel_plan_for(512).deferred_norms


def test_the_server_asks_its_device(monkeypatch):
    def runner(model, *, kernel_plan, **_):
        plans.append(kernel_plan(512))
        return SimpleNamespace(warm_up=lambda: None)

    plans: list = []
    monkeypatch.setattr(backbone, "GraphRunner", runner)
    monkeypatch.setattr(backbone, "load_model", lambda *_: None)
    settings = dataclasses.replace(BackboneSettings(), runner="graph")
    for overlap, defers in ((True, True), (True, False), (False, False)):
        monkeypatch.setattr(backbone, "can_overlap", lambda _, can=overlap: can)
        monkeypatch.setattr(backbone, "can_defer_norms", lambda _, can=defers: can)
        backbone._load(settings, load_bundle("csm-1b"))
    assert [(plan.overlap, plan.deferred_norms) for plan in plans] == [(True, True), (True, False), (False, False)]
