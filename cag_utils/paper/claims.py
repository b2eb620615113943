"""The paper's claims, each tested against this study's own figures; the README's results.

A verdict comes from a paired interval, clustered by exam: what the claim says is larger minus what
it says is smaller, on the same cases, by the same scorer. One that holds 0 is "unclear".
"""

import re
from collections.abc import Iterable, Mapping

import pandas as pd

from cag_utils.profiles import Stats
from cag_utils.report import MODEL_NAMES, estimate_cell, paper_table
from cag_utils.scores.rubric import CRITERIA
from cag_utils.stats import Estimate, paired_difference

# Notebook 02's metric -> the README's name, and the quantity that the paper prints.
CNN_ROWS = {
    "laterality_f1": ("side", "laterality F1 (LCA/RCA)"),
    "three_class_f1": (
        "three classes",
        "three-class key-frame weighted F1 (LCA_better/RCA_better/others)",
    ),
    "six_class_f1": ("six classes", "weighted F1 over six classes"),
}
SKILL = re.compile(r"(scores\.(\w+_lora)\.(\w+))\.skill")
SHOWN = {"skill": "skill", "lesion_f1": "lesion F1", "healthy_right": "healthy right"}
BY_LANGUAGE = {
    "lesion F1 of floors and ceilings": r"floor\.(\w+)\.{}\.lesion_f1",
    "parser, on the sentences it was mended with": r"parser\.gold\.{}\.(precision|recall)",
}
HOLDS, FAILS, UNCLEAR = "seen here too", "not seen here", "unclear"
# Claim of a tuned model, what the paper says of it, 07's metric that is above 0 if so, its unit.
MEASURED = (
    ("scores higher than its untuned base", "said, without a figure", "overall_gain", "points"),
    (
        "finds lesions better than its untuned base",
        "not measured",
        "lesion_f1_gain",
        "of lesion F1",
    ),
    ("is above every floor", "not measured", "skill", "of skill"),
)
JAPANESE_ONLY = "Japanese only"  # what the paper's reader scored
NUMBERING = "numbering_error"  # the paper's vessel error: a lesion under the wrong number


def compare_claims(
    cnn: Mapping[str, float],
    vlscores: pd.DataFrame,
    marks: Mapping[str, pd.DataFrame],
    figures: Mapping[str, Mapping[str, float]],
    backbones: list[str],
    stats: Stats,
    seed: int,
) -> pd.DataFrame:
    """Test the paper's claims on one study: a row a claim with claim, paper, here, verdict.

    Args:
        cnn: Metrics of notebook 02.
        vlscores: Notebook 06's English scores by case: patient_id, case_id, model, embedder (its
            title in the paper's Table 3), vlscore.
        marks: Language to notebook 07's scores by case: patient_id, case_id, model, overall and
            `CRITERIA`; several readers' are averaged.
        figures: Language to metrics of notebook 07: skills, and gains over the better base.

    Source:
        Nakamura et al., CAG-VLM, sections 4.2 to 5.1, Tables 3 and 4.
    """
    draws, tuned = stats.draws(seed), [f"{backbone}_lora" for backbone in backbones]
    rows = [_laterality_is_easier(cnn)]
    for language, found in figures.items():
        for model in tuned:
            name = f"{MODEL_NAMES[model]} ({language})"
            for claim, paper, key, unit in MEASURED:
                row = f"{name} {claim}", paper, *_measured(found, f"{model}.{key}", unit)
                rows.append(row)
    for title, printed in paper_table("table3_vlscore").groupby("embedder", sort=False):
        scores = vlscores[vlscores["embedder"] == title]
        rows += _highest("vlscore", f"VLScore by {title}", scores, printed, tuned, draws)
    printed = paper_table("table4_physician")
    for language, found in marks.items():
        what = f"overall score ({language})"
        rows += _highest("overall", what, found, printed, tuned, draws, language == "ja")
        rows.append(_numbering_is_commonest(found[found["model"].isin(tuned)], language, draws))
    return pd.DataFrame(rows, columns=["claim", "paper", "here", "verdict"])


def headline_table(metrics: Mapping[str, float]) -> str:
    """Return the README's results, made of `outputs/reference/metrics.json`, as Markdown.

    At most twelve rows with three backbones in two languages: figure, the phantom's value with its
    interval, the paper's. A score never stands without its floor: skill is what is above it.
    """
    printed = paper_table("in_text").set_index("quantity")["value"]
    here = "; ".join(_cell(metrics, f"cnn.{key}", 3) for key in CNN_ROWS)
    paper = "; ".join(str(printed[quantity]) for _, quantity in CNN_ROWS.values())
    rows = [(f"CNN, F1: {', '.join(name for name, _ in CNN_ROWS.values())}", here, paper)]
    means = paper_table("table4_physician").set_index("model")["mean"]
    runs = [match for key in metrics if (match := re.fullmatch(SKILL, key))]
    for stem, model, language in sorted((x.groups() for x in runs), key=lambda x: (x[2], x[1])):
        name = MODEL_NAMES[model]
        here = [f"{words} {_cell(metrics, f'{stem}.{key}', 2)}" for key, words in SHOWN.items()]
        read = language == "ja" and name in means  # the paper's reader marked Japanese reports
        paper = f"{means[name]:.2f} of 10, one cardiologist" if read else "–"
        rows.append((f"{name}, {language}", ", ".join(here), paper))
    for title, pattern in BY_LANGUAGE.items():
        if cells := _by_language(metrics, pattern):
            rows.append((title, "; ".join(cells), "–"))
    if "transfer.laterality_macro_f1" in metrics:
        seen = {key.removeprefix("transfer."): value for key, value in metrics.items()}
        exact = f"{seen['accuracy_low']:.2f} to {seen['accuracy_high']:.2f}"
        here = f"{seen['n_right']:.0f} right, exact interval of the share {exact}"
        rows.append((f"CNN: side of {seen['n_stills']:.0f} real stills", here, "–"))
    cost = f"{metrics['study.minutes']:.1f} min, {metrics['study.peak_gb']:.1f} GB"
    rows.append(("whole study, two cores", cost, "–"))
    head = ["figure", "phantom, this study", "paper, real patients"]
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in (head, *rows)]
    return "\n".join([lines[0], "|---|---|---|", *lines[1:]]) + "\n"


