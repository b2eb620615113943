"""What moves through a cine besides the artery: catheter, reflux, guide wire, stents, leads."""

import numpy as np

from cag_utils.phantom.anatomy.tree import Tree
from cag_utils.phantom.imaging import hardware
from cag_utils.phantom.imaging.contrast import inlet
from cag_utils.phantom.imaging.pose import Pose, beat
from cag_utils.phantom.imaging.shot import Shot
from cag_utils.phantom.imaging.splat import draw_discs, draw_tubes
from cag_utils.phantom.streams import Streams
from cag_utils.phantom.subject import Subject

CATHETER_LEAD_S = 0.12  # contrast is in the catheter before it is in the artery
LUMEN_SHARE, REFLUX = 0.62, 1.1  # of the outer radius; strength of the puff; choice


class Moving:
    """A wire or tube in every frame: `points` (t, n, 3) mm, `u`, `v` and `scale` (t, n)."""

    def __init__(self, points: np.ndarray, shot: Shot):
        self.points = np.ascontiguousarray(points)
        u, v, self.scale = shot.arm.project(self.points)
        self.u, self.v = u + shot.pan_px[:, :1], v + shot.pan_px[:, 1:]
        n = points.shape[1]
        self.none, self.links = np.zeros(n), np.arange(n - 1)
        self.steps = np.full(n - 1, 2)

    def draw(self, image, spans, i: int, radius: np.ndarray, per_mm: float) -> None:
        """Add it to a picture as it lies in frame `i`; negative attenuation takes away."""
        draw_tubes(
            image, spans, self.u[i], self.v[i], self.scale[i], self.none, self.none, self.points[i],
            radius, self.none, self.links, self.steps, 0.0, np.ones(2), -1.0, 0.5, per_mm, 1,
        )  # fmt: skip


class Instruments:
    """All of one cine's instruments; `per_mm` is the attenuation of undiluted contrast."""

    def __init__(self, rng, subject: Subject, tree: Tree, shot: Shot, pose: Pose, per_mm: float):
        self.streams, self.shot, self.per_mm = Streams(rng), shot, per_mm
        self.catheter = self._catheter(subject, tree, pose)
        injection = shot.flood or shot.injection
        clock = injection.clock(shot.time_s, shot.rr_s, shot.phase)
        self.lumen = inlet(np.maximum(clock + CATHETER_LEAD_S, -9), injection.duration_s)
        # (what, radius mm, attenuation per mm)
        self.tubes: list[tuple[Moving, np.ndarray, float]] = []
        for strand in hardware.lead_strands(subject.hardware):
            shift = strand.hold[:, None] * (beat(strand.points, pose.state) - strand.points)
            moving = Moving(strand.points + shift + pose.breath_mm[:, None], shot)
            radius = np.full(len(strand.points), strand.radius_mm)
            self.tubes.append((moving, radius, strand.per_mm))
        for piece in hardware.stent_pieces(subject.hardware, tree):
            moving = Moving(pose.points[:, piece], shot)
            outer = np.full(len(piece), float(tree.radius[piece].max()) + hardware.STENT_WALL_MM)
            self.tubes.append((moving, outer, hardware.STENT_PER_MM))
            self.tubes.append((moving, outer - hardware.STENT_WALL_MM, -hardware.STENT_PER_MM))
        if shot.guide_wire:
            self._add_wire(hardware.guide_wire(self.streams("wire"), tree), tree, pose)

    def _catheter(self, subject: Subject, tree: Tree, pose: Pose) -> Moving | None:
        """The catheter in every frame; none in an empty run."""
        if self.shot.kind == "empty":
            return None
        course = hardware.draw_catheter(
            self.streams("catheter"), tree.laterality, subject.radial, self.shot.kind
        )
        ostium = hardware.ostium_mm(tree.laterality)[None] + 1e-3
        moved = (beat(ostium, pose.state) - ostium)[:, 0] + pose.breath_mm
        return Moving(hardware.follow_ostium(course, moved), self.shot)

    def _add_wire(self, way: np.ndarray, tree: Tree, pose: Pose) -> None:
        """A steel wire with a dense coil at its end."""
        thin = np.full(len(way), hardware.GUIDE_WIRE_MM)
        moving = Moving(pose.points[:, way], self.shot)
        self.tubes.append((moving, thin, hardware.STEEL_PER_MM))
        tip = tree.path_mm[way] > tree.path_mm[way[-1]] - hardware.TIP_MM
        if tip.sum() >= 2:
            coil = Moving(pose.points[:, way[tip]], self.shot)
            self.tubes.append((coil, thin[tip], hardware.COIL_PER_MM - hardware.STEEL_PER_MM))

    def draw(self, image: np.ndarray, spans: np.ndarray, i: int) -> None:
        """Add everything in frame `i` to (H, W) optical depth and its (H, 2) touched columns."""
        for moving, radius, per_mm in self.tubes:
            moving.draw(image, spans, i, radius, per_mm)
        if self.catheter is None:
            return
        shot, n = self.shot, self.catheter.u.shape[1]
        wall, strength = shot.catheter_per_mm, shot.injection.strength
        outer = np.full(n, shot.catheter_mm)
        self.catheter.draw(image, spans, i, outer, wall)
        # flow through the catheter is quick: even a weak injection fills it
        filled = self.per_mm * min(1.0, strength / 0.3) * self.lumen[i]
        self.catheter.draw(image, spans, i, LUMEN_SHARE * outer, filled - 0.55 * wall)
        if shot.reflux and self.lumen[i] > 0.1 and shot.flood is None:
            weight = REFLUX * shot.reflux * self.lumen[i] * self.per_mm * strength
            near = self.catheter.u[i], self.catheter.v[i], self.catheter.scale[i, 0]
            draw_discs(
                image, spans, *hardware.reflux_discs(self.streams("reflux", i), *near, weight)
            )
