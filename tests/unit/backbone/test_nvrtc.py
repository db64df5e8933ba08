"""Where NVRTC cannot compile, other kernels do the work, and the log says why."""

import ctypes
import logging

import pytest

from services.backbone.kernels import nvrtc


class Rejecting:
    """An NVRTC that knows no architecture: a library as ctypes loads one."""

    def __init__(self, log: bytes):
        self.log = log

    def nvrtcCreateProgram(self, *_):
        return 0

    def nvrtcCompileProgram(self, *_):
        return 5  # NVRTC_ERROR_INVALID_OPTION

    def nvrtcGetProgramLogSize(self, _, size):
        ctypes.cast(size, ctypes.POINTER(ctypes.c_size_t))[0] = len(self.log) + 1
        return 0

    def nvrtcGetProgramLog(self, _, log):
        log.value = self.log
        return 0

    def nvrtcDestroyProgram(self, _):
        return 0


@pytest.fixture(autouse=True)
def _forgets():
    nvrtc.compiles_for.cache_clear()
    yield
    nvrtc.compiles_for.cache_clear()


def test_an_nvrtc_that_rejects_the_architecture_is_told_and_not_used(monkeypatch, caplog):
    monkeypatch.setattr(nvrtc, "_nvrtc", lambda: Rejecting(b"invalid value for --gpu-architecture"))
    with caplog.at_level(logging.WARNING):
        assert not nvrtc.compiles_for("sm_90a")
        assert not nvrtc.compiles_for("sm_90a")
    assert [record.getMessage() for record in caplog.records] == [
        "no CUDA C++ kernels, other ones do their work: nothing: invalid value for --gpu-architecture"
    ]


def test_without_nvrtc_there_are_no_such_kernels(monkeypatch, caplog):
    def missing():
        raise nvrtc.CompileError("no NVRTC library beside torch")

    monkeypatch.setattr(nvrtc, "_nvrtc", missing)
    with caplog.at_level(logging.WARNING):
        assert not nvrtc.compiles_for("sm_90")
    assert "no NVRTC library beside torch" in caplog.text
