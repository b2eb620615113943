"""Sampling against a plain way to do the same, as ratios in one run, in seconds of a core.

Run: `python tests/benchmarks/bench_sampling.py`. Statistics: OpenCV's one pass against NumPy's
mean and var. A phantom cine of 64 frames: decoded once and written by the study's PNG settings,
against decoded for its statistics, again for its picks, and written by OpenCV at level 1. The
same cine ten times through a guarded worker, against the same in this process, on the wall. What
the search for burnt-in text costs a cine, clean or with a line of text: seconds of a core.

The same frames as JPEG Lossless: sampled, against decoded alone by the same library (liblj92 in
imagecodecs); decoded by `pydicom.dcmread(...).pixel_array` with pylibjpeg, against sampled, where
pylibjpeg and pylibjpeg-libjpeg (GPL: no dependency here) are installed. And sixteen copies sampled
by two processes against one, on the wall: it needs two idle cores.
"""

import json
import statistics
import tempfile
import timeit
from functools import partial
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from time import perf_counter, process_time

import cv2
import numpy as np
import pydicom
from imagecodecs import ljpeg_decode, ljpeg_encode
from pydicom import uid
from pydicom.encaps import encapsulate, generate_frames

from cag_utils.cines.dicom import iter_frames, read_header
from cag_utils.cines.guard import Guard
from cag_utils.cines.sampling import (
    JOURNAL,
    frame_statistics,
    pick_extrema,
    sample_cine,
    sample_folder,
)
from cag_utils.cines.text import Extremes, find_text
from cag_utils.phantom.dicom import Identity, make_uid, write_xa, xa_dataset
from cag_utils.phantom.imaging.carm import CArm
from cag_utils.phantom.stills import still

N_DRAWN, N_FRAMES = 8, 64


def write_cine(folder: Path) -> np.ndarray:
    """Write a cine of a few stills that take turns, brighter and darker; return its frames."""
    drawn = [still(seed, 512).image for seed in range(N_DRAWN)]
    dark = 0.7 + 0.3 * np.abs(np.sin(np.arange(N_FRAMES) / 3))
    frames = np.stack([(drawn[i % N_DRAWN] * s).astype(np.uint8) for i, s in enumerate(dark)])
    uids = (make_uid("study"), make_uid("series"), make_uid("cine"))
    identity = Identity("PHANTOM-BENCH", "F", 70, *uids, 1, "20200101", "120000")
    arm = CArm(-30.0, 25.0, 1090.0, 780.0, 0.3, 512)
    write_xa(folder / "cine.dcm", xa_dataset(frames, identity, arm, 15, 0.006))
    return frames


