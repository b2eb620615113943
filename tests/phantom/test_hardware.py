"""Metal, ventriculograms, hearts of other sizes, and a background that must not tell the side."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cag_utils.phantom.anatomy.growth import grow_tree
from cag_utils.phantom.anatomy.lesions import narrow
from cag_utils.phantom.imaging import hardware
from cag_utils.phantom.imaging.carm import CArm, aim, draw_carm
from cag_utils.phantom.imaging.chest import draw_backdrop, draw_body
from cag_utils.phantom.imaging.hardware import Hardware
from cag_utils.phantom.imaging.render import film
from cag_utils.phantom.imaging.shot import draw_shot
from cag_utils.phantom.imaging.ventricle import HALF_AXES_MM, SHORTENING, aorta_depth, cavity_depth
from cag_utils.phantom.subject import draw_subject
from cag_utils.segments import AHA_SEGMENTS
from tests.phantom.world import rng


@pytest.mark.parametrize("side", ["LCA", "RCA"])
@pytest.mark.parametrize("dominance", ["right", "balanced", "left"])
def test_every_point_has_a_syntax_name_of_its_aha_segment(side, dominance):
    for seed in range(2):
        tree = grow_tree(rng(seed), side, dominance)
        pairs = set(zip(tree.segment.tolist(), tree.syntax.tolist(), strict=True))
        for segment, name in pairs:
            assert name in AHA_SEGMENTS[segment].syntax, (segment, name)
        for branch, name in {"PD": "4", "AV": "16", "PL1": "16a"}.items():  # as ARCADE says
            if side == "RCA" and branch in tree.names:
                assert set(tree.syntax[tree.branch == tree.names.index(branch)]) == {name}


def test_a_heart_placed_larger_or_turned_keeps_its_calibre_its_ostium_and_its_distances():
    tree = grow_tree(rng(3), "RCA")
    turned = tree.placed(1.0, (0, 0, 90))  # about the front axis: left becomes head
    away, moved = tree.points - tree.points[0], turned.points - tree.points[0]
    np.testing.assert_allclose(moved, away[:, [1, 0, 2]] * [-1, 1, 1], atol=1e-9)
    tree = grow_tree(rng(2), "LCA")
    large = tree.placed(1.2, (0, 0, 0))
    np.testing.assert_allclose(large.points, 1.2 * tree.points, atol=1e-8)  # the ostium is 0
    np.testing.assert_allclose(large.path_mm, 1.2 * tree.path_mm)
    np.testing.assert_array_equal(large.radius, tree.radius)
    with pytest.raises(ValueError, match="size must be above 0"):
        tree.placed(0, (0, 0, 0))


def test_history_decides_what_a_patient_carries():
    none = [hardware.draw_hardware(rng(seed), surgery=False, stented=False) for seed in range(40)]
    assert {h.sternal_wires for h in none} == {0} == {h.stents for h in none}
    both = [hardware.draw_hardware(rng(seed), surgery=True, stented=True) for seed in range(40)]
    assert min(h.sternal_wires for h in both) >= 4 and min(h.stents for h in both) >= 1
    drawn = [hardware.draw_hardware(rng(seed)) for seed in range(400)]
    assert 0.02 < np.mean([h.sternal_wires > 0 for h in drawn]) < 0.12


def test_metal_darkens_the_picture_where_it_lies():
    view = CArm(0.0, 0.0, 1090.0, 781.0, 150 / 256, 256)
    plain = draw_backdrop(rng(5), view, draw_body(rng(6)), 12)
    wired = draw_backdrop(rng(5), view, draw_body(rng(6)), 12, Hardware(sternal_wires=6))
    added = wired - plain
    assert added.min() > -1e-5 and added.max() > 0.3 and (added > 0.05).mean() < 0.05
    assert len(hardware.fixed_strands(Hardware(sternal_wires=5, electrodes=2), 1.0)) == 5 + 2 * 2
    leads = hardware.lead_strands(Hardware(leads=2))
    assert len(leads) == 2
    for lead in leads:  # only the tip beats with the heart
        assert lead.hold[0] == 0 and lead.hold[-1] == 1 and (np.diff(lead.hold) >= 0).all()


def test_metal_lies_in_the_same_place_in_every_cine_of_a_patient():
    tree = grow_tree(rng(4), "LCA")
    one, other = Hardware(4, 1, 1, 2, seed=7), Hardware(4, 1, 1, 2, seed=8)
    for draw in (hardware.lead_strands, lambda h: hardware.fixed_strands(h, 1.0)):
        first, again, strange = draw(one), draw(one), draw(other)
        assert all((a.points == b.points).all() for a, b in zip(first, again, strict=True))
        assert not (first[0].points[:5] == strange[0].points[:5]).all()
    first, again = ([p.tolist() for p in hardware.stent_pieces(one, tree)] for _ in range(2))
    assert first == again
    assert one.seed != hardware.draw_hardware(rng(1)).seed != hardware.draw_hardware(rng(2)).seed


@pytest.mark.parametrize("side", ["LCA", "RCA"])
def test_a_guide_wire_runs_on_from_the_ostium_and_stops_at_an_occlusion(side):
    segment = 7 if side == "LCA" else 2
    tree, _ = narrow(rng(3), grow_tree(rng(3), side), segment, 100)
    for seed in range(6):
        way = hardware.guide_wire(rng(seed), tree)
        assert tree.open[way].all() and tree.path_mm[way[0]] < 2
        assert (np.diff(tree.path_mm[way]) >= 0).all()
        assert np.linalg.norm(np.diff(tree.points[way], axis=0), axis=1).max() < 6


def test_stents_are_short_pieces_of_main_vessels():
    tree = grow_tree(rng(4), "LCA")
    carried = [Hardware(stents=2, seed=seed) for seed in range(10)]
    pieces = [piece for metal in carried for piece in hardware.stent_pieces(metal, tree)]
    assert len(pieces) > 10
    for piece in pieces:
        length = tree.path_mm[piece[-1]] - tree.path_mm[piece[0]]
        assert 5 <= length <= 30 and len(set(tree.branch[piece])) == 1
        assert {tree.names[b] for b in tree.branch[piece]} <= {"LAD", "LCX"}


def shoot(kind, seed, n_frames, metal=None, **shot_change):
    generator = rng(seed)
    subject = draw_subject(generator, (1.0,))
    subject = replace(subject, hardware=metal or subject.hardware)
    tree = grow_tree(generator, "LCA", subject.dominance)
    shot = draw_shot(generator, subject, tree, kind, n_frames, 10.0, 128)
    still = {"breath_mm": 0.0, "pan_px": np.zeros((n_frames, 2))}
    frames, _ = film(rng(seed + 1), subject, tree, replace(shot, **still, **shot_change))
    return frames.astype(float)


@pytest.mark.parametrize("kind", ["ventriculogram", "aortogram"])
def test_a_flooded_ventricle_or_aorta_is_a_large_shadow(kind):
    grey = shoot(kind, 0, 20).mean((1, 2))
    assert grey[0] - grey.min() > 3


def test_the_cavity_is_as_thick_as_its_ellipsoid():
    # far away: parallel rays, 1 mm pixels
    view = CArm(0.0, 0.0, 1e6, 0.5e6, 2.0, 128, isocentre_mm=(22.0, -56.0, 35.0))
    relaxed, squeezed = (cavity_depth(view, state, np.zeros(3)).sum() for state in (0.0, 1.0))
    assert relaxed == pytest.approx(4 / 3 * np.pi * HALF_AXES_MM.prod(), rel=0.03)
    assert squeezed / relaxed == pytest.approx(np.prod(1 - SHORTENING), abs=0.02)


def test_the_aorta_is_as_wide_as_its_knots_say():
    # from the front, parallel rays, 1 mm pixels: the root's middle, and beside the descending part
    view = CArm(0.0, 0.0, 1e6, 0.5e6, 2.0, 128, isocentre_mm=(0.0, 0.0, 0.0))
    depth = aorta_depth(view, np.zeros(3))
    assert depth[64 + 8 - 3 : 64 + 8 + 3].max() == pytest.approx(2 * 17, rel=0.03)
    assert 1.9 * 11 < depth[64 + 50].max() < 2 * 11.6 and np.ptp(np.nonzero(depth[64 + 50])) == 21


def test_a_wire_a_lead_and_a_stent_can_be_seen():
    bare = shoot("noninjected", 7, 2, guide_wire=False)[0]
    none, lead, stents = Hardware(), Hardware(leads=1), Hardware(stents=2)
    for metal, wire in ((lead, False), (stents, False), (none, True)):
        got = shoot("noninjected", 7, 2, metal, guide_wire=wire)[0]
        # smoothing takes the noise, which other draws have shifted, out of the comparison
        assert np.quantile(cv2.blur(bare, (3, 3)) - cv2.blur(got, (3, 3)), 0.999) > 4


def test_without_vessels_the_background_does_not_tell_the_side():
    """The same table and arm for both sides: what is left must be at chance."""
    pictures, sides, framing = [], [], []
    for pair in range(80):
        generator = rng([77, pair])
        aimed_at = ("LCA", "RCA")[pair % 2]
        target = grow_tree(generator, aimed_at, fineness=0.0)
        view = aim(draw_carm(generator, aimed_at, 64)[1], target.points[target.main])
        for side in ("LCA", "RCA"):
            subject = draw_subject(generator, (0.5, 0.5))
            tree = grow_tree(generator, side, subject.dominance, fineness=0.0)
            shot = draw_shot(generator, subject, tree, "empty", 1, 15.0, 64)
            frames, _ = film(generator, subject, tree, replace(shot, arm=view))
            pictures.append(cv2.resize(frames[0], (16, 16), interpolation=cv2.INTER_AREA).ravel())
            sides.append(side)
            framing.append(aimed_at)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500))

    def share_right(labels):
        pairs = GroupKFold(5).split(pictures, labels, np.arange(160) // 2)
        return cross_val_score(model, np.array(pictures, float), labels, cv=list(pairs)).mean()

    assert abs(share_right(sides) - 0.5) < 0.12  # three standard errors of 160 coin tosses
    assert share_right(framing) > 0.6  # the same classifier does see where the table stood
