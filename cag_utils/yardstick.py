"""A fixed piece of work, timed on one core, so that times of two machines can be compared.

Machines differ by a factor of three. `make reference` writes this beside every time it measures;
a time divided by it says how many yardsticks the work takes, on whichever machine.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable

REPEATS = 3  # the shortest counts: whatever else runs only ever lengthens


def measure() -> dict[str, float]:
    """Return seconds of one core for the three kinds of work that the study is made of.

    Returns:
        `numpy` (arrays of a few MB, as in sampling), `numba` (a scalar loop, as in the phantom's
        renderer), `decoding` (many small products one after another, as in `generate`), and
        `seconds`, their sum. Each is the shortest of three, measured in a process of its own with
        one thread, after a first run that compiles.
    """
    env = os.environ | {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    command = [sys.executable, "-m", "cag_utils.yardstick"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def _numpy_work() -> Callable[[], object]:
    import numpy as np

    frames = np.random.default_rng(0).random((24, 512, 512), dtype=np.float32)
    return lambda: [
        (frame.mean(), frame.var(), np.fft.rfft2(frame), np.sort(frame, axis=1)) for frame in frames
    ]


def _numba_work() -> Callable[[], object]:
    import numba
    import numpy as np

    @numba.njit
    def splat(n_points: int) -> float:
        picture = np.zeros((512, 512))
        row, column = 256.0, 256.0
        for i in range(n_points):
            row = (row * 1.61803 + i % 7) % 506.0
            column = (column * 2.41421 + i % 11) % 506.0
            for dy in range(6):
                for dx in range(6):
                    picture[int(row) + dy, int(column) + dx] += np.exp(-0.1 * (dx * dx + dy * dy))
        return picture.sum()

    return lambda: splat(500_000)


def _decoding_work() -> Callable[[], object]:
    import torch

    torch.set_num_threads(1)
    source = torch.Generator().manual_seed(0)
    layers = [torch.randn(256, 256, generator=source) / 16 for _ in range(24)]

    @torch.inference_mode()
    def decode() -> torch.Tensor:
        state = torch.ones(1, 256)
        for _ in range(400):  # tokens
            for layer in layers:
                state = torch.nn.functional.silu(state @ layer) + state
            state = state / state.norm()
        return state

    return decode


def _shortest(work: Callable[[], object]) -> float:
    """Seconds of the quickest run, after one that does not count."""
    times = []
    for _ in range(REPEATS + 1):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times[1:])


if __name__ == "__main__":
    makers = {"numpy": _numpy_work, "numba": _numba_work, "decoding": _decoding_work}
    found = {name: _shortest(make()) for name, make in makers.items()}
    rounded = {name: round(value, 4) for name, value in found.items()}
    sys.stdout.write(json.dumps(rounded | {"seconds": round(sum(found.values()), 4)}) + "\n")
