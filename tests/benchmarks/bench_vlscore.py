"""How much faster is VLScore over all cases at once than case by case?"""

import json
import math
import timeit

import numpy as np

from cag_utils.scores.vlscore import triangle_area

N, D = 2000, 1152  # cases x models of a study, and the width of SigLIP2


def plain_area(i: list[float], g: list[float], r: list[float]) -> float:
    """One triangle, number by number, as one would write it down from the paper."""
    a = [x - y for x, y in zip(i, g, strict=True)]
    b = [x - y for x, y in zip(r, g, strict=True)]
    aa, bb = math.fsum(x * x for x in a), math.fsum(x * x for x in b)
    ab = math.fsum(x * y for x, y in zip(a, b, strict=True))
    return 0.5 * math.sqrt(max(aa * bb - ab * ab, 0.0))


def main() -> dict[str, float]:
    """Return the ratio of the two times, and check that the results agree."""
    rng = np.random.default_rng(0)
    i, g, r = rng.normal(size=(3, N, D))
    few = slice(0, 100)
    lists = [x[few].tolist() for x in (i, g, r)]
    plain = [plain_area(*case) for case in zip(*lists, strict=True)]
    np.testing.assert_allclose(triangle_area(i[few], g[few], r[few]), plain, rtol=1e-12)
    fast = min(timeit.repeat(lambda: triangle_area(i, g, r), number=1, repeat=5)) / N
    slow = min(
        timeit.repeat(
            lambda: [plain_area(*case) for case in zip(*lists, strict=True)], number=1, repeat=3
        )
    )
    return {"vlscore_times_plain_loop": round(slow / 100 / fast, 1)}


if __name__ == "__main__":
    print(json.dumps(main()))
