"""A small world for the tests of what makes the shipped weights: toy stills, a twin a kind."""

import functools
import tempfile
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np

from cag_utils.making import stills
from cag_utils.making.stills import Stills, make_stills
from cag_utils.making.twins import IMAGE_PX, build_twin
from cag_utils.segments import check_lesion


def toy_still(seed, size_px, lesion=None, phase=0.0, wait_s=0.0, patient=None):
    """A bright square and a bar on a picture, dark for the left side, grey for the right."""
    side = ("LCA", "RCA")[seed % 2]
    lesions = [check_lesion({"segment": 7 if side == "LCA" else 2, "percent": 90})]
    image = np.full((size_px, size_px), 60 if side == "LCA" else 190, np.uint8)
    middle = size_px // 2
    image[middle : middle + 9, middle : middle + 9] = 250
    image[30:50] = 100
    bar = [[column, row] for row in (36, 44) for column in range(2, size_px, 4)]
    trunk = 5 if side == "LCA" else 1
    return SimpleNamespace(
        image=image, laterality=side, lesions=lesions, shown=lesions, ideal=[],
        primary_deg=30.0, secondary_deg=-20.0,
        points=np.array([[middle, middle], [-4, 2], *bar], np.float32),
        segments=np.array([lesions[0]["segment"], 3, *[trunk] * len(bar)]),
        width_px=np.array([4.0, 9.0, *[2.0] * len(bar)], np.float32),
        narrowed=np.array([0.9, 0.5, *[0.0] * len(bar)], np.float32),
    )  # fmt: skip


def no_points(images, grades, lca) -> Stills:
    """Stills of which no vessel is known."""
    none, n = np.empty(0, np.float32), len(images)
    angles, counts = np.full((n, 2), 30, np.float32), np.zeros(n, int)
    points, segments = none.reshape(0, 2), none.astype(np.uint8)
    return Stills(images, grades, grades, lca, angles, counts, points, segments, none, none)


@functools.cache
def toy_stills() -> Stills:
    """Eight toy stills, left and right in turn; read only."""
    with mock.patch.object(stills, "still", toy_still):
        return make_stills(range(8), IMAGE_PX)


def as_written(processor, kind, picture, question):
    """A twin's inputs as its own processor writes them."""
    if kind == "paligemma2":
        text = ["<image>" + question]
        inputs = processor(images=[[picture]], text=text, return_tensors="pt")
        inputs.pop("labels", None)
        return inputs
    parts = [{"type": "image", "image": picture}, {"type": "text", "text": question}]
    wanted = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    said = [{"role": "user", "content": parts}]
    return processor.apply_chat_template(said, add_generation_prompt=True, **wanted)


@functools.cache
def random_twin(kind: str) -> tuple[Path, object, object]:
    """A random twin's folder, model and processor, built once; train a copy."""
    folder = Path(tempfile.mkdtemp()) / kind
    return folder, *build_twin(kind, folder, seed=0)
