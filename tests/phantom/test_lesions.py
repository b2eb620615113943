from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates

from cag_utils.phantom.anatomy import lesions as disease
from cag_utils.phantom.anatomy.atlas import DOMINANCES
from cag_utils.phantom.anatomy.growth import grow_tree
from cag_utils.phantom.imaging.carm import CArm
from cag_utils.phantom.imaging.contrast import NEVER
from cag_utils.phantom.imaging.pose import pose_tree
from cag_utils.phantom.imaging.render import film
from cag_utils.phantom.imaging.shot import draw_shot
from cag_utils.phantom.subject import draw_subject
from cag_utils.segments import artery_of, laterality_of
from tests.phantom.world import quiet, rng

PIXEL_MM, SIZE_PX = 0.3, 256
LEAST_SCATTER = 0.12  # of the primary: what the detector keeps when a look asks for none


def lost_percent(healthy, sick):
    return 100 * (1 - sick.radius / healthy.radius)


def one_vessel(tree, name):
    """A vessel of a tree without its side branches, so that nothing lies in front of it."""
    own = tree.branch == tree.names.index(name)
    columns = "points radius segment order path_mm main open delay_mm narrowed".split()
    cut = {column: getattr(tree, column)[own] for column in columns}
    alone = {"branch": np.zeros(own.sum(), int), "names": (name,), "attached": np.array([-1])}
    return replace(tree, **cut, **alone)


def side_view(tree, index):
    """An arm with 0.3 mm pixels at the lesion that sees its vessel from the side."""
    near = np.abs(tree.path_mm - tree.path_mm[index]) < 10
    ahead = np.diff(tree.points[near], axis=0)
    ahead = ahead / np.linalg.norm(ahead, axis=1)[:, None]
    arms = [
        CArm(a, b, 1100.0, 780.0, PIXEL_MM * 1100 / 780, SIZE_PX, tuple(tree.points[index]))
        for a in range(-80, 81, 8)
        for b in range(-60, 61, 8)
    ]
    return min(arms, key=lambda arm: np.abs(ahead @ arm.axes[2]).max())


def shoot(tree, arm, clock_s):
    """One frame of the real renderer, without noise to speak of; its logarithmic gain; the pose."""
    subject = draw_subject(rng(1), (1.0,))
    shot = draw_shot(rng(1), subject, tree, n_frames=1, size_px=SIZE_PX)
    look = replace(
        shot.look, gain=110.0, level=170.0, compression=1.0, photons=1e12, electronic=0.0,
        scatter=0.0, glare=0.0, sharpen=0.0, curve=1.0, shutters=(0.0,) * 4, field="box", wedge=0.0,
    )  # fmt: skip
    bolus = replace(shot.injection, strength=1.0, duration_s=5.0)
    shot = quiet(shot, arm=arm, look=look, phase=0.0, injection=bolus)
    pose = replace(pose_tree(tree, shot), clock_s=np.array([clock_s]))
    frames, _ = film(rng(1), subject, tree, shot, pose)
    return frames[0].astype(float), look.gain, pose


def measured_percent(tree, lesion, arm):
    """Percent diameter stenosis by densitometry, from a filled frame and a mask before it."""
    filled, gain, pose = shoot(tree, arm, 4.5)
    mask, _, _ = shoot(tree, arm, -NEVER)
    through = np.exp((filled - mask) / gain) * (1 + LEAST_SCATTER) - LEAST_SCATTER
    reach = lesion.length_mm / 2 + 12
    at = np.flatnonzero(np.abs(tree.path_mm - tree.path_mm[lesion.index]) <= reach)
    middle = np.stack([pose.u[0, at], pose.v[0, at]], axis=1)
    ahead = np.gradient(middle, axis=0)
    ahead = ahead / np.linalg.norm(ahead, axis=1)[:, None]
    off = np.arange(-20, 20.1, 0.25)  # pixels
    u, v = middle[:, :1] - off * ahead[:, 1:], middle[:, 1:] + off * ahead[:, :1]
    across = map_coordinates(-np.log(np.clip(through, 1e-3, None)), [v, u], order=1)
    across = across - np.median(across[:, np.abs(off) > 12], axis=1, keepdims=True)
    area = np.clip(across[:, np.abs(off) <= 10].sum(axis=1), 0, None)
    diameter = np.sqrt(area)  # of a round lumen, in some unit
    along = tree.path_mm[at] - tree.path_mm[lesion.index]
    healthy = np.abs(along) > lesion.length_mm / 2
    reference = np.polyval(np.polyfit(along[healthy], diameter[healthy], 1), 0)
    return 100 * (1 - np.median(diameter[np.abs(along) <= 1.01]) / reference)


