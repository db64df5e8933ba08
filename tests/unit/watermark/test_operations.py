"""Which operations a device gets, and that it gets some where the kernels cannot be had."""

import logging
import sys
import types

import pytest
import torch

from services.watermark import kernels
from services.watermark.embedder import Embedder
from services.watermark.kernels import plain
from services.watermark.key import PUBLIC_KEY


def test_a_cpu_takes_plain_torch():
    assert kernels.operations_for(torch.device("cpu")) is plain


@pytest.fixture
def built(monkeypatch):
    """Kernels that import, on a machine without Triton as well."""
    fused = types.ModuleType("services.watermark.kernels.fused")
    monkeypatch.setitem(sys.modules, fused.__name__, fused)
    return fused


def test_kernels_that_launch_are_taken(built, monkeypatch, caplog):
    monkeypatch.setattr(kernels, "_launch_once", lambda *_: None)
    assert kernels.operations_for(torch.device("cuda")) is built
    assert not caplog.records


def test_kernels_that_do_not_launch_are_left_with_a_warning(built, monkeypatch, caplog):
    def fails(*_):
        raise RuntimeError("no C compiler")

    monkeypatch.setattr(kernels, "_launch_once", fails)
    with caplog.at_level(logging.WARNING):
        assert kernels.operations_for(torch.device("cuda")) is plain
    assert "without kernels" in caplog.text and "no C compiler" in caplog.text


def test_kernels_that_cannot_be_imported_are_left_too(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "services.watermark.kernels.fused", None)
    assert kernels.operations_for(torch.device("cuda")) is plain
    assert "without kernels" in caplog.text


def test_an_unknown_precision_is_refused(untrained):
    with pytest.raises(ValueError, match="precision is 'int8', must be one of fp32, tf32, fp16"):
        Embedder(untrained, PUBLIC_KEY, precision="int8")
