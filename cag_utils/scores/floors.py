"""Floors and ceilings: what an answer scores that knows nothing, or everything, of the picture.

A score without them says nothing: written under every picture, one sentence about a healthy artery
earned more of the rubric's points than most tuned models. Each is one entry of `BOUNDS`, and its
answers are rows of notebook 05's `generations.csv`, scored like any other: texts under the entry's
name, and a tuned model asked otherwise under `<model>@<name>`.
"""

import itertools
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from cag_utils.corpus.pairs import prompt
from cag_utils.params import check_choice
from cag_utils.report import MODEL_COLOURS, MODEL_NAMES
from cag_utils.scores.entities import Entities, read_entities
from cag_utils.scores.measures import measures
from cag_utils.scores.rubric import score, states_significant, truth_of
from cag_utils.segments import AHA_SEGMENTS, artery_of

SENTENCES = {  # as both languages' readers of entities know them
    "en": ("{place} shows {grade}stenosis.", "No significant stenosis in the {side}."),
    "ja": ("{place}に{grade}の狭窄を認めます。", "{side}に有意狭窄は認めません。"),
}
GAP = {"en": " ", "ja": ""}  # between sentences
AT = "@"  # between a model and how it was asked
ZERO_SHOT = "zero"  # an untuned model without examples in its prompt: no floor
# Training rows and cases of pairs.csv, and language, to one text a case; None: not to be had.
Writer = Callable[[pd.DataFrame, pd.DataFrame, str], "pd.Series | None"]
# Cases of `examples.read_examples`, language and a folder, to the cases as the model is asked them.
Asker = Callable[[pd.DataFrame, str, Path], pd.DataFrame]


def write_constant(measure: str) -> Writer:
    """Return the writer of the best constant sentences for a measure: one a side."""

    def write(train: pd.DataFrame, cases: pd.DataFrame, language: str) -> pd.Series:
        best = best_constants(train, language, measure)
        return cases["laterality"].map(best).fillna(next(iter(best.values())))

    return write


def best_constants(train: pd.DataFrame, language: str, measure: str) -> dict[str, str]:
    """Choose the training sentence of each side that scores best under all of its pictures.

    Sides are chosen together, since an F1 of both is no mean of two. Of equals the first in order
    of their text is taken; sentences that say the same are one.

    Args:
        train: Training rows of pairs.csv: laterality, findings_<language> and the truth.
        measure: A key of `measures()`.

    Raises:
        ValueError: Unknown measure, or there is no training row.
    """
    figure = measures()[check_choice("measure", measure, measures())]
    if train.empty:
        raise ValueError("no training case to choose a constant sentence from")
    sides = []
    for _, rows in train.groupby("laterality"):
        said: dict[Entities, str] = {}
        for text in sorted(set(rows[f"findings_{language}"]), reverse=True):
            said[read_entities(text, language)] = text
        truths = pd.Series([truth_of(row, language) for _, row in rows.iterrows()]).value_counts()
        marks = pd.DataFrame([score(one, truth) for one in said for truth in truths.index])
        sums = figure.sums(marks).reshape(len(said), len(truths), 2)
        sides.append(dict(zip(said.values(), np.einsum("stk,t->sk", sums, truths), strict=True)))

    def value(texts: tuple[str, ...]) -> float:
        above, below = sum(side[text] for side, text in zip(sides, texts, strict=True))
        return above / below if below else 0.0

    best = max(itertools.product(*(sorted(side) for side in sides)), key=value)
    return dict(zip(sorted(set(train["laterality"])), best, strict=True))


def write_commonest(train: pd.DataFrame, cases: pd.DataFrame, language: str) -> pd.Series:
    """Name each side's commonest significant segment with its commonest grade and plan."""
    said = {}
    for side, rows in train.groupby("laterality"):
        lesions, advice = [], []
        for _, row in rows.iterrows():
            for s in truth_of(row, language).stenoses:
                if s.segment in AHA_SEGMENTS and states_significant(s):
                    lesions.append((s.segment, s.percent))
                    advice.append(advice_of(row[f"findings_{language}"], language))
        table = pd.DataFrame({"lesion": lesions, "advice": advice})
        number = table["lesion"].str[0].mode()
        table = table[table["lesion"].str[0].isin(number[:1])]
        found = [
            {"segment": segment, "percent": percent}
            for segment, percent in table["lesion"].mode()[:1]
        ]
        parts = [state_lesions(found, side, language), *table["advice"].mode()[:1]]
        said[side] = GAP[language].join(parts)
    return cases["laterality"].map(said).fillna(next(iter(said.values())))


