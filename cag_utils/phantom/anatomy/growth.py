"""Grow a coronary tree: every point knows its radius, AHA segment and way from the ostium."""

import numpy as np

from cag_utils.phantom.anatomy import atlas
from cag_utils.phantom.anatomy.curves import branching, march_epicardium, vessel
from cag_utils.phantom.anatomy.tree import DIGITS, TWIG_ORDER, Tree
from cag_utils.phantom.streams import Streams

MAIN_MM = 0.8  # narrower side branches are not graded
STEP_MM, MARCH_MM = 1.0, 4.0  # of centreline points, of the walk of a twig
MOST_STEPS, MOST_WAVES = 16, 64  # drawn for every twig and vessel, however short; enough for all
# Bends of one patient's branches differ: some are corkscrews, some straight. Choice.
BEND_SPREAD = 0.45
WIDEST_BEND_MM = (3.5, 2.8, 1.8)  # of main vessels, side branches, twigs; wider ones would kink
MAIN_SMOOTH_MM = {"LM": 2.2, "LAD": 3.0, "LCX": 3.0, "RCA": 4.0}  # sharper kinks look odd; choice


class _Grower:
    """Collects branches while a tree grows."""

    def __init__(self, streams, dominance, tortuosity, fineness, calibre):
        self.streams, self.dominance = streams, dominance
        self.tortuosity, self.fineness, self.calibre = tortuosity, fineness, calibre
        self.points, self.radius, self.segment = [], [], []
        self.order, self.path, self.names, self.attached = [], [], [], []
        self.count = 0
        self.first = []

    def add(self, rng, name, knots, diameters, ends, origin=None, order=0, bend=1.0, sigma_mm=2.2):
        """Shape one vessel and append it; `origin` is (branch, sample) or None at the ostium."""
        length = np.round(np.linalg.norm(np.diff(knots, axis=0), axis=1).sum(), DIGITS)
        normals = rng.standard_normal((3, MOST_WAVES, 3))
        draw = [
            wave[: min(int(length / mm) + 3, MOST_WAVES)]
            for wave, mm in zip(normals, (16, 6, 8), strict=True)
        ]
        points, width, arc = vessel(
            np.ascontiguousarray(knots, dtype=float),
            np.ascontiguousarray(diameters, dtype=float),
            STEP_MM,
            min(self.tortuosity * bend, WIDEST_BEND_MM[min(order, 2)]),
            *draw,
            sigma_mm / STEP_MM,
        )
        points, width, arc = (np.round(w, DIGITS) for w in (points, width, arc))
        share = np.round(arc / arc[-1], DIGITS)
        stops = np.array([stop for stop, _ in ends[:-1]])
        numbers = np.array([number for _, number in ends])
        start = 0.0 if origin is None else self.path[origin[0]][origin[1]]
        self.points.append(points)
        self.radius.append(np.round(0.5 * self.calibre * width, DIGITS))
        self.segment.append(numbers[np.searchsorted(stops, share, side="right")])
        self.order.append(order)
        self.path.append(np.round(start + arc, DIGITS))
        self.names.append(name)
        self.attached.append(-1 if origin is None else self.first[origin[0]] + origin[1])
        self.first.append(self.count)
        self.count += len(points)
        return len(self.names) - 1

    def main(self, name, knots, diameters, origin=None, bend=0.9):
        """Shape a main vessel with the segments of the atlas."""
        ends, sigma_mm = atlas.SEGMENT_ENDS[name], MAIN_SMOOTH_MM[name]
        rng = self.streams("bends", name)
        return self.add(rng, name, knots, diameters, ends, origin, bend=bend, sigma_mm=sigma_mm)

    def site(self, branch, share):
        """Return (sample, point mm, healthy diameter mm) at a share of a branch's length."""
        sample = int(np.clip(share, 0, 1) * (len(self.points[branch]) - 1))
        return sample, self.points[branch][sample], 2 * self.radius[branch][sample] / self.calibre

    def sprout(self, rule: atlas.SideBranch):
        """Add one named side branch, turned and scaled a little, if this heart has it."""
        rng = self.streams("side branch", rule.name)
        chance, away, turn = rng.random(), rng.standard_normal(), rng.standard_normal(3)
        size, calibre = np.exp(0.12 * rng.standard_normal(2))
        bend = 1.5 * np.exp(BEND_SPREAD * rng.standard_normal())
        if chance >= rule.chance or self.dominance not in rule.dominances:
            return
        parent = self.names.index(rule.parent)
        sample, origin, parent_mm = self.site(parent, rule.at + 0.015 * away)
        offsets = np.array(rule.offsets_mm) * size
        offsets = offsets + np.cross(np.deg2rad(8) * turn, offsets)
        knots = np.vstack([origin, origin + offsets])
        widths = np.minimum(np.array(rule.diameters_mm) * calibre, 0.97 * parent_mm)
        ends = ((1.0, rule.segment),)
        self.add(rng, rule.name, knots, widths, ends, (parent, sample), 1, bend)

    def twigs(self, rule: atlas.Twigs, parent: int, depth: int, *crop: int):
        """Add a crop of twigs to a branch, and smaller ones to the long ones; `crop` names it."""
        for number in range(self.streams("crop", *crop).poisson(rule.mean_count * self.fineness)):
            rng = self.streams("twig", *crop, number)
            sample, origin, parent_mm = self.site(parent, rng.uniform(0.12, 0.97))
            length = rng.uniform(*rule.lengths_mm)
            width = min(rng.uniform(*rule.diameters_mm), 0.6 * parent_mm)
            heading = self._heading(rng, parent, sample, rule.septal)
            jitter = rng.standard_normal((MOST_STEPS, 3))[: max(2, int(length / MARCH_MM))]
            sink = 0.35 if rule.septal else 0.0
            heart = atlas.HEART_BASE_MM, atlas.LONG_AXIS, atlas.LONG_AXIS_MM
            knots = march_epicardium(origin, heading, jitter, 0.5, sink, MARCH_MM, *heart)
            ends = ((1.0, int(self.segment[parent][sample])),)
            order = max(TWIG_ORDER, self.order[parent] + 1)
            widths = np.linspace(width, 0.35, len(knots))
            bend = min(1.4, length / 15) * np.exp(BEND_SPREAD * rng.standard_normal())
            child = self.add(rng, "twig", knots, widths, ends, (parent, sample), order, bend, 1.5)
            if depth > 1 and length > 12:
                finer = atlas.Twigs("twig", 2.2, (0.35, 0.6), (5, 16))
                self.twigs(finer, child, depth - 1, *crop, number)

    def _heading(self, rng, branch, sample, septal):
        """Leave the parent at 30 to 80 degrees, along the surface (or into the septum)."""
        points = self.points[branch]
        tangent = points[min(sample + 2, len(points) - 1)] - points[max(sample - 2, 0)]
        out = points[sample] - atlas.HEART_BASE_MM
        out = out - (out * atlas.LONG_AXIS).sum() * atlas.LONG_AXIS
        side = 1.0 if rng.random() < 0.5 else -1.0
        angle = np.deg2rad(rng.uniform(30, 80))
        return branching(tangent, out, side, angle, 0.5 if septal else 0.0)

    def course(self, name, spread=0.7):
        """Draw one heart's landmarks of a main vessel, mm, relative to its ostium."""
        table, rng = atlas.MAIN_COURSE[name], self.streams("course", name)
        shared = rng.standard_normal(3)
        local = rng.standard_normal(3)
        rows = np.empty((len(table), 3))
        for i, row in enumerate(table):
            local = 0.85 * local + 0.53 * rng.standard_normal(3)
            rows[i] = row[:3] + row[3:6] * spread * (0.75 * shared + 0.5 * local)
        return atlas.spherical_mm(*rows.T)

    def tree(self, laterality) -> Tree:
        """Flatten what has grown."""
        lengths = [len(p) for p in self.points]
        radius, order = np.concatenate(self.radius), np.repeat(self.order, lengths)
        return Tree(
            laterality=laterality,
            dominance=self.dominance,
            points=np.vstack(self.points),
            radius=radius, order=order, main=(order <= 1) & (radius > MAIN_MM / 2),
            segment=np.concatenate(self.segment).astype(np.int64),
            branch=np.repeat(np.arange(len(lengths)), lengths),
            path_mm=np.concatenate(self.path), open=np.ones(self.count, bool),
            names=tuple(self.names), attached=np.array(self.attached),
        )  # fmt: skip


