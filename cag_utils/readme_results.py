"""The README's table of results, made from the reference run's figures."""

import re
from pathlib import Path

from cag_utils.report import MODEL_NAMES


def update_readme(path: Path, metrics: dict[str, float]) -> None:
    """Replace what stands between the README's result markers.

    Raises:
        ValueError: The markers are not there.
    """
    text = path.read_text(encoding="utf-8")
    pattern = r"(<!-- results: make reference -->\n).*?(<!-- end of results -->)"
    if not re.search(pattern, text, flags=re.S):
        raise ValueError(f"{path} has no result markers")
    table = results_table(metrics)
    path.write_text(
        re.sub(pattern, lambda m: m[1] + table + m[2], text, flags=re.S), encoding="utf-8"
    )


def results_table(metrics: dict[str, float]) -> str:
    """Return the README's results as Markdown, each beside the paper's figure where there is one.

    Args:
        metrics: As in `outputs/reference/metrics.json`.
    """

    def cell(key: str) -> str:
        value = f"{metrics[key]:.3f}"
        if f"{key}_low" in metrics:
            value += f" ({metrics[f'{key}_low']:.3f} to {metrics[f'{key}_high']:.3f})"
        return value

    rows = ["| figure | phantom, this study | paper, real patients |", "|---|---|---|"]
    printed = {"laterality_f1": 0.959, "three_class_f1": 0.925, "six_class_f1": 0.766}
    for name, paper in printed.items():
        rows.append(f"| CNN {name.replace('_', ' ')} | {cell(f'cnn.{name}')} | {paper} |")
    measures = {
        "lesions_named": "lesions whose segment is named",
        "grades_near": "lesions named, grade within a step",
        "overall_mean": "rubric, 0 to 10",
    }
    for measure, words in measures.items():
        for key in sorted(metrics):
            if not (found := re.fullmatch(rf"finetune\.(\w+)\.(\w+)\.{measure}", key)):
                continue
            model, base = MODEL_NAMES[f"{found[1]}_lora"], key.replace(measure, f"base_{measure}")
            untuned = cell(base) if base in metrics else "not run"
            rows.append(f"| {model}, {found[2]}: {words}, tuned | {cell(key)} | – |")
            rows.append(f"| {model}, {found[2]}: {words}, untuned | {untuned} | – |")
    if "transfer.laterality_macro_f1" in metrics:
        seen = {k.removeprefix("transfer."): v for k, v in metrics.items()}
        name = f"side of {seen['n_stills']:.0f} real stills, network of phantoms: macro F1"
        exact = f"{seen['accuracy_low']:.2f} to {seen['accuracy_high']:.2f}"
        right = f"{seen['n_right']:.0f} right, exact interval {exact}"
        rows.append(f"| {name} | {seen['laterality_macro_f1']:.3f} ({right}) | – |")
    cost = f"{metrics['study.minutes']:.1f} min, {metrics['study.peak_gb']:.1f} GB"
    rows.append(f"| whole study, two cores | {cost} | – |")
    return "\n".join(rows) + "\n"