def _cell(metrics: Mapping[str, float], key: str, digits: int) -> str:
    if metrics.get(key) is None:
        return "–"
    known = metrics.get(f"{key}_low") is not None
    value = f"{metrics[key]:.{digits if isinstance(metrics[key], float) else 0}f}"
    return estimate_cell(*_interval(metrics, key), digits=digits) if known else value


def _by_language(metrics: Mapping[str, float], pattern: str) -> list[str]:
    """A part for each language: the names that the pattern's group finds in keys, with figures."""
    parts = []
    for language in ("en", "ja"):
        keys = {key: re.fullmatch(pattern.format(language), key) for key in sorted(metrics)}
        found = [f"{m[1].replace('_', ' ')} {_cell(metrics, k, 2)}" for k, m in keys.items() if m]
        parts += [f"{language} {', '.join(found)}"] if found else []
    return parts


def _laterality_is_easier(cnn: Mapping[str, float]) -> tuple[str, str, str, str]:
    printed = paper_table("in_text").set_index("quantity")["value"]
    both = ("laterality_f1", "six_class_f1")
    paper = " against ".join(str(printed[CNN_ROWS[name][1]]) for name in both)
    gap = _interval(cnn, "laterality_minus_six_class_f1")
    here = " against ".join(f"{cnn[name]:.3f}" for name in both) + f", {estimate_cell(*gap)} apart"
    return "The CNN tells the side far better than all six classes", paper, here, _verdict(gap)


def _measured(figures: Mapping[str, float], key: str, unit: str) -> tuple[str, str]:
    """Words and verdict of a figure whose interval says whether it is above 0."""
    if figures.get(key) is None:
        return "not run", UNCLEAR
    found = _interval(figures, key)
    return f"{estimate_cell(*found, digits=2)} {unit}", _verdict(found)


def _highest(
    column: str,
    what: str,
    scores: pd.DataFrame,
    printed: pd.DataFrame,
    tuned: list[str],
    draws: tuple,
    quoted: bool = True,
) -> list[tuple]:
    """The claim that the paper's best model leads every other tuned one, if that is a tuned one."""
    ranked = printed.sort_values("mean", ascending=False)
    names = {model: MODEL_NAMES[model] for model in tuned}
    best, digits = ranked["model"].iloc[0], 3 if column == "vlscore" else 2
    if best not in names.values():
        return []
    means = ranked.loc[ranked["model"].isin(names.values()), "mean"]
    first, *others = (f"{mean:.{digits}f}" for mean in means)
    paper = f"{first} against {' and '.join(others)}"
    wide = scores.pivot_table(column, ["patient_id", "case_id"], "model").rename(columns=names)
    found = _lead(wide, best, [name for name in names.values() if name in wide], draws, digits)
    return [(f"{best} has the highest {what}", paper if quoted else JAPANESE_ONLY, *found)]


def _numbering_is_commonest(marks: pd.DataFrame, language: str, draws: tuple) -> tuple:
    claim = f"Vessel numbering is the commonest error of tuned models ({language})"
    words = {name: CRITERIA[name].word for name in CRITERIA if name in marks}
    wide = marks.rename(columns=words).set_index(["patient_id", "case_id"])
    found = _lead(wide, words.get(NUMBERING), words.values(), draws, 2)
    table = paper_table("table4_physician")
    shares = (table["vessel_error"] / table["cases"]).sort_values()
    paper = f"{shares.iloc[0]:.0%} to {shares.iloc[-1]:.0%} of cases"
    return claim, paper if language == "ja" else JAPANESE_ONLY, *found


def _lead(
    wide: pd.DataFrame, best: str | None, names: Iterable[str], draws: tuple, digits: int
) -> tuple[str, str]:
    """All means in words with the least lead of `best` over another column, and the verdict."""
    names = list(names)
    here = ", ".join(f"{name} {wide[name].mean():.{digits}f}" for name in names)
    others = [name for name in names if name != best] if best in names else []
    pairs = {name: wide[[best, name]].dropna().reset_index() for name in others}
    leads = [
        paired_difference(both, "patient_id", best, name, *draws)
        for name, both in pairs.items()
        if len(both)
    ]
    if not leads:
        return here or "not run", UNCLEAR
    least = min(leads)
    verdict = _verdict(Estimate(least.value, *(min(x[end] for x in leads) for end in (1, 2))))
    return f"{here}; least lead {estimate_cell(*least, digits=digits)}", verdict


def _verdict(found: Estimate) -> str:
    return HOLDS if found.low > 0 else FAILS if found.high < 0 else UNCLEAR


def _interval(figures: Mapping[str, float], name: str) -> Estimate:
    return Estimate(figures[name], figures[f"{name}_low"], figures[f"{name}_high"])