def grow_tree(
    rng: np.random.Generator,
    laterality: str,
    dominance: str = "right",
    tortuosity: float = 1.0,
    fineness: float = 1.0,
    sex_scale: float = 1.0,
) -> Tree:
    """Grow one patient's left or right coronary tree, healthy, at end-diastole.

    Args:
        rng: Generator; the same state gives the same tree.
        dominance: right, balanced or left: which side supplies the posterior descending artery.
        tortuosity: Size of the bends, about 0.7 to 2.2 mm.
        fineness: Multiplies the mean number of twigs.
        sex_scale: Multiplies every calibre; 0.91 for women.

    Raises:
        ValueError: `laterality` or `dominance` is unknown.

    Source:
        Dodge 1988 and 1992 by way of corsim's data tables; see `atlas`.
    """
    if laterality not in atlas.LATERALITIES:
        raise ValueError(f"laterality must be one of {atlas.LATERALITIES}, got {laterality!r}")
    if dominance not in atlas.DOMINANCES:
        raise ValueError(f"dominance must be one of {atlas.DOMINANCES}, got {dominance!r}")
    streams = Streams(rng)
    calibre = sex_scale * np.exp(0.10 * streams("calibre").standard_normal())
    grower = _Grower(streams, dominance, tortuosity, fineness, calibre)
    (_grow_left if laterality == "LCA" else _grow_right)(grower)
    for rule in atlas.SIDE_BRANCHES[laterality]:
        grower.sprout(rule)
    for crop, rule in enumerate(atlas.TWIGS[laterality]):
        if rule.parent in grower.names:
            grower.twigs(rule, grower.names.index(rule.parent), 2, crop)
    return grower.tree(laterality)


