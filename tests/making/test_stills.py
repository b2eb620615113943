"""Pretraining stills: labels by hand, a cache, and nobody of the study."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cag_utils.making import stills as drawn
from cag_utils.making.cnn import STREAM as SCENES
from cag_utils.making.tower import move
from cag_utils.making.twins import IMAGE_PX, PATCH_PX
from cag_utils.phantom.cohort import STREAMS
from cag_utils.phantom.stills import STREAM, still
from cag_utils.segments import segments_of
from tests.making.world import no_points, toy_stills


def three_by_three():
    """Two 30 px pictures of 3 x 3 patches of 10 px; the second shows one point."""
    points = [[2, 3], [4, 8], [9, 9], [15, 5], [25, 29], [-1, 5], [30, 5], [12, 12]]
    return replace(
        no_points(np.zeros((2, 30, 30), np.uint8), np.zeros((2, 15), np.uint8), np.ones(2, bool)),
        counts=np.array([7, 1]), points=np.array(points, np.float32),
        segments=np.array([5, 6, 6, 6, 11, 13, 13, 9], np.uint8),
        width_px=np.array([3, 5, 4, 2, 1, 9, 9, 6], np.float32),
        narrowed=np.array([0, 0.2, 0.7, 0, 0.5, 1, 1, 0], np.float32),
    )  # fmt: skip


def test_a_patient_is_shown_several_times_and_held_out_ones_once():
    alone, again, other = (still(n, 64, patient=m) for n, m in ((8, None), (8, 8), (9, 8)))
    assert np.array_equal(alone.image, again.image) and not np.array_equal(other.image, alone.image)
    first, second = drawn.make_stills([8, 9], 64), still(9, 64, **asked(9), patient=8)
    assert np.array_equal(first.images[1], second.image)
    seed = drawn.FIRST_HELD_OUT_SEED + 1
    assert np.array_equal(
        drawn.make_stills([seed], 64).images[0], still(seed, 64, **asked(seed)).image
    )


def asked(seed):
    return {"lesion": drawn._wanted_lesion(seed)} | drawn._moment(seed)


def test_patch_labels_by_hand():
    found = drawn.patch_labels(three_by_three(), [0, 1], 3)
    # two points of #6 outvote one of #5; what lies outside the picture counts nowhere
    assert found["segment"].tolist() == [[6, 6, 0, 0, 0, 0, 0, 0, 11], [0, 0, 0, 0, 9, 0, 0, 0, 0]]
    assert found["width_px"][0].tolist() == [5, 2, 0, 0, 0, 0, 0, 0, 1]
    np.testing.assert_allclose(found["narrowed"][0], [0.7, 0, 0, 0, 0, 0, 0, 0, 0.5])
    alone = drawn.patch_labels(three_by_three(), [1], 3)
    assert np.array_equal(alone["segment"][0], found["segment"][1])
    # and they move with the picture
    down = np.array([[[1.0, 0, 0], [0, 1, 10]]])  # ten pixels, one patch
    found = drawn.patch_labels(three_by_three(), [0], 3, down)
    assert found["segment"].tolist() == [[0, 0, 0, 6, 6, 0, 0, 0, 0]]


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6))
def test_a_moved_pictures_points_stay_on_their_marks(seed):
    rng = np.random.default_rng(seed)
    picture = np.zeros((1, 64, 64), np.uint8)
    picture[0, 30:35, 24:29] = 255  # a square about (26, 32)
    moved, maps = move(rng, picture)
    column, row = maps[0] @ [26, 32, 1]
    rows, columns = np.nonzero(moved[0] > 128)
    assert abs(columns.mean() - column) < 1 and abs(rows.mean() - row) < 1


def test_stills_know_their_lesions_and_vessels():
    stills = toy_stills()
    assert len(stills) == 8 and stills.images.shape == (8, IMAGE_PX, IMAGE_PX)
    assert stills.laterality(0) == "LCA" and stills.laterality(1) == "RCA"
    assert stills.lesions(1) == [{"segment": 2, "percent": 90, "artery": "RCA"}]
    middle = (IMAGE_PX // PATCH_PX) // 2 * (IMAGE_PX // PATCH_PX + 1)
    found = drawn.patch_labels(stills, [0], IMAGE_PX // PATCH_PX)
    assert found["segment"][0, middle] == 7 and found["narrowed"][0, middle] == np.float32(0.9)
    assert stills.seen(0) == (5,)  # the bar; a point or two are no vessel
    facts = stills.facts(np.random.default_rng(0), 0)
    assert facts.laterality == "LCA" and facts.view == "LAO caudal" and facts.seen == (5,)
    assert facts.lesions == ({"segment": 7, "percent": 90, "artery": "LAD"},)


def test_real_stills_are_cached_independent_of_workers_and_nobody_of_the_study(tmp_path):
    kept = drawn.cached_stills(tmp_path, 5, 2, 120)
    again = drawn.cached_stills(tmp_path, 5, 2, 120)
    fresh = drawn.make_stills([5, 6], 120)
    for name in vars(kept):
        assert np.array_equal(getattr(kept, name), getattr(again, name))
        assert np.array_equal(getattr(kept, name), getattr(fresh, name))
    assert len(list(tmp_path.iterdir())) == 1
    alone = kept.part(np.array([1]))
    assert alone.counts.sum() == len(alone.points) == kept.counts[1]
    assert np.array_equal(alone.points[-1], kept.points[-1])
    shown = segments_of(kept.laterality(0))
    rows, _ = kept.rows(np.array([0]))
    assert set(kept.segments[rows].tolist()) <= set(shown)
    assert kept.counts.sum() == len(kept.points) == len(kept.width_px) == len(kept.narrowed)
    worst = [max((x["percent"] for x in kept.lesions(i)), default=0) for i in (0, 1)]
    assert 100 * kept.narrowed.max() == pytest.approx(max(worst), abs=1)
    # the first word of every seed: two generators with another first word share nothing
    assert len({STREAM, SCENES, *STREAMS.values()}) == 4
    assert drawn.FIRST_SEED + 1_000_000 < drawn.FIRST_HELD_OUT_SEED
