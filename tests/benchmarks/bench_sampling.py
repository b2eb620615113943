"""Frame statistics: OpenCV's one pass against NumPy's mean and var, as a ratio in one run.

Run: `python tests/benchmarks/bench_sampling.py`
"""

import json
import timeit

import numpy as np

from cag_utils.sampling import frame_statistics

FRAMES = (60, 512, 512)  # one cine


def main() -> dict[str, float]:
    """Return the ratio of the two times, and check that the results agree."""
    frames = np.random.default_rng(0).integers(0, 256, FRAMES, dtype=np.uint8)
    mean, variance = frame_statistics(frames)
    np.testing.assert_allclose(mean, [frame.mean() for frame in frames])
    np.testing.assert_allclose(variance, [frame.var() for frame in frames])
    fast = min(timeit.repeat(lambda: frame_statistics(frames), number=1, repeat=5))
    plain = min(timeit.repeat(lambda: [(f.mean(), f.var()) for f in frames], number=1, repeat=3))
    return {"sampling_times_numpy": round(plain / fast, 1)}


if __name__ == "__main__":
    print(json.dumps(main()))
