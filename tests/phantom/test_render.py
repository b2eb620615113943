from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cag_utils.phantom.anatomy.growth import grow_tree
from cag_utils.phantom.anatomy.lesions import narrow
from cag_utils.phantom.anatomy.tree import TWIG_ORDER
from cag_utils.phantom.imaging import pose as moving
from cag_utils.phantom.imaging.carm import ODD_DEG, VIEWS, CArm, aim, crop, draw_carm
from cag_utils.phantom.imaging.contrast import NEVER, Injection, arrival_s, concentration, inlet
from cag_utils.phantom.imaging.detector import TABLE_SIZE, TABLE_STEP, subject_contrast
from cag_utils.phantom.imaging.render import film
from cag_utils.phantom.imaging.shot import KINDS, draw_shot, panning
from cag_utils.phantom.imaging.splat import draw_discs, draw_tubes, link_steps
from cag_utils.phantom.labels import FrameTruth
from cag_utils.phantom.subject import draw_subject
from tests.phantom.world import quiet, rng

LEFT, HEAD, FRONT = np.eye(3)


def arm(primary=0.0, secondary=0.0):
    """Twofold magnification, 1 mm detector pixels, 101 px: pixel 50 is the middle."""
    return CArm(primary, secondary, 1000.0, 500.0, 1.0, 101)


def test_projections_by_hand():
    u, v, scale = arm().project(np.stack([0 * LEFT, 10 * LEFT, 10 * HEAD]))
    np.testing.assert_allclose([u, v, scale], [[50, 70, 50], [50, 50, 30], [2] * 3], atol=1e-9)
    # 100 mm to the back of the isocentre: 400 mm from the source, 2.5-fold
    u, _, scale = arm().project((10 * LEFT - 100 * FRONT)[None])
    assert scale[0] == pytest.approx(2.5) and u[0] == pytest.approx(75)
    # LAO 90: the detector on the left, so what is in front lies on the picture's left side
    u, v, scale = arm(primary=90).project(np.stack([10 * FRONT, 10 * HEAD, 100 * LEFT]))
    np.testing.assert_allclose([u, v], [[30, 50, 50], [50, 30, 50]], atol=1e-9)
    assert scale[2] == pytest.approx(1000 / 600)
    # cranial 90, from the head: the front of the chest is down
    u, v, _ = arm(secondary=90).project(np.stack([10 * LEFT, 10 * FRONT]))
    np.testing.assert_allclose([u, v], [[70, 50], [50, 70]], atol=1e-9)


