"""Pretraining pictures: phantom stills with the truth along every vessel, drawn once and cached."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from joblib import Parallel, delayed

from cag_utils.making.captions import PictureFacts, draw_patient
from cag_utils.phantom.anatomy.lesions import SEGMENT_WEIGHTS
from cag_utils.phantom.stills import DIASTASIS, still
from cag_utils.phantom.streams import VERSION
from cag_utils.segments import AHA_SEGMENTS, GRADES, LATERALITIES, check_lesion, segments_of

N_SEGMENTS = len(AHA_SEGMENTS)
# Stills and cohorts draw from separate random streams: no study patient is a pretraining patient.
# Held-out stills have a range of seeds of their own.
PART = 2000  # stills a cache file
SHOWN_TIMES = 8  # stills of one patient, each from elsewhere and with lesions of its own
LESION_SHARE = 0.65  # of the stills, asked for one lesion; the others are natural patients
MOVING_SHARE = 0.5  # of the stills, taken at any phase of the beat and any time while full
WAIT_S = (0.0, 0.9)
FIRST_SEED, FIRST_HELD_OUT_SEED = 0, 10_000_000
# From here on pictures are crowded with lesions, as no patient is: a lesson for the tower, which
# sees five narrowings a picture for the price of one. Occlusions would empty what lies behind.
FIRST_CROWDED_SEED = 20_000_000
CROWDED = {"LCA": (3, 6), "RCA": (2, 4)}  # lesions of a picture
CROWDED_GRADES = (25, 50, 75, 90, 99)
SEEN_POINTS = 6  # some millimetres of a vessel
ALONG = ("points", "segments", "width_px", "narrowed")  # one row a centreline point


@dataclass(frozen=True)
class Stills:
    """N pictures, and the M centreline points that they show."""

    images: np.ndarray  # (N, S, S) uint8
    # (N, 15) uint8; 1 + index into `GRADES` per AHA segment, 0 for no lesion that the picture
    # shows, by the rule of `phantom.labels`
    grades: np.ndarray
    ideal: np.ndarray  # (N, 15) uint8; the same as an ideal reader of the picture grades it
    lca: np.ndarray  # (N,) bool; True for the left coronary artery
    angles: np.ndarray  # (N, 2) float32 positioner angles, LAO and cranial positive, degrees
    # (N,) int64; points of each picture, which follow each other in the arrays below
    counts: np.ndarray
    points: np.ndarray  # (M, 2) float32 column and row, pixels
    segments: np.ndarray  # (M,) uint8 AHA number, 1 to 15
    width_px: np.ndarray  # (M,) float32 lumen
    # (M,) float32 share of the diameter that a lesion takes, 0 to 1; 0 in segments whose lesion is
    # not shown
    narrowed: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    def lesions(self, index: int) -> list[dict]:
        """Return what one picture shows: `{segment, percent, artery}`, by AHA number."""
        return [
            check_lesion({"segment": int(i) + 1, "percent": GRADES[self.grades[index, i] - 1]})
            for i in np.flatnonzero(self.grades[index])
        ]

    def laterality(self, index: int) -> str:
        """Return LCA or RCA."""
        return "LCA" if self.lca[index] else "RCA"

    def seen(self, index: int) -> tuple[int, ...]:
        """Return the AHA segments of which a picture shows at least `SEEN_POINTS` points."""
        rows, _ = self.rows(np.array([index]))
        counts = np.bincount(self.segments[rows], minlength=N_SEGMENTS + 1)
        return tuple(map(int, np.flatnonzero(counts >= SEEN_POINTS)))

    def facts(self, rng: np.random.Generator, index: int) -> PictureFacts:
        """Give a picture a patient: a history that fits its lesions, and the plan they lead to."""
        side, angles = self.laterality(index), self.angles[index]
        return draw_patient(rng, side, self.lesions(index), angles, self.seen(index))

    def check_batch(self, size: int) -> None:
        """Refuse, by a ValueError, to train on fewer pictures than a batch of `size`."""
        if len(self) < size:
            raise ValueError(f"{len(self)} stills are fewer than one batch of {size}")

    def part(self, index: np.ndarray) -> "Stills":
        """Return some pictures as a set of their own, in this order."""
        rows, _ = self.rows(index)
        along = {name: getattr(self, name)[rows] for name in ALONG}
        whole = {k: v[index] for k, v in vars(self).items() if k not in ALONG}
        return Stills(**whole | along)

    def rows(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the points of some pictures: (m,) rows, and (m,) which of `index` owns each."""
        first = np.cumsum(self.counts) - self.counts
        owner = np.repeat(np.arange(len(index)), self.counts[index])
        before = np.cumsum(self.counts[index]) - self.counts[index]  # points of earlier pictures
        return (first[index] - before)[owner] + np.arange(len(owner)), owner


