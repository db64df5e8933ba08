"""What makes a fuzz run fail."""

import pytest

from fuzz.requests import SERVICES, methods_of, path_of
from fuzz.runner import Report


def good_report() -> Report:
    report = Report(asked=50_000, calls=50_000)
    for service in SERVICES:
        report.rss_mib[service] = [100.0, 140.0, 150.0, 150.0, *[155.0] * 7]
        report.statuses[service].update(OK=1_000, INVALID_ARGUMENT=8_900, CONNECTION=100)
        for method in methods_of(service):
            report.methods[path_of(method)]["OK"] = 1
    return report


def test_a_good_run_is_clean():
    assert good_report().is_clean


@pytest.mark.parametrize(
    "mutate",
    [
        lambda report: report.died.append("codec"),
        lambda report: report.broken.append("/csm.codec.v1.CodecService/Decode: INTERNAL"),
        lambda report: report.logged.append("codec: Traceback"),
        lambda report: report.rss_mib["codec"].append(250.0),
        lambda report: setattr(report, "lost", 7),
        lambda report: setattr(report, "calls", 49_999),
        lambda report: report.statuses["codec"].update(OK=-900),
        lambda report: report.statuses["codec"].update(CONNECTION=2_000),
        lambda report: report.methods["/csm.backbone.v1.BackboneService/Generate"].clear(),
        lambda report: report.statuses.pop("codec"),
    ],
    ids=("died", "broken", "logged", "grew", "lost", "too few", "unserved", "broken off", "method unserved", "silent"),
)
def test_one_fault_fails_it(mutate):
    report = good_report()
    mutate(report)
    assert not report.is_clean, report.lines()


@pytest.mark.parametrize(("served", "clean"), [(0, False), (1, True)])
def test_a_run_of_few_calls_beside_tests_has_served_one_at_least(served, clean):
    report = good_report()
    report.asked = report.calls = 5_000
    report.statuses["codec"].update(OK=served - 1_000)
    assert report.is_clean is clean, report.lines()