@given(st.floats(-60, 60), st.floats(-45, 45))
def test_axes_are_a_right_handed_frame_and_signs_are_dicoms(primary, secondary):
    axes = arm(primary, secondary).axes
    np.testing.assert_allclose(axes @ axes.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(axes) == pytest.approx(1)
    assert np.sign(round(axes[2] @ LEFT, 9)) == np.sign(round(primary, 6)) or abs(primary) < 1e-4
    up = np.sign(round(axes[2] @ HEAD, 9))
    assert up == np.sign(round(secondary, 6)) or abs(secondary) < 1e-4


@given(st.floats(0, 100), st.floats(0, 100), st.floats(-30, 30))
@settings(max_examples=25)
def test_rays_and_projection_undo_each_other(u, v, angle):
    view = replace(arm(angle, -angle), isocentre_mm=(5.0, -3.0, 2.0), shift_px=(4.0, -7.0))
    source, ray = view.rays(np.array(u), np.array(v))
    got_u, got_v, _ = view.project((source + 640 * ray)[None])
    assert got_u[0] == pytest.approx(u, abs=1e-6) and got_v[0] == pytest.approx(v, abs=1e-6)


def test_aim_centres_an_artery_and_keeps_the_tip():
    points = rng().normal(0, 20, (200, 3)) + [30, -40, 20]
    aimed = aim(arm(20, 10), points)
    u, v, _ = aimed.project(points)
    np.testing.assert_allclose([np.percentile(w, [2, 98]).mean() for w in (u, v)], 50, atol=1e-6)
    assert aimed.magnification == 2 and aimed.isocentre_pixel_mm == 0.5
    tip = points.mean(axis=0, keepdims=True) + [0, 90, 0]
    wide = aim(arm(20, 10), points, tip)
    low = np.percentile(wide.project(points)[1], 98)
    assert (wide.project(tip)[1][0] + low) / 2 == pytest.approx(50)


@pytest.mark.parametrize("towards", range(4))
def test_crop_leaves_the_wanted_share(towards):
    points = rng(1).normal(0, 10, (400, 3))
    cropped = crop(aim(arm(10, 20), points), points, 0.4, towards)
    u, v, _ = cropped.project(points)
    assert ((u >= 0) & (u <= 100) & (v >= 0) & (v <= 100)).mean() == pytest.approx(0.4, abs=0.01)
    assert (u > 100, v > 100, u < 0, v < 0)[towards].mean() == pytest.approx(0.6, abs=0.01)


def test_every_standard_view_is_drawn_near_its_angles():
    for side, views in VIEWS.items():
        assert sum(share for *_, share in views) == pytest.approx(1)
        for name, primary, secondary, _ in views:
            got, view = draw_carm(rng(1), side, 128, name)
            assert got == name
            assert abs(view.primary_deg - primary) < 26 and abs(view.secondary_deg - secondary) < 22
            assert 1020 <= view.source_detector_mm <= 1200
            assert 691 <= view.source_isocentre_mm <= 872
        known = np.array([view[1:3] for view in views], float)
        for seed in range(20):  # odd ones lie far from all of them
            name, view = draw_carm(rng(seed), side, 128, odd=True)
            away = np.hypot(*(known - [view.primary_deg, view.secondary_deg]).T)
            assert name == "odd" and away.min() >= ODD_DEG


def test_a_beat_starts_and_ends_relaxed_and_peaks_at_a_third():
    got = moving.contraction(np.array([0, 0.34, 1.0, 1.34]), rr_s=1.0)
    np.testing.assert_allclose(got, [0, 1, 0, 1], atol=1e-9)
    np.testing.assert_allclose(moving.contraction(np.array([0.1]), 0.5, 0.14), 1.0)


def test_contraction_brings_the_base_down_and_holds_the_ostium():
    tree = grow_tree(rng(), "LCA")
    np.testing.assert_allclose(moving.contract(tree.points, 0), tree.points, atol=1e-9)
    moved = np.linalg.norm(moving.contract(tree.points, 1) - tree.points, axis=1)
    lcx = tree.branch == tree.names.index("LCX")
    assert moved[0] < 0.75 * moved[lcx].max() and 8 < moved[lcx].max() < 25


def test_interpolated_beats_are_within_a_tenth_of_a_millimetre():
    points, states = grow_tree(rng(), "RCA").points, np.linspace(0, 1, 40)
    exact = np.stack([moving.contract(points, s) for s in states])
    assert np.abs(moving.beat(points, states) - exact).max() < 0.1
    np.testing.assert_array_equal(moving.beat(points, states[:2])[1], exact[1])


def test_breathing_and_panning_by_hand():
    got = moving.breathing(np.array([0, 1.0]), depth_mm=4, period_s=4, phase=0.0)
    np.testing.assert_allclose(got, [[0, 0, 0], [0, -4, 1]], atol=1e-12)  # a quarter breath
    pan = panning(10, 0.5, (20.0, -90.0), 33.0)  # 0.4 after the start: all of 20, at most 33
    np.testing.assert_array_equal(pan[:6], 0)
    np.testing.assert_allclose(pan[-1], [20, -33])


def injection(**changes):
    return replace(Injection(0.5, 2.0, 1.0, 100.0, 0.0), **changes)


def test_the_inlet_rises_stays_and_washes_out():
    got = inlet(np.array([-1, 0.16, 1.9, 2.0, 2.4]), duration_s=2.0, rise_s=0.16, washout_s=0.4)
    np.testing.assert_allclose(got, [0, 0.5, 1, 1, np.exp(-1)], atol=1e-4)


def test_steady_flow_keeps_the_clock_and_pulses_keep_its_mean():
    time = np.arange(30) / 15
    np.testing.assert_allclose(injection().clock(time, 1.0, 0.0), time - 0.5, atol=1e-6)
    pulsed = injection(pulsatility=0.55).clock(time, 1.0, 0.3)
    assert (np.diff(pulsed) > 0).all()
    assert pulsed[15] - pulsed[0] == pytest.approx(1.0, abs=0.01)  # one whole beat
    assert (injection(start_s=NEVER).clock(time, 1.0, 0.0) == -NEVER).all()


def test_contrast_arrives_later_the_farther_it_has_to_go():
    tree = grow_tree(rng(2), "LCA")
    arrival = arrival_s(tree, 100.0)
    assert (np.diff(arrival)[tree.links] > 0).all()
    main = tree.order == 0
    np.testing.assert_allclose(arrival[main], tree.path_mm[main] / 100)
    twigs = tree.order >= TWIG_ORDER
    np.testing.assert_allclose(arrival[twigs], 1.25 * tree.path_mm[twigs] / 100)
    filled = concentration(np.linspace(-0.5, 1.9, 30), tree, injection(duration_s=3.0))
    assert (np.diff(filled, axis=0) >= -1e-12).all()  # inflow only ever fills
    assert filled[0].max() < 1e-3 and filled.max() <= 1


def blank(size=96):
    return np.zeros((size, size), np.float32), np.tile(np.array([size, -1]), (size, 1))


def tube(angle_deg, radius_mm=2.0, scale=4.0, tilt_deg=0.0):
    """Draw a long straight tube through the middle of a 96 px picture."""
    image, spans = blank()
    t, k = np.deg2rad(angle_deg), np.deg2rad(tilt_deg)
    along = np.array([np.cos(t) * np.cos(k), -np.sin(t) * np.cos(k), np.sin(k)])
    points = np.linspace(-60, 60, 241)[:, None] * along
    u, v = 47.5 + scale * points[:, 0], 47.5 - scale * points[:, 1]
    n = len(points)
    radius, links = np.full(n, radius_mm), np.arange(n - 1)
    steps = link_steps(points, radius, links, 1 / scale)
    draw_tubes(
        image, spans, u, v, np.full(n, scale), np.zeros(n), np.zeros(n), points, radius,
        np.zeros(n), links, steps, 0.0, np.ones(2), -1.0, 0.5, 1.0, 1,
    )  # fmt: skip
    return image, spans


@pytest.mark.parametrize("angle", [0, 30, 45, 90])
def test_discs_add_up_to_the_thickness_of_the_tube(angle):
    image, _ = tube(angle)
    assert image[40:56, 40:56].max() == pytest.approx(4.0, rel=0.02)  # diameter 4 mm
    if angle == 0:  # 1 mm off the axis: 2 sqrt(4 - 1) = 3.46 mm; pixel 51.5 is 1 mm below 47.5
        assert image[51:53, 40:56].mean() == pytest.approx(2 * np.sqrt(3), rel=0.02)
    # foreshortened by 60 degrees: darker by the cosine
    assert tube(0, tilt_deg=60)[0][40:56, 40:56].max() == pytest.approx(8.0, rel=0.03)


def test_a_thin_vessel_keeps_its_volume():
    # radius 0.1 mm = 0.4 px: area of the cross section pi r^2, spread over 0.75 px
    image, _ = tube(0, radius_mm=0.1)
    volume_per_column = image[:, 40:56].sum(axis=0).mean() / 4  # mm of depth times mm of height
    assert volume_per_column == pytest.approx(np.pi * 0.1**2, rel=0.05)


def test_movement_smears_but_keeps_the_sum():
    sharp, smeared = blank(), blank()
    for (image, spans), exposures in ((sharp, 1), (smeared, 5)):
        points = np.array([[0.0, 0, 0], [0, 0, 8]])
        draw_tubes(
            image, spans, np.full(2, 40.0), np.full(2, 48.0), np.full(2, 4.0), np.full(2, 15.0),
            np.zeros(2), points, np.ones(2), np.zeros(2), np.zeros(1, np.int64), np.full(1, 4), 0.0,
            np.ones(2), -1.0, 0.5, 1.0, exposures,
        )  # fmt: skip
    assert smeared[0].sum() == pytest.approx(sharp[0].sum(), rel=0.03)
    assert smeared[0].max() < 0.7 * sharp[0].max()


def test_row_spans_hold_everything_that_was_drawn():
    image, spans = tube(30)
    for row, (first, last) in zip(image, spans, strict=True):
        drawn = np.flatnonzero(row)
        if len(drawn):
            assert first <= drawn[0] and drawn[-1] <= last
    image, spans = blank()  # discs beside the picture leave no trace
    far = np.array([-50.0, 300.0])
    draw_discs(image, spans, far, far, np.full(2, 4.0), np.ones(2))
    assert not image.any() and (spans[:, 1] == -1).all()


def cine(kind, seed=0, side="LCA", n_frames=45, **more):
    generator = rng(seed)
    subject = draw_subject(generator, (1.0,))
    tree = grow_tree(generator, side, subject.dominance)
    shot = draw_shot(generator, subject, tree, kind, n_frames, size_px=96, **more)
    return film(generator, subject, tree, shot), tree, shot


def test_a_normal_cine_starts_empty_fills_and_darkens():
    (frames, truth), _, _ = cine("normal", seed=1)
    np.testing.assert_array_equal(frames, cine("normal", seed=1)[0][0])
    assert frames.shape == (45, 96, 96) and frames.dtype == np.uint8
    labels = truth.labels("LCA")
    assert labels[0] == "LCA_other" and "LCA_better" in labels
    full = int(np.argmax(truth.contrast))
    change = frames[full].astype(float) - frames[0]
    # the whole may lighten or darken, as the heart contracts: vessels darken more than that
    assert np.quantile(change, 0.02) < np.median(change) - 20
    assert truth.opacified[full] > 0.7 and truth.contrast[0] < 0.01


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in ("normal", "panned")])
def test_failed_cines_fail_in_their_own_way(kind):
    (_, truth), _, _ = cine(kind, seed=3, n_frames=40)
    grades = {name.split("_")[1] for name in truth.labels("LCA")}
    if kind in ("noninjected", "empty", "ventriculogram", "aortogram"):
        assert grades == {"other"} and truth.contrast.max() == 0
    elif kind == "weak":
        assert grades == {"other", "bad"} and 0.02 < truth.contrast.max() < 0.15
    elif kind == "short":
        assert truth.contrast.max() < 0.8 and "bad" in grades
    elif kind == "cropped":
        assert np.median(truth.in_field) < 0.65
    elif kind == "blurred":
        assert truth.blur_mm.max() > 0.6
    elif kind == "oddview":
        assert not truth.standard_view and grades == {"other", "bad"}
    else:
        assert truth.opacified[:25].max() < 0.7  # slow: still filling after 1.7 s


