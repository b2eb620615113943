"""The paper's claims, each tested against this study's own figures; the README's results."""

from collections.abc import Mapping

import pandas as pd

from cag_utils.report import MODEL_NAMES, estimate_cell, paper_table
from cag_utils.scores.rubric import CRITERIA

# The README's name -> notebook 02's metric, and the quantity that the paper prints.
CNN_ROWS = {
    "side, F1": ("laterality_f1", "laterality F1 (LCA/RCA)"),
    "three classes, weighted F1": (
        "three_class_f1",
        "three-class key-frame weighted F1 (LCA_better/RCA_better/others)",
    ),
    "six classes, weighted F1": ("six_class_f1", "weighted F1 over six classes"),
}
HOLDS, FAILS, UNCLEAR = "seen here too", "not seen here", "unclear"


def compare_claims(
    cnn: Mapping[str, float],
    vlscores: Mapping[str, float],
    marks: Mapping[str, Mapping[str, float]],
    backbones: list[str],
) -> pd.DataFrame:
    """Test the paper's claims on one study: a row a claim with claim, paper, here, verdict.

    Args:
        cnn: Metrics of notebook 02.
        vlscores: Metrics of notebook 06, English.
        marks: Language to metrics of notebook 07.
        backbones: Fine-tuned backbones.

    Source:
        Nakamura et al., CAG-VLM, sections 4.2 to 5.1, Tables 3 and 4.
    """
    rows = [
        _laterality_is_easier(cnn),
        *(_tuning_helps(marks[la], backbone, la) for la in marks for backbone in backbones),
        *_highest_vlscores(vlscores, backbones),
        *(_highest_mark(marks[la], backbones, la) for la in marks),
        *(_vessels_are_hardest(marks[la], backbones, la) for la in marks),
    ]
    return pd.DataFrame(rows, columns=["claim", "paper", "here", "verdict"])


def headline_table(metrics: Mapping[str, float]) -> str:
    """Return the README's results, made of `outputs/reference/metrics.json`, as Markdown.

    Two rows a backbone and six others: figure, the phantom's value with its interval, the paper's.
    """
    printed = paper_table("in_text").set_index("quantity")["value"]
    rows = [
        (f"CNN: {name}", _cell(metrics, f"cnn.{key}"), printed[quantity])
        for name, (key, quantity) in CNN_ROWS.items()
    ]
    runs = sorted({tuple(key.split(".")[1:3]) for key in metrics if key.startswith("finetune.")})
    means = paper_table("table4_physician").set_index("model")["mean"]
    tables = {"overall_mean": "rubric, 0 to 10", "lesions_named": "lesions whose segment is named"}
    for measure, words in tables.items():
        for backbone in dict.fromkeys(backbone for backbone, _ in runs):
            model = MODEL_NAMES[f"{backbone}_lora"]
            here = [_tuned(metrics, b, la, measure) for b, la in runs if b == backbone]
            read = measure == "overall_mean" and model in means
            paper = f"{means[model]:.2f} (ja, one cardiologist)" if read else "–"
            rows.append((f"{model}: {words}", "; ".join(here), paper))
    rows.append(("VLScore, tuned, en, three embedders", *_vlscore_range(metrics, runs)))
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


def _cell(metrics: Mapping[str, float], key: str, digits: int = 3) -> str:
    known = f"{key}_low" in metrics
    value = f"{metrics[key]:.{digits}f}"
    return estimate_cell(*_interval(metrics, key), digits=digits) if known else value


def _tuned(metrics: Mapping[str, float], backbone: str, language: str, measure: str) -> str:
    stem = f"finetune.{backbone}.{language}"
    base = metrics.get(f"{stem}.base_{measure}")
    untuned = "not run" if base is None else f"{base:.2f}"
    return f"{language} {_cell(metrics, f'{stem}.{measure}', 2)}, untuned {untuned}"


def _vlscore_range(metrics: Mapping[str, float], runs: list[tuple]) -> tuple[str, str]:
    """Lowest to highest mean of the tuned models, here and in the paper."""
    tuned = {backbone for backbone, _ in runs}
    keys = [key.split(".") for key in metrics if key.startswith("vlscore.")]
    means = [metrics[".".join(key)] for key in keys if key[1] in tuned and key[3:] == ["mean"]]
    here = f"{min(means):.2f} to {max(means):.2f}" if means else "not run"
    printed = paper_table("table3_vlscore")
    printed = printed[printed["model"].isin(MODEL_NAMES[f"{b}_lora"] for b in tuned)]["mean"]
    return here, f"{printed.min():.2f} to {printed.max():.2f} (an unknown C)"


