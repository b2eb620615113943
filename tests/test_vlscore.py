import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cag_utils.vlscore import (
    MAX_AREA_UNIT,
    control_scores,
    score_cases,
    to_unit,
    triangle_area,
    vlscore,
    what_moves_it,
)
from tests.benchmarks.bench_vlscore import plain_area

numbers = st.floats(-10, 10, allow_nan=False, width=32)
triples = st.integers(1, 5).flatmap(
    lambda d: st.integers(1, 4).flatmap(lambda n: hnp.arrays(float, (3, n, d), elements=numbers))
)


def unit_triple(cos_ig: float, cos_ir: float, cos_gr: float) -> list[np.ndarray]:
    """Three unit vectors with these cosines."""
    gram = np.array([[1, cos_ig, cos_ir], [cos_ig, 1, cos_gr], [cos_ir, cos_gr, 1]])
    return [row[None] for row in np.linalg.cholesky(gram)]


def test_a_right_triangle_has_half_the_product_of_its_legs():
    corners = [[3.0, 0.0]], [[0.0, 0.0]], [[0.0, 4.0]]
    assert triangle_area(*map(np.array, corners)).tolist() == [6.0]


@pytest.mark.parametrize(
    "cos_gr, area, score", [(0.95, 0.2107, 0.838), (0.80, 0.4123, 0.683), (0.60, 0.5657, 0.565)]
)
def test_hand_worked_unit_vectors(cos_gr, area, score):
    found = score_cases(*unit_triple(0.1, 0.1, cos_gr)).iloc[0]
    assert found["area"] == pytest.approx(area, abs=5e-5)
    assert found["vlscore"] == pytest.approx(score, abs=5e-4)


def test_the_theoretical_maximum_is_the_equilateral_triangle():
    angles = np.array([0, 2, 4]) * np.pi / 3
    i, g, r = np.stack([np.cos(angles), np.sin(angles)], 1)[:, None]
    assert triangle_area(i, g, r)[0] == pytest.approx(MAX_AREA_UNIT) == 1.299038105676658
    assert score_cases(i, g, r)["vlscore"][0] == pytest.approx(0, abs=1e-12)


@given(triples)
def test_the_area_does_not_depend_on_which_corner_is_which(points):
    areas = [triangle_area(*points[list(order)]) for order in ([0, 1, 2], [2, 0, 1], [1, 0, 2])]
    scale = 1 + np.abs(points).max() ** 2
    np.testing.assert_allclose(areas[1], areas[0], atol=1e-6 * scale)
    np.testing.assert_allclose(areas[2], areas[0], atol=1e-6 * scale)


@given(triples)
def test_agrees_with_the_plain_loop(points):
    plain = [plain_area(*(x.tolist() for x in case)) for case in points.swapaxes(0, 1)]
    scale = 1 + np.abs(points).max() ** 2
    np.testing.assert_allclose(triangle_area(*points), plain, atol=1e-6 * scale)


@given(triples, st.floats(0.1, 10))
def test_scores_stay_between_0_and_1_and_more_room_never_lowers_them(points, max_area):
    points = points + np.array([20.0, -20.0, 30.0])[:, None, None]  # no zero vectors
    found = score_cases(*points, normalise=True, max_area=max_area)
    assert found["vlscore"].between(0, 1).all() and (found["area"] <= MAX_AREA_UNIT + 1e-9).all()
    roomier = score_cases(*points, normalise=True, max_area=2 * max_area)
    assert (roomier["vlscore"] >= found["vlscore"]).all()


@given(triples)
def test_a_report_equal_to_the_truth_scores_1_whatever_the_picture(points):
    i, g, _ = points
    assert (score_cases(i, g, g, normalise=False)["vlscore"] == 1).all()


def test_float32_in_the_printed_form_is_wrong_where_float64_is_right():
    # Two near-equal reports: the area is half |i-g| times the distance of r from that line.
    rng = np.random.default_rng(0)
    i, g = (to_unit(rng.normal(size=(1, 512))) for _ in range(2))
    away = rng.normal(size=(1, 512))
    along = to_unit(i - g)
    away = to_unit(away - (away @ along.T) * along)
    true = 7e-5
    r = g + away * 2 * true / np.linalg.norm(i - g)
    assert triangle_area(i, g, r)[0] == pytest.approx(true, rel=1e-6)
    a, b = (i - g).astype(np.float32)[0], (i - r).astype(np.float32)[0]
    radicand = (a @ a) * (b @ b) - (a @ b) ** 2
    naive = 0.5 * math.sqrt(max(float(radicand), 0.0))
    assert abs(naive - true) > 0.1 * true


def test_without_normalisation_lengths_count():
    i, g, r = unit_triple(0.1, 0.1, 0.8)
    doubled = score_cases(2 * i, 2 * g, 2 * r, normalise=False, max_area=2)
    assert doubled["area"][0] == pytest.approx(4 * 0.4123, abs=2e-4)
    assert score_cases(2 * i, 2 * g, 2 * r)["area"][0] == pytest.approx(0.4123, abs=5e-5)


def test_controls_fall_with_the_wrong_report_and_hardly_with_the_wrong_picture():
    rng = np.random.default_rng(1)
    i, g = rng.normal(size=(2, 40, 64))
    r = g + 0.5 * rng.normal(size=g.shape)
    found = control_scores(i, g, r, blank=np.ones(64))
    mean = {name: rows["vlscore"].mean() for name, rows in found.items()}
    assert mean["as written"] - mean["shuffled reports"] > 0.1
    assert abs(mean["as written"] - mean["shuffled images"]) < 0.05
    assert abs(mean["as written"] - mean["blank image"]) < 0.05
    wrong = score_cases(np.roll(i, 20, axis=0), g, r)
    np.testing.assert_allclose(found["shuffled images"], wrong)


def test_it_is_moved_by_the_texts_and_not_by_the_picture():
    rng = np.random.default_rng(2)
    i, g = rng.normal(size=(2, 200, 64))
    r = g + rng.uniform(0.1, 1.5, (200, 1)) * rng.normal(size=g.shape)
    found = what_moves_it(i, g, r)
    assert found["text_text"] < -0.9 and abs(found["image_truth"]) < 0.5
    assert math.isnan(what_moves_it(i[:2], g[:2], r[:2])["text_text"])


@pytest.mark.parametrize(
    "call, match",
    [
        (lambda: triangle_area(np.ones((2, 3)), np.ones((2, 3)), np.ones((1, 3))), "one shape"),
        (lambda: triangle_area(*np.full((3, 1, 2), np.nan)), "NaN"),
        (lambda: to_unit(np.zeros((1, 2))), "1 vectors are zero"),
        (lambda: vlscore(np.ones(1), 0), "max_area"),
        (lambda: vlscore(np.array([-1.0])), "cannot be negative"),
        (lambda: control_scores(*np.ones((3, 1, 2)), np.ones(2)), "at least 2"),
    ],
)
def test_refuses_what_it_cannot_score(call, match):
    with pytest.raises(ValueError, match=match):
        call()