def write_ideal(train: pd.DataFrame, cases: pd.DataFrame, language: str) -> pd.Series | None:
    """State what the phantom's ideal reader sees of each frame, and advises, in the corpus's words.

    Own data have no such reader: None.
    """
    if not {"ideal_lesions", "ideal_plan"} <= set(cases):
        return None
    both = pd.concat([train, cases])
    advice = {
        plan: advice_of(texts.iloc[0], language)
        for plan, texts in both.groupby("truth_plan")[f"findings_{language}"]
    }
    texts = [
        GAP[language].join([state_lesions(json.loads(found), side, language), advice.get(plan, "")])
        for found, side, plan in zip(
            cases["ideal_lesions"], cases["truth_laterality"], cases["ideal_plan"], strict=True
        )
    ]
    return pd.Series(texts, cases.index).str.strip()


def state_lesions(lesions: Iterable[Mapping], side: str, language: str) -> str:
    """Write lesions (`segment`, `percent`) as sentences that `read_entities` reads back."""
    stated, none = SENTENCES[check_choice("language", language, SENTENCES)]
    found = [
        stated.format(
            place=f"{artery_of(x['segment'])} #{x['segment']}",
            grade=f"{x['percent']:.0f}%{GAP[language]}" if x["percent"] else "",
        )
        for x in lesions
    ]
    return GAP[language].join(found) or none.format(side=side)


def advice_of(text: str, language: str) -> str:
    """Return the sentences of a text that state a plan and nothing about lesions."""
    parts = re.split(r"(?<=[.。])\s*", text)
    read = [(part, read_entities(part, language)) for part in parts if part]
    return GAP[language].join(part for part, e in read if e.plans and not (e.stenoses or e.cleared))


def ask_blank(cases: pd.DataFrame, language: str, folder: Path) -> pd.DataFrame:
    """Put an even grey picture, written to the folder, in the place of every picture."""
    path = folder / "blank.png"
    Image.new("L", (512, 512), 128).save(path)
    return cases.assign(image=str(path))


def ask_noise(cases: pd.DataFrame, language: str, folder: Path) -> pd.DataFrame:
    """Scatter the pixels of every picture: its grey levels, and nothing to see."""
    rng = np.random.default_rng(0)
    return _redraw(cases, folder / "noise", lambda x: rng.permutation(x.ravel()).reshape(x.shape))


def ask_mirrored(cases: pd.DataFrame, language: str, folder: Path) -> pd.DataFrame:
    """Mirror every picture, left to right: vessels and lesions are there, where none ever is."""
    return _redraw(cases, folder / "mirrored", np.fliplr)


def _redraw(cases: pd.DataFrame, folder: Path, change: Callable) -> pd.DataFrame:
    folder.mkdir(exist_ok=True)
    images = [str(folder / f"{case}.png") for case in cases["case_id"]]
    for source, path in zip(cases["image"], images, strict=True):
        with Image.open(source) as found:
            Image.fromarray(np.ascontiguousarray(change(np.asarray(found.convert("L"))))).save(path)
    return cases.assign(image=images)


def ask_other(cases: pd.DataFrame, language: str, folder: Path) -> pd.DataFrame:
    """Give each case the picture of another patient's case of the same side."""
    return _exchange(cases, "image")


def ask_other_report(cases: pd.DataFrame, language: str, folder: Path) -> pd.DataFrame:
    """Put the report of another patient, whose case is of the same side, into the prompt."""
    cases = _exchange(cases, "report")
    return _with_report(cases, cases["report"], language)


def ask_without_report(cases: pd.DataFrame, language: str, folder: Path) -> pd.DataFrame:
    """Leave the report out of the prompt."""
    return _with_report(cases, [""] * len(cases), language)


