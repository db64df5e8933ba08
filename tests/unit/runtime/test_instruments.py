"""Values that are read when asked for: of live owners only, summed."""

import gc

from services.runtime import instruments
from services.runtime.admission import Admission

ACTIVE, CAPACITY = "csm.watermark.streams.active", "csm.watermark.streams.capacity"


def values(measured):
    return {name: points[0].value for name, points in measured.items() if name in (ACTIVE, CAPACITY)}


def test_places_are_told_for_as_long_as_they_exist(metrics):
    one, two = Admission("streams", 4), Admission("streams", 8)
    instruments.observe_admission(one, "csm.watermark.streams")
    instruments.observe_admission(two, "csm.watermark.streams")
    with one.enter(), two.enter():
        assert values(metrics()) == {ACTIVE: 2, CAPACITY: 12}
    del one
    gc.collect()
    assert values(metrics()) == {ACTIVE: 0, CAPACITY: 8}
    del two
    gc.collect()
    assert values(metrics()) == {}


def test_a_place_is_given_back_when_the_work_fails(metrics):
    places = Admission("streams", 4)
    instruments.observe_admission(places, "csm.watermark.streams")
    try:
        with places.enter():
            raise RuntimeError
    except RuntimeError:
        pass
    assert values(metrics())[ACTIVE] == 0