def patch_labels(
    stills: Stills, index: Sequence[int], side: int, moves: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Label every patch of some pictures.

    Args:
        index: (B,) which.
        side: Patches along each side of the picture; P is its square.
        moves: (B, 2, 3) affine map that each picture has undergone, column and row; None if none.

    Returns:
        Row by row, each (B, P), of the points inside the picture: `segment` int64, the AHA segment
        with most points, the lower number at a tie, 0 for none; `width_px` float32, the widest
        lumen, 0 for none; `narrowed` float32, the largest share that a lesion takes.
    """
    size, index = stills.images.shape[1], np.asarray(index)
    rows, owner = stills.rows(index)
    points = stills.points[rows].astype(float)
    if moves is not None:
        turn, shift = moves[owner, :, :2], moves[owner, :, 2]
        points = np.einsum("mij,mj->mi", turn, points) + shift
    inside = ((points >= 0) & (points < size)).all(1)
    rows = rows[inside]
    column, row = (points[inside] * side // size).astype(int).T
    cell = (owner[inside] * side + row) * side + column
    shape = (len(index), side * side)
    votes = np.zeros((len(index) * side * side, N_SEGMENTS + 1), np.int32)
    np.add.at(votes, (cell, stills.segments[rows]), 1)
    width, narrowed = np.zeros((2, len(votes)), np.float32)
    np.maximum.at(width, cell, stills.width_px[rows])
    np.maximum.at(narrowed, cell, stills.narrowed[rows])
    found = {"segment": votes.argmax(1).astype(np.int64), "width_px": width, "narrowed": narrowed}
    return {name: values.reshape(shape) for name, values in found.items()}


def make_stills(seeds: Sequence[int], size_px: int, workers: int = 1) -> Stills:
    """Draw one still a seed of `phantom.stills.still`, in their order.

    The number of workers, processes, does not change the result.
    """
    return join(Parallel(workers)(delayed(_one)(int(seed), size_px) for seed in seeds))


def cached_stills(
    folder: str | Path, first_seed: int, count: int, size_px: int, workers: int = 1
) -> Stills:
    """Return `make_stills` for `count` seeds in a row, drawn once and kept as .npz in `folder`.

    They are kept in parts of 2000, so that a killed run goes on where it was. A part whose last
    picture would be drawn differently today, by another phantom or of another patient, is drawn
    anew.
    """
    parts = []
    for start in range(first_seed, first_seed + count, PART):
        seeds = range(start, min(start + PART, first_seed + count))
        path = Path(folder) / f"stills_v{VERSION}_{start}_{len(seeds)}_{size_px}.npz"
        kept = Stills(**np.load(path)) if path.exists() else None
        today = make_stills(seeds[-1:], size_px).images[-1]
        if kept is None or not np.array_equal(kept.images[-1], today):
            kept = make_stills(seeds, size_px, workers)
            _write(kept, path)
        parts.append(kept)
    return join(parts)


def join(parts: Sequence[Stills]) -> Stills:
    """Put sets of stills of one size behind each other."""
    columns = zip(*(vars(part).values() for part in parts), strict=True)
    return Stills(*map(np.concatenate, columns))


def _write(stills: Stills, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial.npz")
    np.savez(partial, **vars(stills))
    partial.replace(path)  # a killed run leaves no half-written cache


def _one(seed: int, size_px: int) -> Stills:
    # Held-out patients are shown once, others a few times: growing a tree costs most of a picture.
    shared = None if FIRST_HELD_OUT_SEED <= seed < FIRST_CROWDED_SEED else seed - seed % SHOWN_TIMES
    moment = _moment(seed) | {"patient": shared}
    found = still(seed, size_px, lesion=_wanted_lesion(seed), **moment)
    grades, ideal = _by_segment(found.shown), _by_segment(found.ideal)
    hidden = {x["segment"] for x in found.lesions} - {x["segment"] for x in found.shown}
    found.narrowed[np.isin(found.segments, list(hidden))] = 0
    kinds = (np.float32, np.uint8, np.float32, np.float32)
    along = (np.asarray(getattr(found, k)).astype(t) for k, t in zip(ALONG, kinds, strict=True))
    lca, counts = np.array([found.laterality == "LCA"]), np.array([len(found.points)])
    angles = np.array([[found.primary_deg, found.secondary_deg]], np.float32)
    return Stills(found.image[None], grades, ideal, lca, angles, counts, *along)


def _by_segment(lesions: Sequence[dict]) -> np.ndarray:
    grades = np.zeros((1, N_SEGMENTS), np.uint8)
    for lesion in lesions:
        grades[0, lesion["segment"] - 1] = GRADES.index(lesion["percent"]) + 1
    return grades


def _moment(seed: int) -> dict[str, float]:
    """When a still is taken: half of them wherever the study's key frames may be taken, too."""
    rng = np.random.default_rng([seed, 2])
    if rng.random() > MOVING_SHARE:
        return {"phase": DIASTASIS, "wait_s": 0.45}
    return {"phase": float(rng.random()), "wait_s": float(rng.uniform(*WAIT_S))}


def _wanted_lesion(seed: int) -> dict | list[dict] | None:
    """One lesion for two stills in three, all alike: what is rare must be seen often."""
    rng = np.random.default_rng([seed, 1])
    if seed >= FIRST_CROWDED_SEED:
        side = str(rng.choice(LATERALITIES, p=[0.7, 0.3]))
        shown = [s for s in segments_of(side) if s != 15]  # few hearts have it
        low, high = CROWDED[side]
        segments = rng.choice(shown, int(rng.integers(low, high + 1)), replace=False)
        return [{"segment": int(s), "percent": int(rng.choice(CROWDED_GRADES))} for s in segments]
    if rng.random() > LESION_SHARE:
        return None
    segment, percent = int(rng.choice(list(SEGMENT_WEIGHTS))), int(rng.choice(GRADES))
    return {"segment": segment, "percent": 99 if (segment, percent) == (5, 100) else percent}