def _grow_left(grower: _Grower) -> None:
    """Left main, LAD and LCX; a left-dominant LCX stays wide and runs on."""
    stem = grower.main("LM", grower.course("LM"), atlas.MAIN_COURSE["LM"][:, 6], bend=0.3)
    tip = grower.points[stem][-1]
    fork = (stem, len(grower.points[stem]) - 1)
    miss = tip - atlas.spherical_mm(1.1, 79, 0)
    lad = _joined(tip, grower.course("LAD"), miss)
    widths = np.r_[3.75, atlas.MAIN_COURSE["LAD"][:, 6]]
    ends_early, ends_far = grower.streams("ends").random(2)
    keep = len(lad) - 2 if ends_early < 0.25 else len(lad)  # does not reach round the apex
    grower.main("LAD", lad[:keep], widths[:keep], fork)
    lcx = _joined(tip, grower.course("LCX"), miss)
    scale = {"right": 1.0, "balanced": 1.08, "left": 1.22}[grower.dominance]
    widths = np.r_[3.4, atlas.MAIN_COURSE["LCX"][:, 6]] * scale
    keep = len(lcx)
    if grower.dominance == "right":
        keep -= 2 if ends_far < 0.6 else 4
    else:
        tail = (3.1, 2.6) if grower.dominance == "left" else (2.3, 1.7)
        widths[7:] = np.linspace(*tail, len(widths) - 7)
    grower.main("LCX", lcx[:keep], widths[:keep], fork)


def _joined(tip, course, miss):
    """Start a daughter at the left main's tip and let the misfit fade along it."""
    fade = np.exp(-np.linspace(0, 3, len(course)))[:, None]
    return np.vstack([tip, course + fade * miss])


def _grow_right(grower: _Grower) -> None:
    """The RCA; it ends at the acute margin when the left side is dominant."""
    course = grower.course("RCA", spread=0.56)
    course[0] = 0
    scale = {"right": 1.0, "balanced": 0.92, "left": 0.70}[grower.dominance]
    widths = atlas.MAIN_COURSE["RCA"][:, 6] * scale
    if grower.dominance == "left":
        course = course[:-2]
        widths = np.r_[widths[:6], np.linspace(2.0, 1.2, len(course) - 6)]
    grower.main("RCA", course + atlas.RCA_OSTIUM_MM, widths, bend=1.1)
