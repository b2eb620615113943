import math

import pytest
from pydicom.dataset import Dataset

from cag_utils.header_facts import frame_time_ms, number, numbers, spacing_at_isocentre_mm


def header(**facts):
    dataset = Dataset()
    for name, value in facts.items():
        setattr(dataset, name, value)
    return dataset


@pytest.mark.parametrize(
    "facts, want",
    [
        ({"FrameTime": 66.5, "CineRate": 30}, 66.5),
        ({"FrameTimeVector": [0, 60, 70, 80]}, 70),
        ({"FrameTime": 0, "FrameTimeVector": [0], "CineRate": 15}, 1000 / 15),
        ({"RecommendedDisplayFrameRate": 10}, 100),
    ],
)
def test_frame_time_has_four_sources_in_order(facts, want):
    assert frame_time_ms(header(**facts)) == pytest.approx(want)


def test_spacing_is_that_of_the_detector_over_the_magnification():
    spacing = {"ImagerPixelSpacing": [0.3, 0.3]}
    distances = {"DistanceSourceToDetector": 1200, "DistanceSourceToPatient": 800}
    assert spacing_at_isocentre_mm(header(**spacing, **distances)) == pytest.approx(0.2)
    factor = {"EstimatedRadiographicMagnificationFactor": 1.2}
    got = spacing_at_isocentre_mm(header(**spacing, **distances, **factor))
    assert got == pytest.approx(0.25)  # the header's own factor comes first


@pytest.mark.parametrize(
    "facts",
    [
        {},
        {"ImagerPixelSpacing": [0.3, 0.3]},
        {"ImagerPixelSpacing": [0.3, 0.3], "DistanceSourceToPatient": 0},
        {"DistanceSourceToDetector": 1200, "DistanceSourceToPatient": 800},
        {"ImagerPixelSpacing": [0, 0], "EstimatedRadiographicMagnificationFactor": 1.2},
    ],
)
def test_what_cannot_be_known_is_nan(facts):
    assert math.isnan(spacing_at_isocentre_mm(header(**facts)))
    assert math.isnan(frame_time_ms(header(**facts)))


def test_an_unreadable_number_is_no_number():
    facts = header(PatientID="x", CineRate="")
    assert numbers(facts, "PatientID").size == 0 and math.isnan(number(facts, "CineRate"))
