"""What the phantom's tests share: a generator by its seed, and a shot that shows vessels alone."""

from dataclasses import replace

import numpy as np


def rng(seed=0):
    return np.random.default_rng(seed)


def quiet(shot, **more):
    """The shot with breath held and the table still, without blush, reflux and guide wire."""
    still = {"breath_mm": 0.0, "pan_px": np.zeros_like(shot.pan_px), "blush": 0.0, "reflux": 0.0}
    return replace(shot, **still | {"guide_wire": False} | more)