def plain_way(path: Path, out: Path) -> list[Path]:
    """Decode, pick, decode the picks again, write them; return the pictures."""
    picks = pick_extrema(*frame_statistics(iter_frames(path)))["frame"].tolist()
    out.mkdir(exist_ok=True)
    for number, frame in zip(picks, iter_frames(path, picks), strict=True):
        cv2.imwrite(str(out / f"{number:04d}.png"), frame, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    return sorted(out.iterdir())


def best(call) -> float:
    """Least seconds of a core of five runs."""
    return min(timeit.repeat(call, timer=process_time, number=1, repeat=5))


def wall(call) -> float:
    """Seconds on the wall."""
    start = perf_counter()
    call()
    return perf_counter() - start


def write_lossless(cine: Path, frames: np.ndarray, path: Path, number: int) -> Path:
    """Write a cine anew as JPEG Lossless, under a UID of its own."""
    dataset = pydicom.dcmread(cine)
    dataset.PixelData = encapsulate([ljpeg_encode(frame) for frame in frames])
    dataset["PixelData"].VR = "OB"
    dataset.file_meta.TransferSyntaxUID = uid.JPEGLosslessSV1
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.{number}"
    dataset.save_as(path)
    return path


def decode_alone(path: Path) -> list[np.ndarray]:
    """Decode every frame, and nothing else."""
    data = pydicom.dcmread(path)
    return [
        ljpeg_decode(frame) for frame in generate_frames(data.PixelData, number_of_frames=N_FRAMES)
    ]


def pylibjpeg_way(path: Path) -> np.ndarray:
    """Decode as pydicom does with pylibjpeg."""
    data = pydicom.dcmread(path)
    data.pixel_array_options(decoding_plugin="pylibjpeg")
    return data.pixel_array


def lossless_ratios(cine: Path, frames: np.ndarray, folder: Path) -> dict[str, float]:
    """Return the ratios of JPEG Lossless; ways in turn, medians of the rounds' ratios."""
    (folder / "many").mkdir()
    paths = [write_lossless(cine, frames, folder / "many" / f"{i:02d}", i) for i in range(16)]
    np.testing.assert_array_equal(decode_alone(paths[0]), frames)
    settings = {"key": b"key", "pick": pick_extrema, "min_gap": 5}
    header, new = read_header(paths[0]), map(str, count())  # no folder is written over
    ways = {
        "bare": lambda: decode_alone(paths[0]),
        "own": lambda: list(sample_cine(header, out=folder / "out" / next(new), **settings)),
    }
    if find_spec("pylibjpeg") and find_spec("libjpeg"):
        ways["pylibjpeg"] = lambda: pylibjpeg_way(paths[0])
    for n in (1, 2):
        to = folder / f"{n}"
        ways[n] = partial(sample_folder, folder / "many", to, b"key", n_workers=n)
    rounds = []
    for _ in range(5):
        for n in (1, 2):
            (folder / f"{n}" / JOURNAL).unlink(missing_ok=True)
        clock = {name: wall if name in (1, 2) else core for name in ways}
        rounds.append({name: clock[name](way) for name, way in ways.items()})

    def ratio(one, other) -> float:
        return round(statistics.median(x[one] / x[other] for x in rounds), 2)

    found = {"sampling_times_bare_decoding": ratio("own", "bare")}
    found["sampling_two_processes_times_one"] = ratio(1, 2)
    if "pylibjpeg" in ways:
        found["sampling_faster_than_pylibjpeg"] = ratio("pylibjpeg", "own")
    return found


def core(call) -> float:
    """Seconds of a core."""
    start = process_time()
    call()
    return process_time() - start


def main() -> dict[str, float]:
    """Return the ratios of the times, and check that the results agree."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "in").mkdir()
        frames = write_cine(folder / "in")
        path, out = folder / "in" / "cine.dcm", folder / "out"
        plain = plain_way(path, folder / "plain")
        table = sample_folder(folder / "in", out, b"key").frames
        for here, there in zip(plain, table["png"], strict=True):
            one, other = (cv2.imread(str(p), cv2.IMREAD_UNCHANGED) for p in (here, out / there))
            np.testing.assert_array_equal(one, other)
        work = partial(sample_cine, out=out, key=b"key", pick=pick_extrema, min_gap=5)
        cine = read_header(path)
        slow = best(lambda: plain_way(path, folder / "plain"))
        fast = best(lambda: list(work(cine)))
        ten = [cine] * 10
        with Guard() as guard:
            list(guard.run(work, ten))  # it has started
            pairs = []
            for _ in range(5):
                guarded_s = wall(lambda: list(guard.run(work, ten)))
                pairs.append((guarded_s, wall(lambda: [list(work(c)) for c in ten])))
        lossless = lossless_ratios(path, frames, folder)
        guarded, bare = (min(seconds) for seconds in zip(*pairs, strict=True))
    mean, variance = frame_statistics(frames)
    np.testing.assert_allclose(mean, [frame.mean() for frame in frames])
    np.testing.assert_allclose(variance, [frame.var() for frame in frames])
    numpy_s = best(lambda: [(f.mean(), f.var()) for f in frames])
    named = [cv2.putText(x.copy(), "PHANTOM 0", (40, 60), 0, 0.6, 255, 1) for x in frames]
    search_s = {}
    for name, cine in {"clean": frames, "named": named}.items():
        seen = Extremes()
        remember_s = best(lambda cine=cine, seen=seen: list(seen.of(cine)))
        assert bool(find_text(seen)) == (name == "named")
        find_s = best(lambda seen=seen: find_text(seen))
        search_s[f"sampling_text_seconds_{name}"] = round(remember_s + find_s, 3)
    return (
        search_s
        | {
            "sampling_times_numpy": round(numpy_s / best(lambda: frame_statistics(frames)), 1),
            "sampling_times_plain": round(slow / fast, 2),
            "sampling_guarded_times_bare": round(bare / guarded, 2),
            "sampling_frames_per_second": round(N_FRAMES / fast),
        }
        | lossless
    )


if __name__ == "__main__":
    print(json.dumps(main()))