def test_truth_counts_only_what_can_fill_and_lies_in_the_picture():
    (_, whole), tree, shot = cine("normal", 9, side="RCA", n_frames=60)
    blocked, _ = narrow(rng(1), tree, 2, 100)
    assert tree.radius[tree.main & ~blocked.open].sum() > 0.2 * tree.radius[tree.main].sum()
    healthy = draw_subject(rng(9), (1.0,))
    _, part = film(rng(9), healthy, blocked, shot)
    assert part.opacified.max() > 0.7  # what can fill and is not too thin to see; of all: < 0.6
    beside = replace(shot, arm=replace(shot.arm, shift_px=(500.0, 0.0)))
    _, gone = film(rng(9), healthy, tree, beside)
    assert gone.opacified.max() == gone.contrast.max() == gone.in_field.max() == 0
    assert set(gone.labels("RCA")) == {"RCA_other"} != set(whole.labels("RCA"))


def any_shot(**change):
    return draw_shot(rng(), draw_subject(rng(), (1.0,)), grow_tree(rng(), "LCA"), **change)


@pytest.mark.parametrize(("call", "match"), [
    (lambda: crop(arm(), np.zeros((3, 3)), 1.1, 0), "share must be 0 to 1"),
    (lambda: crop(arm(), np.zeros((3, 3)), 0.5, 4), "share must be 0 to 1"),
    (lambda: arm().project(-600 * FRONT[None]), "behind the X-ray source"),
    (lambda: draw_carm(rng(), "RCA", 128, "AP CAU"), "RCA views are LAO"),
    (lambda: moving.contraction(np.zeros(1), 0), "more than 0 s"),
    (lambda: inlet(np.zeros(1), 0.0), "durations must be above 0"),
    (lambda: arrival_s(grow_tree(rng(), "LCA"), 0), "speed_mm_s must be above 0"),
    (lambda: any_shot(kind="good"), "kind must be"),
    (lambda: any_shot(n_frames=0), "a cine needs"),
    (lambda: any_shot(frame_rate=0.0), "a cine needs"),
    (lambda: any_shot(size_px=32), "a cine needs"),
])  # fmt: skip
def test_impossible_projections_flows_and_shots_are_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_contrast_is_the_logarithm_of_the_light_that_is_missing():
    """The primary beam whole, halved, halved twice, and halfway to the first halving."""
    halves = np.float32(0.5) ** np.arange(TABLE_SIZE, dtype=np.float32)  # one cell halves the beam
    depth = np.float32(TABLE_STEP) * np.array([0, 1, 2, 0.5], np.float32)
    none, some = np.zeros(4, np.float32), np.full(4, 0.5, np.float32)
    bare = subject_contrast(depth, none, halves)
    np.testing.assert_allclose(bare, np.log([1, 2, 4, 4 / 3]), rtol=1e-4, atol=1e-6)
    # half as much scatter as primary: 1.5 of light becomes 1.0 and 0.75
    veiled = subject_contrast(depth, some, halves)
    np.testing.assert_allclose(veiled[:3], np.log([1, 1.5, 2]), rtol=1e-4, atol=1e-6)


