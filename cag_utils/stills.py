"""Pretraining pictures: phantom stills with a label for every patch, drawn once and cached."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from joblib import Parallel, delayed

from cag_utils.phantom.lesions import SEGMENT_WEIGHTS
from cag_utils.segments import AHA_SEGMENTS, GRADES, check_lesion

N_SEGMENTS = len(AHA_SEGMENTS)
# Stills and cohorts draw from separate random streams: no study patient is a pretraining patient.
# Held-out stills have a range of seeds of their own.
PART = 2000  # stills a cache file
LESION_SHARE = 0.65  # of the stills, asked for one lesion; the others are natural patients
FIRST_SEED, FIRST_HELD_OUT_SEED = 0, 10_000_000


@dataclass(frozen=True)
class Stills:
    """N pictures of P patches each.

    Attributes:
        images: (N, S, S) uint8.
        segment_map: (N, P) uint8; the AHA segment that runs through each patch, 0 for none.
        grade_map: (N, P) uint8; 1 + index into `GRADES` where a narrowing lies, 0 for none.
        grades: (N, 15) uint8; 1 + index into `GRADES` per AHA segment, 0 for no lesion.
        lca: (N,) bool; True for the left coronary artery.
        angles: (N, 2) float32 positioner angles, LAO and cranial positive, degrees.
    """

    images: np.ndarray
    segment_map: np.ndarray
    grade_map: np.ndarray
    grades: np.ndarray
    lca: np.ndarray
    angles: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    def lesions(self, index: int) -> list[dict]:
        """Return the lesions of one picture: `{segment, percent, artery}`, by AHA number."""
        return [
            check_lesion({"segment": int(i) + 1, "percent": GRADES[self.grades[index, i] - 1]})
            for i in np.flatnonzero(self.grades[index])
        ]

    def laterality(self, index: int) -> str:
        """Return LCA or RCA."""
        return "LCA" if self.lca[index] else "RCA"


def dense_labels(
    points_px: np.ndarray,
    segments: np.ndarray,
    lesion_points_px: np.ndarray,
    percents: Sequence[int],
    size_px: int,
    patch_px: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Label every patch: which segment runs through it, which grade of narrowing lies in it.

    Args:
        points_px: (n, 2) centreline points, column and row, pixels.
        segments: (n,) AHA segment of each point, 1 to 15.
        lesion_points_px: (k, 2) where each narrowing is tightest.
        percents: (k,) its grade.
        size_px: Side of the picture.
        patch_px: Side of a patch; must divide `size_px`.

    Returns:
        (segment_map, grade_map), each ((size/patch)**2,) uint8, row by row, as in `Stills`. The
        segment with most points wins a patch, the lower number a tie; the worst grade wins.
        Points outside the picture are left out.

    Raises:
        ValueError: `patch_px` does not divide `size_px`, or a grade is unknown.
    """
    if size_px % patch_px:
        raise ValueError(f"patches of {patch_px} px do not tile a picture of {size_px} px")
    if unknown := set(map(int, percents)) - set(GRADES):
        raise ValueError(f"stenosis grades are {GRADES} percent, got {sorted(unknown)}")
    side = size_px // patch_px
    votes = np.zeros((side * side, N_SEGMENTS + 1))
    inside, patch = _patches(points_px, size_px, patch_px)
    np.add.at(votes, (patch, np.asarray(segments)[inside]), 1)
    grade_map = np.zeros(side * side, np.uint8)
    inside, patch = _patches(lesion_points_px, size_px, patch_px)
    levels = np.array([GRADES.index(int(x)) + 1 for x in percents], np.uint8)
    np.maximum.at(grade_map, patch, levels[inside])
    return votes.argmax(1).astype(np.uint8), grade_map