def _exchange(cases: pd.DataFrame, column: str) -> pd.DataFrame:
    """Move a column on to another patient's cases of the same side.

    Cases are sorted by patient and shifted by the most that one patient has, so that none keeps its
    own; where one patient has more than half of a side's cases, that side is left out.
    """
    parts = []
    for _, side in cases.sort_values(["patient_id", "case_id"]).groupby("laterality"):
        most = side["patient_id"].value_counts().max()
        if 2 * most <= len(side):
            parts.append(side.assign(**{column: np.roll(side[column], most)}))
    return pd.concat(parts) if parts else cases.head(0)


def _with_report(cases: pd.DataFrame, reports: Iterable[str], language: str) -> pd.DataFrame:
    asked = zip(cases["laterality"], reports, strict=True)
    return cases.assign(prompt=[prompt(side, text, language).strip() for side, text in asked])


@dataclass(frozen=True)
class Bound:
    """A floor or a ceiling: a writer of texts, or a way in which tuned models are asked or made."""

    title: str  # in tables and figures; of a model asked otherwise, behind the model's name
    ceiling: bool = False
    blind: bool = True  # whether the picture is hidden: what a skill starts from
    study: bool = True  # whether notebook 05 has it; else appendix A7 alone
    write: Writer | None = None
    ask: Asker | None = None


BOUNDS: dict[str, Bound] = {
    "constant": Bound("Best constant sentence", write=write_constant("overall")),
    "constant_f1": Bound("Best constant for lesion F1", write=write_constant("lesion_f1")),
    "commonest": Bound("Commonest lesion of the side", write=write_commonest),
    "blank": Bound("blank picture", ask=ask_blank),
    "other": Bound("another patient's picture", ask=ask_other),
    "no_report": Bound("no report", blind=False, ask=ask_without_report),
    "noise": Bound("scattered pixels", study=False, ask=ask_noise),
    "mirrored": Bound("mirrored picture", blind=False, study=False, ask=ask_mirrored),
    "other_report": Bound("another report", blind=False, study=False, ask=ask_other_report),
    "text_only": Bound("trained on reports alone", study=False),  # another model's adapter
    "ideal": Bound("Ideal reader", ceiling=True, write=write_ideal),
    "truth": Bound(
        "Truth", ceiling=True, write=lambda _, cases, language: cases[f"findings_{language}"]
    ),
}
CEILING = "truth"  # of a skill


def name_of(model: str) -> str:
    """Return a model's, a floor's or a ceiling's name in tables and figures; its key if unknown."""
    if model in BOUNDS:
        return BOUNDS[model].title
    own, _, asked = model.partition(AT)
    how = "zero-shot" if asked == ZERO_SHOT else getattr(BOUNDS.get(asked), "title", asked)
    return MODEL_NAMES.get(own, own) + (f", {how}" if how else "")


def colour_of(model: str) -> str:
    """Return its colour: a model's own, however it was asked; a grey for texts."""
    return MODEL_COLOURS.get(model.partition(AT)[0], "0.75" if is_floor(model) else "0.5")


def is_bound(model: str) -> bool:
    """Tell floors and ceilings from models."""
    return model in BOUNDS or model.partition(AT)[2] in BOUNDS


def is_floor(model: str) -> bool:
    """Tell floors from ceilings and models."""
    return is_bound(model) and not BOUNDS[model.partition(AT)[2] or model].ceiling


def in_order(models: Iterable[str]) -> list[str]:
    """Return the distinct models in the order of `report.MODEL_NAMES`, others by name behind them.

    A model asked otherwise follows itself; floors come after all models, ceilings last.
    """
    names, bounds = list(MODEL_NAMES), list(BOUNDS)

    def place(model: str) -> tuple:
        own, _, asked = model.partition(AT)
        block = 0 if not is_bound(model) else 1 if is_floor(model) else 2
        known = names.index(own) if own in names else len(names)
        bound = bounds.index(own) if own in bounds else -1
        return block, bound == -1 and block == 1, bound, known, own, asked

    return sorted(set(models), key=place)


def floors_of(model: str, models: Iterable[str]) -> list[str]:
    """Return the floors, among some models, that a model stands on: all texts, and itself blind.

    Itself without the report sees the picture: what it lacks is the report's worth, no floor.
    """
    floors = {m: BOUNDS[m.partition(AT)[2] or m] for m in models if is_floor(m)}
    found = [m for m, bound in floors.items() if bound.blind and bound.study]
    return [m for m in found if AT not in m or (m != model and m.partition(AT)[0] == model)]
