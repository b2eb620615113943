"""Numba's disc splatting against NumPy's bincount, as a ratio; seconds a cine, stage by stage.

Run: `python tests/benchmarks/bench_phantom.py`. CPU seconds of this process, so that a busy machine
does not blur them; a cine has 60 frames of 512 x 512.
"""

import json
import subprocess
import sys
import time

import cv2
import numpy as np

from cag_utils.phantom.dicom import encode_jpeg
from cag_utils.phantom.imaging import render
from cag_utils.phantom.imaging.chest import draw_backdrop
from cag_utils.phantom.imaging.detector import expose
from cag_utils.phantom.imaging.display import Display
from cag_utils.phantom.imaging.instruments import Instruments
from cag_utils.phantom.imaging.pose import pose_tree
from cag_utils.phantom.imaging.render import film
from cag_utils.phantom.imaging.shot import draw_shot
from cag_utils.phantom.imaging.splat import SMALLEST_PX, draw_discs
from cag_utils.phantom.stills import still
from cag_utils.phantom.subject import diseased_tree, draw_subject


def splat_numpy(image, u, v, radius_px, weight):
    """The plain library way: one stencil a disc radius, summed by np.bincount."""
    height, width = image.shape
    thin = radius_px < SMALLEST_PX
    weight = np.where(thin, weight * radius_px**2 / (SMALLEST_PX**2 + 1 / 12), weight)
    radius = np.where(thin, SMALLEST_PX, radius_px)
    index, value = [], []
    reach = np.ceil(radius + 1).astype(int)
    for half in np.unique(reach):
        mine = reach == half
        offset = np.arange(-half, half + 1)
        x = np.rint(u[mine]).astype(int)[:, None, None] + offset[None, None]
        y = np.rint(v[mine]).astype(int)[:, None, None] + offset[None, :, None]
        away = np.sqrt((x - u[mine, None, None]) ** 2 + (y - v[mine, None, None]) ** 2)
        cover = np.clip(radius[mine, None, None] + 0.5 - away, 0, 1) * weight[mine, None, None]
        keep = (cover > 0) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
        index.append((y * width + x)[keep])
        value.append(cover[keep])
    total = np.bincount(np.concatenate(index), np.concatenate(value), minlength=image.size)
    image += total.reshape(image.shape).astype(image.dtype)


def discs(rng, count=12_000, size=512):
    """Discs as one full frame has them: mostly thin."""
    radius = np.clip(rng.gamma(2.0, 1.2, count), 0.4, 9)
    return (
        rng.uniform(0, size, count),
        rng.uniform(0, size, count),
        radius,
        rng.uniform(0, 0.1, count),
    )


def seconds(call, repeats=5):
    """Best CPU time of a few calls."""
    took = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        took.append(time.process_time() - start)
    return min(took)


def splat_ratio():
    """(NumPy over numba, largest difference of the two pictures)."""
    drawn = discs(np.random.default_rng(0))
    plain, fast = np.zeros((512, 512)), np.zeros((512, 512), np.float32)
    spans = np.tile(np.array([512, -1]), (512, 1))
    draw_discs(fast, spans, *drawn)
    splat_numpy(plain, *drawn)
    difference = float(np.abs(plain - fast).max())
    slow = seconds(lambda: splat_numpy(plain, *drawn), 3)
    return slow / seconds(lambda: draw_discs(fast, spans, *drawn)), difference


class Stopwatch:
    """Adds up CPU seconds of functions and methods it is wrapped around."""

    def __init__(self):
        self.seconds = {}

    def wrap(self, owner, name, stage):
        plain = getattr(owner, name)

        def timed(*args, **kwargs):
            start = time.process_time()
            result = plain(*args, **kwargs)
            self.seconds[stage] = self.seconds.get(stage, 0) + time.process_time() - start
            return result

        setattr(owner, name, timed)
        return lambda: setattr(owner, name, plain)


