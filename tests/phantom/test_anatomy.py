from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cag_utils.phantom.anatomy import lesions as disease
from cag_utils.phantom.anatomy.atlas import RCA_OSTIUM_MM, spherical_mm
from cag_utils.phantom.anatomy.curves import march_epicardium, resample, smooth, waves
from cag_utils.phantom.anatomy.growth import grow_tree
from cag_utils.phantom.subject import diseased_tree, draw_subject
from cag_utils.segments import artery_of, laterality_of
from tests.phantom.world import rng


def tree(seed, laterality, dominance="right", **more):
    return grow_tree(rng(seed), laterality, dominance, **more)


@cache
def hearts(laterality):
    """The trees of many hearts."""
    return [tree(seed, laterality) for seed in range(24)]


def test_polar_coordinates_by_hand():
    # 1 cm straight ahead, straight to the left, straight up
    got = spherical_mm([1, 1, 1], [0, 90, 0], [0, 0, 90])
    np.testing.assert_allclose(got, [[0, 0, 10], [10, 0, 0], [0, 10, 0]], atol=1e-12)


def test_dominance_decides_who_supplies_the_posterior_descending_artery():
    left, right = tree(0, "LCA"), tree(0, "RCA")
    assert set(left.segment) == set(range(5, 15)) and set(right.segment) == {1, 2, 3, 4}
    for one, ostium_mm in ((left, 0), (right, RCA_OSTIUM_MM)):
        np.testing.assert_allclose(one.points[0], ostium_mm, atol=1e-9)
    assert 15 in tree(1, "LCA", "left").segment
    assert 4 not in tree(1, "RCA", "left").segment
    assert 15 not in tree(1, "LCA", "balanced").segment
    assert "PD" in tree(1, "RCA", "balanced").names
    assert "AV" not in tree(1, "RCA", "balanced").names