def make_stills(
    seeds: Sequence[int],
    size_px: int,
    patch_px: int,
    workers: int = 1,
    draw: Callable | None = None,
) -> Stills:
    """Draw one still a seed and label its patches.

    Args:
        seeds: Seeds of `cag_utils.phantom.cohort.still`; each is another patient.
        size_px: Side of the pictures.
        patch_px: Side of the tower's patches.
        workers: Processes; the result does not depend on them.
        draw: Stands in for the phantom's `still`, for tests.

    Returns:
        The stills, in the order of the seeds.
    """
    rows = Parallel(workers)(delayed(_row)(int(s), size_px, patch_px, draw) for s in seeds)
    return Stills(*(np.stack(column) for column in zip(*rows, strict=True)))


def cached_stills(
    folder: str | Path, first_seed: int, count: int, size_px: int, patch_px: int, workers: int = 1
) -> Stills:
    """Return `make_stills` for `count` seeds in a row, drawn once and kept as .npz in `folder`.

    They are kept in parts of 2000, so that a killed run goes on where it was. A part whose first
    picture the phantom would draw differently today is drawn anew.

    Args:
        folder: Where the cache lives, below `data/`.
        first_seed: First seed.
        count: Number of stills.
        size_px: Side of the pictures.
        patch_px: Side of the tower's patches.
        workers: Processes.
    """
    parts = []
    for start in range(first_seed, first_seed + count, PART):
        seeds = range(start, min(start + PART, first_seed + count))
        path = Path(folder) / f"stills_{start}_{len(seeds)}_{size_px}_{patch_px}.npz"
        parts.append(_read(path) if path.exists() else None)
        today = make_stills(seeds[:1], size_px, patch_px).images[0]
        if parts[-1] is None or not np.array_equal(parts[-1].images[0], today):
            parts[-1] = make_stills(seeds, size_px, patch_px, workers)
            _write(parts[-1], path)
    columns = ([getattr(part, f.name) for part in parts] for f in fields(Stills))
    return Stills(*map(np.concatenate, columns))


def _write(stills: Stills, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial.npz")
    np.savez(partial, **{f.name: getattr(stills, f.name) for f in fields(Stills)})
    partial.replace(path)  # a killed run leaves no half-written cache


def _read(path: Path) -> Stills:
    with np.load(path) as found:
        return Stills(**{f.name: found[f.name] for f in fields(Stills)})


def _patches(points: np.ndarray, size: int, patch: int) -> tuple[np.ndarray, np.ndarray]:
    points = np.asarray(points, float).reshape(-1, 2)
    inside = ((points >= 0) & (points < size)).all(1)
    column, row = (points[inside] // patch).astype(int).T
    return inside, row * (size // patch) + column


def _row(seed: int, size_px: int, patch_px: int, draw: Callable | None) -> tuple:
    if draw is None:
        from cag_utils.phantom.cohort import still as draw
    found = draw(seed, size_px, lesion=_wanted_lesion(seed))
    percents = found.lesion_points[:, 2]
    maps = dense_labels(
        found.points, found.segments, found.lesion_points[:, :2], percents, size_px, patch_px
    )
    grades = np.zeros(N_SEGMENTS, np.uint8)
    for lesion in found.lesions:
        grades[lesion["segment"] - 1] = GRADES.index(lesion["percent"]) + 1
    angles = np.array([found.primary_deg, found.secondary_deg], np.float32)
    return found.image, *maps, grades, found.laterality == "LCA", angles


def _wanted_lesion(seed: int) -> dict | None:
    """Ask two stills in three for one lesion, any segment and grade alike; the rest stay natural.

    Natural patients have few lesions in few places; a tower learns the rare ones only if it sees
    them often.
    """
    rng = np.random.default_rng([seed, 1])
    if rng.random() > LESION_SHARE:
        return None
    segment, percent = int(rng.choice(list(SEGMENT_WEIGHTS))), int(rng.choice(GRADES))
    return {"segment": segment, "percent": 99 if (segment, percent) == (5, 100) else percent}
