"""What every test's process is given, before anything is imported."""

import atexit
import os
import shutil
import signal
import tempfile

import pytest

# Tests run beside other processes on few cores, where two torch threads that wait for each other are
# several times slower than one.
os.environ["OMP_NUM_THREADS"] = "1"

import torch

# Neither what this user's shell says of a deployment nor a `csm up` that runs beside is the tests'.
for name in [name for name in os.environ if name.startswith(("CSM_", "OTEL_"))]:
    del os.environ[name]
os.environ["CSM_STATE_DIR"] = tempfile.mkdtemp(prefix="csm-tests-")
os.environ["XDG_DATA_HOME"] = os.path.join(os.environ["CSM_STATE_DIR"], "data")  # of voices that a test keeps
atexit.register(shutil.rmtree, os.environ["CSM_STATE_DIR"], ignore_errors=True)

# Without a GPU Triton's interpreter runs the kernels, and the setting must be there before
# anything imports triton, which compiles its own library functions otherwise.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# A shell starts background jobs with SIGINT ignored, and children inherit that: a test that interrupts
# a command would wait for ever. A handler of ours becomes the default in a child.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def metrics():
    """Call it for what was measured since the test began (or the last call): metric → its data points.

    A process has one meter provider, so it and its reader stay from the first test that asks for them.
    """
    from opentelemetry import metrics as api
    from opentelemetry.sdk import metrics as sdk
    from opentelemetry.sdk.metrics.export import AggregationTemporality, InMemoryMetricReader

    from services.runtime import instruments

    global _reader
    if _reader is None:
        since = dict.fromkeys((sdk.Counter, sdk.Histogram), AggregationTemporality.DELTA)
        _reader = InMemoryMetricReader(preferred_temporality=since)
        api.set_meter_provider(sdk.MeterProvider([_reader]))
    for readers in instruments._observed.values():
        readers.clear()  # what earlier tests have left alive
    _reader.get_metrics_data()

    def measured() -> dict[str, list]:
        data = _reader.get_metrics_data()
        return {
            metric.name: list(metric.data.data_points)
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }

    return measured


_reader = None
