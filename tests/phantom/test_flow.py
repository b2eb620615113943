from dataclasses import replace

import numpy as np
import pytest

from cag_utils.phantom.anatomy.growth import grow_tree
from cag_utils.phantom.anatomy.lesions import SLOWING, downstream, fill_backwards, narrow
from cag_utils.phantom.imaging import contrast
from cag_utils.phantom.imaging.contrast import arrival_s, concentration
from cag_utils.phantom.imaging.pose import pose_tree
from cag_utils.phantom.imaging.render import film
from cag_utils.phantom.imaging.shot import draw_shot
from cag_utils.phantom.labels import VISIBLE
from cag_utils.phantom.subject import draw_subject
from tests.phantom.world import quiet, rng


def bolus(laterality="LCA", **changes):
    speed, pulsatility = contrast.SPEED_MM_S[laterality], 0.55 if laterality == "LCA" else 0.15
    return replace(contrast.Injection(0.0, 9.0, 1.0, speed, pulsatility), **changes)


def end_of(tree, *names):
    """The farthest last point of these branches."""
    ends = [np.flatnonzero(tree.branch == tree.names.index(x))[-1] for x in names]
    return max(ends, key=lambda point: tree.path_mm[point])


def timi_frames(tree, landmark, phase):
    """Frames at 30/s from contrast in the ostium to contrast at a landmark."""
    flow = bolus(tree.laterality)
    clock = flow.clock(np.arange(120) / 30, 0.85, phase)
    seen = concentration(clock, tree, flow)[:, [0, landmark]] >= VISIBLE
    assert seen.any(axis=0).all()
    return int(np.diff(seen.argmax(axis=0))[0])


def test_healthy_arteries_fill_in_gibsons_frame_counts():
    # Gibson et al. 1996: LAD 36.2 to its end, LCX 22.2 to that of its longest branch, RCA 20.4 to
    # the first branch of the posterolateral artery
    counts = {"LAD": [], "LCX": [], "RCA": []}
    for seed in range(20):
        left, right = (grow_tree(rng(seed), side, fineness=0.0) for side in ("LCA", "RCA"))
        phase = seed / 20
        counts["LAD"].append(timi_frames(left, end_of(left, "LAD"), phase))
        counts["LCX"].append(timi_frames(left, end_of(left, "LCX", "OM", "PL"), phase))
        counts["RCA"].append(timi_frames(right, right.attached[right.names.index("PL1")], phase))
    for artery, published in {"LAD": 36.2, "LCX": 22.2, "RCA": 20.4}.items():
        assert np.mean(counts[artery]) == pytest.approx(published, rel=0.15), artery


@pytest.mark.parametrize(("percent", "slower"), [(25, 1.0), (75, 1.0), (90, 1.5), (99, 3.5)])
def test_flow_slows_behind_a_tight_stenosis_by_hand(percent, slower):
    healthy = grow_tree(rng(1), "LCA")
    sick, lesion = narrow(rng(1), healthy, 6, percent, "focal", 0.0)
    last = end_of(healthy, "LAD")
    before = healthy.path_mm[lesion.index]
    beyond = healthy.path_mm[last] - before
    got, usual = arrival_s(sick, 100.0), arrival_s(healthy, 100.0)
    assert got[last] == pytest.approx((before + slower * beyond) / 100)
    assert got[lesion.index] == pytest.approx(before / 100)
    other = healthy.branch == healthy.names.index("LCX")
    np.testing.assert_array_equal(got[other], usual[other])


def test_a_ninety_nine_percent_stenosis_fills_clearly_late():
    healthy = grow_tree(rng(2), "RCA")
    last = healthy.attached[healthy.names.index("PL1")]
    usual = timi_frames(healthy, last, 0.0)
    late = [timi_frames(narrow(rng(2), healthy, 2, p, "focal")[0], last, 0.0) for p in (75, 90, 99)]
    assert late[0] == usual and usual + 3 <= late[1] < late[2] and late[2] > 1.8 * usual
    assert SLOWING.keys() == {90, 99}


def occluded(collateral, segment=7, side="LCA"):
    """A tree whose occlusion has, or lacks, collaterals."""
    healthy = grow_tree(rng(5), side)
    for seed in range(40):
        sick, lesion = narrow(rng(seed), healthy, segment, 100, "focal", 0.0)
        if lesion.collateral == collateral:
            return sick, lesion
    raise AssertionError(f"no occlusion with collateral {collateral} in 40 draws")


