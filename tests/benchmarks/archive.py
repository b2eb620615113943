"""An archive of many small cines, sampled to the end: does memory grow with their number?

Run: `python tests/benchmarks/archive.py 20000` (half an hour of a core). A tenth of the cines is
sampled first, then all of them; the peaks of memory, this process' and its workers' together,
should differ little.
"""

import json
import sys
import tempfile
import threading
from pathlib import Path
from time import perf_counter

import numpy as np
import psutil

from cag_utils.cines.sampling import sample_folder
from cag_utils.phantom.dicom import Identity, make_uid, write_xa, xa_dataset
from cag_utils.phantom.imaging.carm import CArm
from cag_utils.phantom.stills import still

SIZE_PX, N_FRAMES = 96, 12


def write_archive(folder: Path, first: int, last: int) -> None:
    """Write cines of one still that brightens and darkens, each with UIDs of its own."""
    picture, arm = still(0, SIZE_PX).image, CArm(-30.0, 25.0, 1090.0, 780.0, 1.6, SIZE_PX)
    for number in range(first, last):
        share = 0.7 + 0.3 * np.abs(np.sin(number + np.arange(N_FRAMES) / 3))
        frames = (picture * share[:, None, None]).astype(np.uint8)
        uids = (make_uid(word, number) for word in ("study", "series", "cine"))
        identity = Identity(f"PHANTOM-{number}", "F", 70, *uids, 1, "20200101", "120000")
        place = folder / f"{number // 1000:03d}"
        place.mkdir(parents=True, exist_ok=True)
        write_xa(place / f"{number:05d}.dcm", xa_dataset(frames, identity, arm, 15, 0.006))


def peak_mb(call) -> tuple[float, object]:
    """Return the most memory that this process and its children held together, and the result."""
    own, most, done = psutil.Process(), [0], threading.Event()

    def watch():
        while not done.wait(0.5):
            held = 0
            for process in (own, *own.children(recursive=True)):
                try:
                    held += process.memory_full_info().uss
                except psutil.NoSuchProcess:
                    continue  # it has just ended
            most[0] = max(most[0], held)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        result = call()
    finally:
        done.set()
        watcher.join()
    return most[0] / 1e6, result


def main(n_cines: int) -> dict[str, float]:
    """Return the peaks, and cines a second."""
    with tempfile.TemporaryDirectory() as name:
        folder, peaks, first = Path(name), [], 0
        for last in (n_cines // 10, n_cines):
            write_archive(folder / "in", first, last)
            began, first = perf_counter(), last
            out = folder / f"out_{last}"
            peak, sampled = peak_mb(lambda out=out: sample_folder(folder / "in", out, b"key"))
            seconds = perf_counter() - began
            assert len(sampled.videos) == last and sampled.frames["video_id"].nunique() == last
            peaks.append(peak)
    return {
        "archive_cines": n_cines,
        "archive_peak_mb_tenth": round(peaks[0]),
        "archive_peak_mb": round(peaks[1]),
        "archive_cines_per_second": round(n_cines / seconds, 1),
    }


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]))))