@pytest.mark.parametrize(
    ("laterality", "vessel", "mean_mm", "sd_mm"),
    # Dodge et al. 1992 (Circulation 86:232), abstract: right-dominant men
    [("LCA", "LM", 4.5, 0.5), ("LCA", "LAD", 3.7, 0.4), ("LCA", "LCX", 3.4, 0.5),
     ("RCA", "RCA", 3.9, 0.6)],
)  # fmt: skip
def test_proximal_calibres_lie_in_the_published_range(laterality, vessel, mean_mm, sd_mm):
    found = []
    for grown in hearts(laterality):
        own = np.flatnonzero(grown.branch == grown.names.index(vessel))
        found.append(2 * np.median(grown.radius[own[: len(own) // 6]]))
    assert abs(np.mean(found) - mean_mm) < 0.5 * sd_mm
    assert 0.2 * sd_mm < np.std(found) < 2 * sd_mm


def test_women_have_arteries_nine_percent_smaller():
    man, woman = tree(3, "RCA"), tree(3, "RCA", sex_scale=0.91)
    main = man.order == 0
    np.testing.assert_allclose(woman.radius[main], 0.91 * man.radius[main], atol=1e-8)


@given(
    st.integers(0, 10_000),
    st.sampled_from(["LCA", "RCA"]),
    st.sampled_from(["right", "balanced", "left"]),
)
@settings(max_examples=15, deadline=None)
def test_every_tree_is_connected_finite_and_positive(seed, laterality, dominance):
    grown = tree(seed, laterality, dominance)
    assert np.isfinite(grown.points).all() and (grown.radius > 0).all()
    gaps = np.linalg.norm(grown.points[grown.links + 1] - grown.points[grown.links], axis=1)
    assert 0 < gaps.min() and gaps.max() < 5  # mm; the wanted step is 1
    starts = np.r_[0, np.flatnonzero(np.diff(grown.branch)) + 1]
    for first, attached in zip(starts[1:], grown.attached[1:], strict=True):
        np.testing.assert_allclose(grown.points[first], grown.points[attached], atol=1e-9)
        assert attached < first
        assert grown.path_mm[first] == pytest.approx(grown.path_mm[attached])
    assert all(laterality_of(int(s)) == laterality for s in np.unique(grown.segment))


def test_a_cubic_through_points_of_a_line_stays_on_it():
    knots = np.array([[0.0, 0, 0], [3, 0, 0], [12, 0, 0]])
    points, values = resample(knots, np.array([3.0, 2.4, 0.6]), 1.0)
    np.testing.assert_allclose(points[:, 1:], 0)
    np.testing.assert_allclose(points[[0, -1]], knots[[0, -1]])
    np.testing.assert_allclose(values, 3 - 0.2 * np.linspace(0, 12, 12))


def test_smoothing_keeps_a_straight_line_and_calms_a_zigzag():
    line = np.linspace(0, 9, 10)[:, None] * np.array([[1.0, 2, 3]])
    np.testing.assert_allclose(smooth(line, 1.5), line, atol=1e-9)
    zigzag = line + np.array([[0, 1.0, 0]]) * (-1.0) ** np.arange(10)[:, None]
    assert np.abs(smooth(zigzag, 1.5) - line)[4:-4].max() < 0.05  # the ends are held


def test_waves_pass_through_their_random_values():
    normals = np.array([[0.0, 1, 2], [4, 5, 6], [0, 0, 0]])
    got = waves(normals, 5)
    np.testing.assert_allclose(got[::2], normals)
    np.testing.assert_allclose(got[1], [2, 3, 4])  # half way, smoothstep(1/2) = 1/2


def test_a_march_over_the_heart_keeps_its_step_and_leaves_a_cylinder_tangentially():
    axis = np.array([0.0, 0, 1])
    path = march_epicardium(
        np.array([30.0, 0, 10]), np.array([0.0, 1, 0]), np.zeros((5, 3)), 0.0, 0.0, 4.0,
        np.zeros(3), axis, 100.0,
    )  # fmt: skip
    np.testing.assert_allclose(np.linalg.norm(np.diff(path, axis=0), axis=1), 4.0)
    assert np.abs(np.hypot(path[:, 0], path[:, 1]) - 30).max() < 2.0


def test_a_total_occlusion_closes_everything_beyond_it_and_nothing_else():
    healthy = tree(8, "RCA")
    sick, lesion = disease.narrow(rng(2), healthy, 2, 100)
    assert healthy.open.all()
    np.testing.assert_array_equal(~sick.open, disease.downstream(healthy, lesion.index))
    posterior = healthy.branch == healthy.names.index("PD")
    conus = healthy.branch == healthy.names.index("CB")
    assert not sick.open[posterior].any() and sick.open[conus].all()
    open_sick, _ = disease.narrow(rng(2), healthy, 2, 99)
    assert open_sick.open.all()


@given(st.integers(0, 5_000))
@settings(max_examples=60, deadline=None)
def test_drawn_lesions_are_distinct_graded_and_at_most_two_a_side(seed):
    lesions = disease.draw_lesions(rng(seed), (0.1, 0.2, 0.3, 0.4), "right")
    segments = [x["segment"] for x in lesions]
    assert segments == sorted(set(segments)) and len(lesions) <= 3
    for side in ("LCA", "RCA"):
        assert sum(laterality_of(s) == side for s in segments) <= 2
    for x in lesions:
        assert x["percent"] in disease.GRADE_WEIGHTS and x["artery"] == artery_of(x["segment"])
        assert x["percent"] < 100 or x["segment"] not in disease.NEVER_OCCLUDED


@pytest.mark.parametrize(("call", "match"), [
    (lambda: tree(0, "LAD"), "laterality must be one of"),
    (lambda: tree(0, "LCA", "both"), "dominance must be one of"),
    (lambda: disease.draw_lesions(rng(), (0.5, 0.4), "right"), "must add up to 1"),
])  # fmt: skip
def test_bad_trees_and_shares_are_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_a_patients_lesions_sit_in_the_right_trees():
    for seed in range(12):
        generator = rng(seed)
        subject = draw_subject(generator, (0.0, 0.0, 0.5, 0.5))
        placed = []
        for side in ("LCA", "RCA"):
            grown, lesions = diseased_tree(generator, subject, side)
            placed += [x.as_dict() for x in lesions]
            assert all(grown.segment[x.index] == x.segment for x in lesions)
        assert sorted(placed, key=str) == sorted(subject.lesions, key=str)