@pytest.mark.parametrize("eccentricity", [0.0, 0.7])
@pytest.mark.parametrize(
    ("segment", "vessel", "seed"), [(2, "RCA", 3), (6, "LAD", 4), (11, "LCX", 5)]
)
def test_a_rendered_stenosis_measures_what_it_says(segment, vessel, seed, eccentricity):
    healthy = one_vessel(grow_tree(rng(seed), laterality_of(segment), fineness=0.0), vessel)
    for percent in (25, 50, 75, 90):
        sick, lesion = disease.narrow(rng(5), healthy, segment, percent, "focal", eccentricity)
        arm = side_view(sick, lesion.index)
        assert measured_percent(sick, lesion, arm) == pytest.approx(percent, abs=5), percent
    if (segment, eccentricity) == (2, 0.0):  # calibre noise alone
        assert measured_percent(healthy, lesion, side_view(healthy, lesion.index)) < 8


def test_an_eccentric_lesion_keeps_one_wall_and_a_concentric_one_its_axis():
    healthy = grow_tree(rng(7), "LCA")
    round_, lesion = disease.narrow(rng(1), healthy, 7, 75, "focal", 0.0)
    np.testing.assert_array_equal(round_.points, healthy.points)
    sided, lesion = disease.narrow(rng(1), healthy, 7, 75, "focal", 1.0)
    moved = np.linalg.norm(sided.points - healthy.points, axis=1)
    np.testing.assert_allclose(moved, healthy.radius - sided.radius, atol=1e-12)
    lost = healthy.radius[lesion.index] - lesion.reference_mm / 8
    assert moved[lesion.index] == pytest.approx(lost)


def necks(tree, lesion, sick, depth_percent):
    """Runs of points along the lesion's vessel that lost at least so much."""
    own = tree.branch == tree.branch[lesion.index]
    deep = lost_percent(tree, sick)[own] >= depth_percent
    return int((np.diff(np.r_[0, deep.astype(int)]) == 1).sum())


@pytest.mark.parametrize("seed", range(3))
def test_a_tandem_has_two_necks_and_the_worse_one_counts(seed):
    healthy = grow_tree(rng(seed), "LCA")
    sick, lesion = disease.narrow(rng(seed), healthy, 7, 90, "tandem", 0.0)
    assert lesion.kind == "tandem" and lesion.length_mm > 18
    assert necks(healthy, lesion, sick, 30) == 2
    assert 2 * sick.radius[lesion.index] == pytest.approx(0.1 * lesion.reference_mm)
    apart = np.abs(healthy.path_mm - healthy.path_mm[lesion.index]) > 6
    assert lost_percent(healthy, sick)[apart].max() < 82  # 85 % of 90 is 76.5, and calibre noise
    assert set(healthy.segment[lost_percent(healthy, sick) > 40]) == {7}


def test_a_diffuse_lesion_is_longer_than_a_focal_one():
    healthy = grow_tree(rng(2), "RCA")
    focal, short = disease.narrow(rng(3), healthy, 2, 75, "focal", 0.0)
    diffuse, long = disease.narrow(rng(3), healthy, 2, 75, "diffuse", 0.0)
    assert 20 <= long.length_mm <= 40 and 8 <= short.length_mm <= 16
    tight = [(lost_percent(healthy, tree) > 60).sum() for tree in (focal, diffuse)]
    assert tight[1] > 1.5 * tight[0]
    assert set(healthy.segment[diffuse.radius < healthy.radius]) == {2}


@pytest.mark.parametrize(("segment", "names"), [(7, {"D1", "D2"}), (5, {"LAD", "LCX"})])
def test_a_bifurcation_lesion_narrows_the_branch_too(segment, names):
    found = set()
    for seed in range(8):
        healthy = grow_tree(rng(seed), "LCA")
        sick, lesion = disease.narrow(rng(seed), healthy, segment, 75, "bifurcation", 0.0)
        if lesion.kind != "bifurcation":
            continue
        hit = np.unique(healthy.branch[lost_percent(healthy, sick) > 50])
        own = healthy.branch[lesion.index]
        assert own in hit and len(hit) >= 2
        [branch] = np.flatnonzero(healthy.attached == lesion.index + 1)[:1]
        ostium = np.flatnonzero(healthy.branch == branch)[0]
        assert lost_percent(healthy, sick)[ostium] == pytest.approx(75, abs=1e-6)
        found |= {healthy.names[branch] for branch in hit}
    assert names & found


