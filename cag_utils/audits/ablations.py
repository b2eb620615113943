"""How much of the answer lies in a model's hidden states, whatever it says: a linear reader."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers import PreTrainedModel, ProcessorMixin

from cag_utils.corpus.examples import LANGUAGES, encode_prompts, open_picture
from cag_utils.making.captions import PictureFacts, write_caption
from cag_utils.params import check_choice
from cag_utils.tables import load_table, write_table

# Of the reader's coefficients, as scikit-learn's C: strong, as there are few cases and 160 numbers
# a case. Of 0.01, 0.1 and 1 it did best on test cases of an earlier corpus: not a blind choice.
REGULARISATION = 0.01
BATCH = 16  # prompts a pass: memory only


@torch.inference_mode()
def answer_states(
    model: PreTrainedModel, processor: ProcessorMixin, images: Sequence[str], prompts: Sequence[str]
) -> np.ndarray:
    """Return the state from which a model would write the first word of its answer.

    Returns:
        (prompts, width) float32: the last layer's output at the last position of each prompt.
    """
    rows = []
    for start in range(0, len(prompts), BATCH):
        part = slice(start, start + BATCH)
        pictures = [open_picture(path, processor) for path in images[part]]
        batch = encode_prompts(processor, pictures, list(prompts[part])).to(model.device)
        found = model(**batch, output_hidden_states=True, logits_to_keep=1)
        rows.append(found.hidden_states[-1][:, -1].float().cpu().numpy())
    return np.concatenate(rows)


def fit_reader(states: np.ndarray, segments: Sequence[int]) -> Pipeline:
    """Fit a linear reader of the worst lesion's AHA segment; `predict(states)` reads.

    Args:
        states: (n, width) from `answer_states`, of training cases with a lesion.
        segments: (n,) AHA numbers.

    Raises:
        ValueError: Fewer than two different segments (scikit-learn's).
    """
    reader = LogisticRegression(C=REGULARISATION, max_iter=2000)
    return make_pipeline(StandardScaler(), reader).fit(states, np.asarray(segments))


def tell_pairs(pairs: Path, language: str, told: Path, seed: int) -> Path:
    """Write a copy of the pairs in which every report ends with what the picture shows.

    The line is a list as the twins' own captions have it ("proximal LAD: severe."): segments by
    name and grades by word. AHA numbers, percents and plans are not in it.

    Args:
        pairs: Notebook 03's `pairs.csv` with the phantom's truth.
        told: The copy, which is returned; its folder exists.

    Raises:
        ValueError: Unknown language, or a lesion that its side does not show.
    """
    check_choice("language", language, LANGUAGES)
    table = load_table(pairs, dtype={"patient_id": str}, keep_default_na=False)
    rng, report = np.random.default_rng(seed), f"report_{language}"
    lines = []
    for case in table.itertuples():
        lesions = tuple(json.loads(case.truth_lesions))
        scene = PictureFacts(case.truth_laterality, lesions, "", {}, case.truth_plan)
        lines.append(write_caption(rng, scene, language, "list")[1])
    table[report] = table[report] + "\n" + pd.Series(lines, table.index)
    write_table(table, told)
    return told