def _laterality_is_easier(cnn: Mapping[str, float]) -> tuple[str, str, str, str]:
    side, six = _interval(cnn, "laterality_f1"), _interval(cnn, "six_class_f1")
    verdict = HOLDS if side[1] > six[2] else FAILS if side[2] < six[1] else UNCLEAR
    here = f"{estimate_cell(*side)} against {estimate_cell(*six)}"
    claim = "The CNN tells the side far better than all six classes"
    printed = paper_table("in_text").set_index("quantity")["value"]
    six_classes = printed["weighted F1 over six classes"]
    return claim, f"{printed['laterality F1 (LCA/RCA)']} against {six_classes}", here, verdict


def _tuning_helps(marks: Mapping, backbone: str, language: str) -> tuple[str, str, str, str]:
    name = MODEL_NAMES[f"{backbone}_lora"]
    claim = f"{name} ({language}) scores higher than its untuned base"
    stem = f"{backbone}_lora.overall_gain"
    paper = "said, without a figure"
    if marks.get(stem) is None:
        return claim, paper, "base not run", UNCLEAR
    gain = _interval(marks, stem)
    verdict = HOLDS if gain[1] > 0 else FAILS if gain[2] < 0 else UNCLEAR
    return claim, paper, estimate_cell(*gain, digits=2) + " points", verdict


def _highest_vlscores(scores: Mapping, backbones: list[str]) -> list[tuple]:
    """One claim for each embedder by which a tuned model leads the paper's Table 3."""
    titles = {k.removeprefix("embedder."): v for k, v in scores.items() if k.startswith("embedder")}
    claims = []
    for title, printed in paper_table("table3_vlscore").groupby("embedder", sort=False):
        (best, first), (_, second), *_ = _ranked(printed)
        name = next((name for name, known in titles.items() if known == title), title)
        if best in (MODEL_NAMES[f"{b}_lora"] for b in backbones):
            claim = f"{best} has the highest VLScore by {name}"
            found = _ranking(scores, backbones, f"{name}.mean", f"{name}.{{}}", best, 3)
            claims.append((claim, f"{first:.4f} against {second:.4f}", *found))
    return claims


def _highest_mark(marks: Mapping, backbones: list[str], language: str) -> tuple:
    (best, first), *others = _ranked(paper_table("table4_physician"))
    claim = f"{best} ({language}) has the highest overall score"
    paper = f"{first:.2f} against " + " and ".join(f"{mean:.2f}" for _, mean in others)
    found = _ranking(marks, backbones, "overall_mean", "overall_mean_{}", best, 2)
    return claim, paper, *found


def _ranked(printed: pd.DataFrame) -> list[tuple[str, float]]:
    """Models and means of a printed table, the highest first."""
    rows = printed.sort_values("mean", ascending=False)
    return list(zip(rows["model"], rows["mean"], strict=True))


def _ranking(
    figures: Mapping, backbones: list[str], mean: str, end: str, best: str, digits: int
) -> tuple[str, str]:
    """The means in words, and whether the interval of the paper's best is clear of all others'."""
    run = [b for b in backbones if figures.get(f"{b}_lora.{mean}") is not None]
    here = ", ".join(f"{b} {figures[f'{b}_lora.{mean}']:.{digits}f}" for b in run)
    ends = [end.format(x) for x in ("low", "high")]
    spans = {MODEL_NAMES[f"{b}_lora"]: [figures[f"{b}_lora.{e}"] for e in ends] for b in run}
    winner = spans.pop(best, None)
    if winner is None or not spans:
        return here or "not run", UNCLEAR
    if all(winner[0] > high for _, high in spans.values()):
        return here, HOLDS
    return here, FAILS if any(low > winner[1] for low, _ in spans.values()) else UNCLEAR


def _vessels_are_hardest(marks: Mapping, backbones: list[str], language: str) -> tuple:
    claim = f"Vessel numbering is the commonest error of tuned models ({language})"
    paper, means = "about 70 % of cases", {}
    for name, criterion in CRITERIA.items():
        rates = [marks.get(f"{b}_lora.{name}_rate") for b in backbones]
        if known := [rate for rate in rates if rate is not None]:
            means[criterion.word] = sum(known) / len(known)
    if "vessel" not in means:
        return claim, paper, "not judged", UNCLEAR
    here = ", ".join(f"{e} {rate:.0%}" for e, rate in means.items())
    return claim, paper, here, HOLDS if max(means, key=means.get) == "vessel" else FAILS


def _interval(figures: Mapping[str, float], name: str) -> tuple[float, float, float]:
    return figures[name], figures[f"{name}_low"], figures[f"{name}_high"]
