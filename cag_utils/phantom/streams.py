"""Random streams that are named: what a thing is decides its numbers, never what was drawn before.

One long stream for a whole patient breaks as soon as two processors disagree in the last bit of a
length: one draws a number more, and everybody after it becomes somebody else. Here every branch,
lesion, device, shot and frame has a stream of its own, keyed by its name.
"""

import zlib

import numpy as np

VERSION = 9  # of the phantom: raise it whenever the same settings give other pictures or tables


class Streams:
    """The named streams of one thing; the same key and name always give the same numbers.

    Args:
        source: A generator, of which exactly one key is drawn (so that its caller's own stream
            moves on by a fixed amount), or the key's words, integers of 0 or more.
    """

    def __init__(self, source: np.random.Generator | tuple[int, ...]):
        if isinstance(source, np.random.Generator):
            source = tuple(map(int, source.integers(2**32, size=4)))
        self.key = source

    def __call__(self, *words: str | int) -> np.random.Generator:
        """Return the generator of the part with this name, e.g. `streams("twig", 3)`."""
        named = (zlib.crc32(w.encode()) if isinstance(w, str) else w for w in words)
        return np.random.default_rng([*self.key, *named])
