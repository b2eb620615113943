"""Tell a model in words what its picture shows: an ablation of seeing, for notebook A6."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from cag_utils.examples import LANGUAGES
from cag_utils.making_captions import Scene, write_caption
from cag_utils.params import check_choice


def tell_pairs(pairs: Path, language: str, told: Path, seed: int) -> Path:
    """Write a copy of the pairs in which every report ends with what the picture shows.

    The line is a list as the twins' own captions have it ("proximal LAD: severe."): segments by
    name and grades by word. AHA numbers, percents and plans are not in it.

    Args:
        pairs: Notebook 03's `pairs.csv` with the phantom's truth.
        language: en or ja.
        told: The copy; its folder exists.
        seed: Of the wording.

    Returns:
        `told`.

    Raises:
        ValueError: Unknown language, or a lesion that its side does not show.
    """
    check_choice("language", language, LANGUAGES)
    table = pd.read_csv(pairs, dtype={"patient_id": str}, keep_default_na=False)
    rng, report = np.random.default_rng(seed), f"report_{language}"
    lines = []
    for case in table.itertuples():
        lesions = tuple(json.loads(case.truth_lesions))
        scene = Scene(case.truth_laterality, lesions, "", {}, case.truth_plan)
        lines.append(write_caption(rng, scene, language, "list")[1])
    table[report] = table[report] + "\n" + pd.Series(lines, table.index)
    table.to_csv(told, index=False)
    return told