def cine(seed, side, n_frames=60):
    """Subject, tree and shot of one normal cine."""
    rng = np.random.default_rng(seed)
    subject = draw_subject(rng, (0.5, 0.5))
    tree, _ = diseased_tree(rng, subject, side)
    return rng, subject, tree, draw_shot(rng, subject, tree, n_frames=n_frames)


def cine_seconds(n_cines=8):
    """(mean CPU seconds a cine, share of each stage), both sides in turn."""
    watch = Stopwatch()
    scenes = [cine(seed, ("LCA", "RCA")[seed % 2]) for seed in range(n_cines)]
    stages = (
        (render, "draw_backdrop", "backdrop"),
        (render, "expose", "expose"),
        (render, "pose_tree", "motion"),
        (render._Canvas, "tree", "vessels"),
        (Instruments, "draw", "instruments"),
        (render._Canvas, "develop", "compose"),
        (Display, "finish", "display"),
    )
    undo = [watch.wrap(*stage) for stage in stages]
    start = time.process_time()
    for scene in scenes:
        film(*scene)
    total = time.process_time() - start
    for restore in undo:
        restore()
    watch.seconds["compose"] -= watch.seconds["display"]  # the one is called in the other
    shares = {name: round(took / total, 3) for name, took in watch.seconds.items()}
    return total / n_cines, shares


def frames_ratio():
    """CPU time of 240 frames over that of 60: 4 if linear, less as the backdrop is drawn once."""
    long, short = (
        seconds(lambda n=n: film(*cine(3, "LCA", n)), 3) - seconds(lambda n=n: cine(3, "LCA", n), 3)
        for n in (240, 60)
    )
    return long / short


def worker_mb():
    """Peak resident memory of a fresh process that films one patient of 80-frame cines, MB."""
    code = (
        "import resource, tempfile, pathlib\n"
        "from cag_utils.phantom.cohort import CohortSettings, shoot_patient\n"
        "folder = pathlib.Path(tempfile.mkdtemp())\n"
        "(folder / 'patients').mkdir()\n"
        "shoot_patient(folder, CohortSettings('cnn', 0, 1, 3, 80, 80), 0)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout)


def main() -> dict[str, float]:
    """Warm the compiled code up, measure, and check that both ways of splatting agree."""
    cv2.setNumThreads(1)
    rng, subject, tree, shot = cine(0, "LCA")
    frames, _ = film(rng, subject, tree, shot)
    depth = draw_backdrop(rng, shot.arm, subject.body, shot.margin_px)
    pose_tree(tree, shot), expose(rng, depth, shot.look, shot.margin_px), still(0, 256)
    per_cine, shares = cine_seconds()
    ratio, difference = splat_ratio()
    figures = {
        "phantom_cine_cpu_seconds": round(per_cine, 3),
        "phantom_splat_times_numpy": round(ratio, 1),
        "phantom_240_over_60_frames": round(frames_ratio(), 2),
        "phantom_worker_mb": round(worker_mb()),
        "phantom_tree_cpu_ms": round(1000 * seconds(lambda: cine(1, "LCA")), 1),
        "phantom_jpeg_cpu_seconds": round(seconds(lambda: [encode_jpeg(f) for f in frames], 2), 3),
        "phantom_jpeg_mb": round(sum(len(encode_jpeg(f)) for f in frames) / 1e6, 2),
        "phantom_jpeg_grey_rms": round(jpeg_error(frames[::20]), 2),
    }
    for size in (512, 256):
        took = [seconds(lambda s=seed, z=size: still(s, z), 1) for seed in range(1, 13)]
        figures[f"phantom_still_{size}_cpu_ms"] = round(1000 * float(np.median(took)), 1)
    assert difference < 1e-4, f"the two ways of splatting differ by {difference}"
    return figures | {f"phantom_share_{stage}": share for stage, share in shares.items()}


def jpeg_error(frames):
    """Root mean square error of the encoded frames, grey levels."""
    coded = [cv2.imdecode(np.frombuffer(encode_jpeg(f), np.uint8), 0) for f in frames]
    return float(np.sqrt(np.mean((np.stack(coded).astype(float) - frames) ** 2)))


if __name__ == "__main__":
    print(json.dumps(main()))
