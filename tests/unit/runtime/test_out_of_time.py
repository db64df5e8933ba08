"""Which cancelled calls ran out of time."""

import pytest

from services.runtime.tracing import is_out_of_time


@pytest.mark.parametrize(
    ("remaining_s", "timeout_s", "expected"),
    [
        (0.0, 5.0, True),
        (0.08, 0.8, True),  # the cancel came over the wire first
        (0.9, 100.0, True),  # gRPC sends 100 s in steps of one
        (0.5, 5.0, False),
        (60.0, 100.0, False),
        (0.0, 0.05, True),
        (0.01, 0.05, True),
        (0.04, 0.05, False),  # a short one is cancelled by its caller too
        (0.09, 0.1, False),
        (None, None, False),  # no deadline at all
    ],
)
def test_a_cancel_just_before_the_deadline_is_the_deadline(remaining_s, timeout_s, expected):
    assert is_out_of_time(remaining_s, timeout_s) is expected