def test_what_is_measured_is_what_the_picture_shows():
    """Without noise, curve and sharpening, vessels are as many grey levels darker as the truth
    says, times the gain."""
    generator = rng(7)
    subject = draw_subject(generator, (1.0,))
    tree = grow_tree(generator, "LCA", subject.dominance)
    shot = draw_shot(generator, subject, tree, "normal", 30, size_px=256)
    look = replace(shot.look, photons=1e12, electronic=0.0, sharpen=0.0, curve=1.0, flicker=0.0)
    shot = quiet(shot, look=replace(look, level=150.0), rr_s=1e6)
    pose = moving.pose_tree(tree, shot)
    frames, truth = film(rng(7), subject, tree, shot, pose)
    full = int(np.argmax(truth.contrast))
    inside = moving.inside_shutters(shot, pose.u, pose.v)[full] & tree.main
    at = np.rint(pose.v[full, inside]).astype(int), np.rint(pose.u[full, inside]).astype(int)
    darker = frames[0][at].astype(float) - frames[full][at]
    weight = tree.radius[inside]
    shown = (darker * weight).sum() / tree.radius[tree.main].sum()
    assert shown == pytest.approx(look.gain * truth.contrast[full], rel=0.12) and shown > 15


def test_a_cines_labels_are_the_rule_frame_by_frame():
    columns = np.array([[0.0, 0.5, 1.0], [0.0, 0.4, 0.9], [1.0, 1.0, 1.0], [0.1, 0.1, 0.1]])
    truth = FrameTruth(*columns, foreshortening=columns[3], overlap=columns[3], standard_view=True)
    assert truth.labels("LCA") == ["LCA_other", "LCA_bad", "LCA_better"]