def test_a_segment_without_room_or_branch_gets_a_focal_lesion():
    short = grow_tree(rng(0), "LCA")  # its left main is far shorter than 24 mm
    assert disease.narrow(rng(0), short, 5, 50, "tandem")[1].kind == "focal"
    alone = one_vessel(grow_tree(rng(0), "RCA", fineness=0.0), "RCA")
    assert disease.narrow(rng(0), alone, 2, 50, "bifurcation")[1].kind == "focal"


@given(
    st.integers(0, 10_000), st.sampled_from(DOMINANCES),
    st.sampled_from(list(disease.SEGMENT_WEIGHTS)),
    st.sampled_from(list(disease.KIND_SHARES)), st.sampled_from([25, 50, 75, 90, 99, 100]),
)  # fmt: skip
@settings(max_examples=15, deadline=None)
def test_any_lesion_keeps_its_percentage_and_its_tree(seed, dominance, segment, kind, percent):
    if dominance not in disease.ONLY_IN.get(segment, (dominance,)):
        return
    healthy = grow_tree(rng(seed), laterality_of(segment), dominance)
    sick, lesion = disease.narrow(rng(seed), healthy, segment, percent, kind)
    stenosis = 100 * (1 - 2 * sick.radius[lesion.index] / lesion.reference_mm)
    assert stenosis == pytest.approx(percent, abs=1e-6)
    assert healthy.segment[lesion.index] == lesion.segment == segment
    assert (sick.radius >= 0).all() and (sick.radius <= healthy.radius).all()
    assert np.isfinite(sick.points).all()
    assert sick.lesions == (lesion,) and lesion.shape()["segment"] == segment
    known = {"segment": segment, "percent": percent, "artery": artery_of(segment)}
    assert lesion.as_dict() == known
    assert 100 * (1 - sick.radius / healthy.radius).max() == pytest.approx(percent, abs=13)
    assert sick.open.all() or percent == 100
    assert lesion.collateral <= (percent == 100)


def test_a_second_lesion_refers_to_the_healthy_vessel():
    healthy = grow_tree(rng(4), "LCA")
    once, first = disease.narrow(rng(1), healthy, 6, 75, "diffuse", 0.0)
    alone, expected = disease.narrow(rng(2), healthy, 7, 50, "focal", 0.0)
    twice, second = disease.narrow(rng(2), once, 7, 50, "focal", 0.0, healthy=healthy)
    assert second == expected and twice.lesions == (first, second)
    np.testing.assert_allclose(twice.radius, np.minimum(once.radius, alone.radius))


def test_every_drawn_segment_exists_in_every_heart():
    for seed in range(5):
        for dominance in DOMINANCES:
            both = ("LCA", "RCA")
            trees = {side: grow_tree(rng(seed), side, dominance, fineness=0.0) for side in both}
            for segment in disease.SEGMENT_WEIGHTS:
                size = len(trees[laterality_of(segment)].points_of(segment))
                assert size >= 6 or dominance not in disease.ONLY_IN.get(segment, (dominance,))


def test_dominance_decides_about_segments_4_and_15_and_the_left_main_is_never_occluded():
    def drawn(dominance, count=400):
        shares = (0, 0, 0, 0, 1.0)
        return [x for s in range(count) for x in disease.draw_lesions(rng(s), shares, dominance)]

    found = {dominance: {x["segment"] for x in drawn(dominance)} for dominance in DOMINANCES}
    assert found["right"] == found["balanced"] == set(range(1, 15))
    assert found["left"] == set(range(1, 16)) - {4}
    occluded = {x["segment"] for x in drawn("right", 900) if x["percent"] == 100}
    assert disease.NEVER_OCCLUDED == (5,) and occluded == set(range(1, 15)) - {5}


@pytest.mark.parametrize(("change", "match"), [
    ({"kind": "ring"}, "a lesion is one of"),
    ({"eccentricity": 1.2}, "eccentricity must be 0 to 1"),
    ({"percent": 60}, "grades are"),
    ({"segment": 4}, "has no segment 4"),
    ({"segment": 15}, "has no segment 15"),
])  # fmt: skip
def test_impossible_lesions_are_refused(change, match):
    with pytest.raises(ValueError, match=match):
        disease.narrow(rng(), grow_tree(rng(), "LCA"), **({"segment": 7, "percent": 50} | change))