def test_nothing_passes_an_occlusion_without_collaterals():
    sick, lesion = occluded(False)
    behind = downstream(sick, lesion.index)
    assert (arrival_s(sick, 150.0)[behind] == contrast.NEVER).all()
    flow = bolus()
    filled = concentration(np.linspace(0, 6, 60), sick, flow)
    assert filled[:, behind].max() == 0 and filled[-1, ~behind].min() > 0.9


def test_collaterals_fill_the_far_end_first_late_and_faintly():
    sick, lesion = occluded(True)
    own = sick.branch == sick.branch[lesion.index]
    behind = np.flatnonzero(downstream(sick, lesion.index) & own)
    arrival = arrival_s(sick, contrast.SPEED_MM_S["LCA"])
    assert (np.diff(arrival[behind]) < 0).all()  # towards the occlusion it comes later
    assert arrival[behind].min() > arrival[sick.main & sick.open].max()
    strongest = concentration(np.linspace(0, 8, 80), sick, bolus())[:, behind].max()
    assert 0.8 * contrast.COLLATERAL_STRENGTH < strongest <= contrast.COLLATERAL_STRENGTH
    assert not sick.open[behind].any()


def test_an_occluded_proximal_rca_always_has_collaterals_and_others_in_a_share():
    right, left = grow_tree(rng(0), "RCA"), grow_tree(rng(0), "LCA")
    assert all(narrow(rng(s), right, 1, 100)[1].collateral for s in range(30))
    share = np.mean([narrow(rng(s), left, 7, 100)[1].collateral for s in range(120)])
    assert 0.45 < share < 0.75
    assert not narrow(rng(0), left, 7, 99)[1].collateral


def test_a_bed_of_no_points_stays_as_it_is():
    healthy = grow_tree(rng(0), "RCA")
    last = end_of(healthy, "CB")
    assert not downstream(healthy, last).any()
    assert fill_backwards(rng(0), healthy, last) is healthy


def test_every_reached_point_lies_in_exactly_one_bed_and_washes_out_later_farther_away():
    for collateral in (True, False):
        sick, lesion = occluded(collateral)
        count = sum(bed.points.astype(int) for bed in contrast.beds(sick, 2.0))
        np.testing.assert_array_equal(count, collateral | ~downstream(sick, lesion.index))
    flow = bolus(duration_s=2.0, pulsatility=0.0)
    tree = grow_tree(rng(3), "LCA")
    arrival = arrival_s(tree, flow.speed_mm_s)
    places = 0, end_of(tree, "LAD")
    near, far = (concentration(arrival[[p]] + 2.5, tree, flow)[0, p] for p in places)
    # half a second after the bolus passed; the ostium's bed is centred at 15 mm: 0.55 + 0.03 s
    assert near == pytest.approx(np.exp(-0.5 / 0.58), abs=1e-3) and far > near + 0.1
    washed = contrast.inlet(np.array(2.5), 2.0, washout_s=0.58)
    assert near == pytest.approx(float(washed), abs=1e-3)


def test_the_picture_darkens_where_and_when_the_truth_says():
    sick, lesion = occluded(True, segment=2, side="RCA")
    subject = draw_subject(rng(0), (1.0,))
    shot = draw_shot(rng(0), subject, sick, n_frames=60, frame_rate=15.0, size_px=192, view="LAO")
    flow = replace(shot.injection, start_s=0.2, duration_s=4.0, strength=1.1)
    look = replace(shot.look, photons=1e9, gain=110.0, level=150.0, sharpen=0.0, curve=1.0)
    shot = quiet(shot, injection=flow, look=look, phase=0.78, rr_s=1e6)
    pose = pose_tree(sick, shot)
    frames, truth = film(rng(2), subject, sick, shot, pose)
    behind = downstream(sick, lesion.index) & (sick.order == 0) & (sick.radius > 0.8)
    filled = concentration(pose.clock_s, sick, flow)[:, behind].mean(axis=1)
    u, v = np.rint(pose.u[0, behind]).astype(int), np.rint(pose.v[0, behind]).astype(int)
    seen = (u >= 0) & (u < 192) & (v >= 0) & (v < 192)
    darker = frames[0][v[seen], u[seen]].mean() - frames[:, v[seen], u[seen]].mean(axis=1)
    assert filled.max() > 0.3 and darker[filled > 0.3].min() > 2 * np.abs(darker[:5]).max() + 2
    assert np.corrcoef(filled, darker)[0, 1] > 0.9
    # what can fill along the vessels, and lies in the field, has filled
    assert truth.opacified.max() == pytest.approx(truth.in_field.max(), abs=0.02)
