"""Run the phantom study from nothing, measure it, and refresh `outputs/reference/` and the README.

`make reference` calls it. Every number in the README and in `outputs/reference/` comes from here,
and so does its picture of the rooms, read from their imports (`make format` draws that alone).
Machines differ by a factor of three, so a fixed piece of work, the yardstick, is timed beside every
time: a time divided by it says how many yardsticks the work takes, on whichever machine.
"""

import argparse
import ast
import json
import os
import shutil
import subprocess
import sys
import time
import timeit
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import psutil

from cag_utils.paper.claims import headline_table
from cag_utils.profiles import load_profile
from cag_utils.report import MODEL_NAMES
from cag_utils.scores.floors import is_bound
from cag_utils.shipped import WEIGHTS, read_card
from cag_utils.study import (
    BY_WORKFLOW,
    data_dir,
    provenance,
    read_json,
    root,
    under_root,
    write_json,
)
from cag_utils.workflow import PACKAGE, imported_files

PROFILE = "phantom"
CORES = 2
CNN_FIGURES = (
    "six_class_f1", "laterality_f1", "three_class_f1", "ece_six_class", "ece_laterality",
    "pick_better_share",
)  # fmt: skip
TUNING_FIGURES = ("segment_accuracy", "laterality_accuracy", "overall_mean", "grades_near")
SCORE_FIGURES = (
    "skill", "skill_overall", "lesion_f1", "lesion_precision", "lesion_recall", "healthy_right",
    "plan_right", "blank_drop", "other_drop",
)  # fmt: skip
FLOOR_FIGURES = ("overall", "lesion_f1", "healthy_right", "plan_right")
KEPT_SUFFIXES = {".csv", ".md", ".tex", ".png", ".json"}
LARGEST_BYTES = 1_000_000
BENCHMARKS = "benchmarks"
TOP = "top"  # files beside the rooms
# What stands in the README between two markers: the results, and the picture of the rooms.
RESULTS = "<!-- results: make reference -->\n", "<!-- end of results -->"
ROOMS = "<!-- rooms: make format -->\n", "<!-- end of rooms -->"
BESIDE_THE_STUDY = (
    "benchmark.", "realism.", "transfer.", "leakage.", "ablation.", "reliance.", "power.", "exam.",
)  # fmt: skip


class Appendix(NamedTuple):
    """A notebook beside the study, and what of it is kept."""

    run: str  # its folder's name below `outputs/<profile>/<notebook>/`
    files: tuple[str, ...]  # stems of the tables and figures
    wanted: tuple[str, ...]  # first letters of the metrics
    stem: str = ""  # put before the metrics' names


APPENDICES = {
    "A1_phantom": Appendix(
        "all",
        ("table_stills", "table_cines", "figure_realism", "figure_temporal", "figure_transfer"),
        ("realism.", "transfer."),
    ),
    "A3_leakage": Appendix(
        "all", ("shared_cases", "near_duplicates", "crossover", "figure_gain", "figure_pairs"),
        ("inflation_", "share_near_duplicate_"), "leakage.",
    ),
    "A6_ablations": Appendix(
        "conceptclip_gemma3_en",
        ("table_variants", "table_seen_or_said", "figure_losses", "figure_by_grade"),
        ("projector_first.", "longer.", "told.", "right.", "named_"), "ablation.",
    ),
    "A7_image_reliance": Appendix(
        "all",
        ("table_answers", "table_reliance", "table_looks", "table_tests", "figure_asked")
        + ("figure_reliance",),
        ("lesion_f1_drop.", "distinct.", "same.", "looks.", "val_loss."), "reliance.",
    ),
    "A8_power": Appendix(
        "ja", ("table_exams", "figure_power"), ("as_measured_here.", "marks_uncorrelated.", "rho"),
        "power.",
    ),
    "A12_exam_reports": Appendix(
        "gemma3_en", ("table_exams", "figure_exams"),
        ("one_prompt", "merged", "constant.", "commonest.", "shown."), "exam.",
    ),
}  # fmt: skip
CARD_NAMES = {"segment_accuracy": "segment_named", "healthy_accuracy": "healthy_right"}
KEPT_NAMES = ("gpu.md", "A13_pretrain_tower", *APPENDICES)


def main(study_only: bool = False) -> None:
    """Run the study, measure, collect, write; then appendices and benchmarks, half of the time."""
    facts = provenance()  # before a tracked file is written, or the commit would say "dirty"
    profile = load_profile(PROFILE)
    outputs, folder = under_root("outputs") / PROFILE, under_root("outputs") / "reference"
    shutil.rmtree(data_dir(profile), ignore_errors=True)
    shutil.rmtree(outputs, ignore_errors=True)
    command = [sys.executable, "-m", "cag_utils.workflow", "study", "--cores", str(CORES)]
    metrics = measured_run([*command, "--config", f"profile={PROFILE}"])
    metrics |= headline_figures(outputs, profile.finetune.backbones)
    metrics |= room_sizes(root() / "cag_utils") | shipped_figures()
    earlier = read_json(folder / "metrics.json")
    metrics |= {k: v for k, v in earlier.items() if k.startswith(BESIDE_THE_STUDY)}
    copy_study(outputs, folder)
    write_json(folder / "metrics.json", metrics)
    write_json(folder / "provenance.json", facts | {"profile": PROFILE, "cores": CORES})
    update_readme(root() / "README.md", metrics)
    if not study_only:
        refresh_parts([*APPENDICES, BENCHMARKS], facts["commit"])


def refresh_parts(names: Sequence[str], commit: str = "") -> None:
    """Run some appendices on the study that is there, or the benchmarks, and refresh their part.

    Args:
        names: Of `APPENDICES`, or `benchmarks` for all, or one's file, e.g. `bench_predict`.
        commit: Of the code; empty asks git.

    Raises:
        subprocess.CalledProcessError: A notebook or a benchmark failed, or the study was not run.
    """
    commit = commit or provenance()["commit"]
    outputs, folder = under_root("outputs") / PROFILE, under_root("outputs") / "reference"
    metrics, facts = (read_json(folder / f"{n}.json") for n in ("metrics", "provenance"))
    for name in names:
        if name in APPENDICES:
            found, stem = run_appendix(name, outputs, folder), APPENDICES[name].stem
            old = tuple(stem + first for first in APPENDICES[name].wanted)
        else:
            every = name == BENCHMARKS
            found = benchmarks(root() / "tests" / "benchmarks", "bench_*" if every else name)
            old = ("benchmark.",) if every else ()
        metrics = {k: v for k, v in metrics.items() if not k.startswith(old)} | found
        facts[f"commit of {name}"] = commit
    write_json(folder / "metrics.json", metrics)
    write_json(folder / "provenance.json", facts)
    update_readme(root() / "README.md", metrics)


def measured_run(command: list[str]) -> dict[str, float]:
    """Run a command and watch the memory of all its processes.

    Args:
        command: Program and arguments, run in the repository.

    Returns:
        `study.minutes`; `study.peak_gb`, the peak of the processes' summed proportional set size
        (resident size where the system does not tell); `study.yardstick` and its parts, seconds as
        `measure_yardstick`; `study.yardsticks`, the run's time as a multiple of it.

    Raises:
        RuntimeError: The command failed.
    """
    began, peak = time.monotonic(), 0
    process = psutil.Popen(command, cwd=root())
    while process.poll() is None:
        peak = max(peak, _tree_bytes(process))
        time.sleep(1)
    if process.returncode != 0:
        raise RuntimeError(f"the study failed with exit code {process.returncode}; see its log")
    seconds, stick = time.monotonic() - began, measure_yardstick()
    figures = {"minutes": round(seconds / 60, 2), "peak_gb": round(peak / 1e9, 2)}
    figures["yardstick"] = stick.pop("seconds")
    figures["yardsticks"] = round(seconds / figures["yardstick"])
    figures |= {f"yardstick_{name}": value for name, value in stick.items()}
    return {f"study.{name}": value for name, value in figures.items()}


def headline_figures(outputs: Path, backbones: list[str]) -> dict[str, float]:
    """Collect a finished study's figures (`outputs/<profile>/`) under one flat set of keys.

    Returns:
        Keys such as `cnn.laterality_f1`, `finetune.gemma3.en.segment_accuracy`,
        `finetune.gemma3.en.base_segment_accuracy`, `vlscore.gemma3.conceptclip.mean`,
        `scores.gemma3_lora.en.skill_low`, `floor.gemma3_lora@blank.en.lesion_f1`.
    """
    sampling = read_json(outputs / "00_frame_sampling" / "cnn" / "metrics.json")
    figures = {"sampling.picks_per_cine": sampling["picks_per_cine"]}
    cnn = read_json(outputs / "02_confusion_matrices" / "six_class" / "metrics.json")
    for name in CNN_FIGURES:
        found = {f"cnn.{name}{end}": cnn[f"{name}{end}"] for end in ("", "_low", "_high")}
        figures |= {k: value for k, value in found.items() if value is not None}
    seconds = pd.read_csv(outputs / "01_train_cnn" / "six_class" / "history.csv")["seconds"].sum()
    figures["cnn.training_minutes"] = round(seconds / 60, 4)  # seconds, in a smoke run
    figures["corpus.pairs"] = read_json(outputs / "03_build_corpus/all/metrics.json")["pairs"]
    # two letters: a language; experiments have longer names
    for path in sorted((outputs / "07_physician_scores").glob("??/metrics.json")):
        scores, language = read_json(path), path.parent.name
        for backbone, (model, base) in product(backbones, (("lora", ""), ("base", "base_"))):
            for name, end in product(TUNING_FIGURES, ("", "_low", "_high")):
                if (value := scores.get(f"{backbone}_{model}.{name}{end}")) is not None:
                    figures[f"finetune.{backbone}.{language}.{base}{name}{end}"] = value
        figures |= score_figures(scores, language)
    for path in sorted((outputs / "06_vlscore").glob("??/metrics.json")):
        for key, value in read_json(path).items():
            model, _, rest = key.partition(".")
            if model in MODEL_NAMES and rest.endswith((".mean", ".sd", ".area_mean")):
                figures[f"vlscore.{model.removesuffix('_lora')}.{rest}"] = value
    return figures


def score_figures(scores: Mapping[str, object], language: str) -> dict[str, float]:
    """Return what notebook 07's metrics of a language say of skill, lesions, floors and parser.

    Returns:
        `scores.<model>.<language>.<figure>`, `floor.<name>.<language>.<measure>` (floors and
        ceilings) and `parser.gold.<language>.<figure>`; what could not be judged is left out.
    """
    figures = {}
    for key, value in scores.items():
        head, _, name = key.rpartition(".")
        measure = name.removesuffix("_low").removesuffix("_high")
        if value is None:
            continue
        if head.startswith("floor."):
            figures |= {f"{head}.{language}.{name}": value} if measure in FLOOR_FIGURES else {}
        elif measure in SCORE_FIGURES and head and not is_bound(head):
            figures[f"scores.{head}.{language}.{name}"] = value
        elif head == f"parser.gold.{language}":
            figures[key] = value
    return figures


def shipped_figures(folder: Path = WEIGHTS) -> dict[str, float]:
    """Return what the cards of the shipped networks say of held-out pictures.

    Returns:
        `twins.<network>.<measure>` (the tower's name is `tower`), `twins.told_named`, the mean over
        language models and languages, and `ceiling.<reader>_lesion_f1`, with `ceiling.lesion_f1`
        that of the ideal reader: see notebook A13.
    """
    figures = {}
    for path in sorted(folder.glob("*/README.md")):
        name = path.parent.name.removeprefix("siglip_")
        for measure, value in read_card(path.parent).items():
            first, _, last = CARD_NAMES.get(measure, measure).partition(", ")
            own = f"twins.{name}.{first}{'.' if last else ''}{last}"
            figures[f"ceiling.{last}_lesion_f1" if first == "ceiling" else own] = value
    told = [value for key, value in figures.items() if ".told." in key]
    figures |= {"twins.told_named": round(sum(told) / len(told), 3)} if told else {}
    ideal = figures.get("ceiling.ideal_lesion_f1")
    return figures | ({"ceiling.lesion_f1": ideal} if ideal else {})


def benchmarks(folder: Path, wanted: str = "bench_*") -> dict[str, float]:
    """Run benchmarks, whose last line is a JSON object; return figures as `benchmark.<name>`.

    Beside those of each file stands `benchmark.<file>.yardstick`, seconds as `measure_yardstick`.

    Args:
        folder: Holds `bench_*.py`.
        wanted: Name of a file without its suffix, or a pattern.

    Raises:
        subprocess.CalledProcessError: A benchmark failed.
    """
    figures = {}
    for path in sorted(folder.glob(f"{wanted}.py")):
        figures[f"{path.stem}.yardstick"] = measure_yardstick()["seconds"]
        env = os.environ | {"PYTHONPATH": str(root())}  # one drives what a test has built
        command = [sys.executable, path]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
        figures |= json.loads(done.stdout.strip().splitlines()[-1])
    return {f"benchmark.{name}": value for name, value in figures.items()}


def copy_study(outputs: Path, folder: Path) -> None:
    """Replace the tables and figures in the reference's folder by those of notebook 08."""
    for old in folder.iterdir():
        if old.suffix in KEPT_SUFFIXES - {".json"} and not old.name.startswith(KEPT_NAMES):
            old.unlink()
    for path in sorted((outputs / "08_paper_tables" / "all").iterdir()):
        if path.suffix in KEPT_SUFFIXES and path.stat().st_size < LARGEST_BYTES:
            shutil.copyfile(path, folder / path.name)


def run_appendix(name: str, outputs: Path, folder: Path) -> dict[str, float]:
    """Run an appendix, copy its tables and figures under its name, and return its figures.

    Args:
        name: One of `APPENDICES`.

    Raises:
        subprocess.CalledProcessError: The notebook failed.
    """
    appendix, notebook = APPENDICES[name], root() / "notebooks" / f"{name}.ipynb"
    run = outputs / name / appendix.run
    run.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "cag_utils.workflow", "notebook", str(notebook)]
    command += [str(run / notebook.name), "-p", "profile", outputs.name]
    subprocess.run(command, cwd=root(), env=os.environ | {BY_WORKFLOW: "1"}, check=True)
    for old in folder.glob(f"{name}_*"):
        old.unlink()
    for path in sorted(run.iterdir()):
        if path.stem in appendix.files and path.suffix in {".md", ".png"}:
            shutil.copyfile(path, folder / f"{name}_{path.name}")
    found = read_json(run / "metrics.json")
    return {appendix.stem + k: v for k, v in found.items() if k.startswith(appendix.wanted)}


def update_readme(path: Path, metrics: dict[str, float]) -> None:
    """Write the results between the README's markers; ValueError where these are not there."""
    replace_between(path, *RESULTS, headline_table(metrics))


def replace_between(page: Path, first: str, last: str, new: str) -> None:
    """Replace what stands between two markers of a page; ValueError where these are not there."""
    before, opening, rest = page.read_text(encoding="utf-8").partition(first)
    _, closing, after = rest.partition(last)
    if not closing:
        raise ValueError(f"{page} lacks the markers {first.strip()} and {last}")
    page.write_text(before + opening + new + closing + after, encoding="utf-8")


def room_of(path: Path, package: Path = PACKAGE) -> str:
    """Return a file's room: the folder below the package, or `top`."""
    parts = path.relative_to(package).parts
    return parts[0] if len(parts) > 1 else TOP


def read_imports(package: Path = PACKAGE) -> dict[Path, set[Path]]:
    """Return every module of the package with those it imports, anywhere in its text."""
    trees = {p: ast.parse(p.read_text(encoding="utf-8")) for p in sorted(package.rglob("*.py"))}
    return {path: imported_files(tree, package) for path, tree in trees.items()}


def room_arrows(package: Path = PACKAGE) -> dict[str, set[str]]:
    """Return each room, with `top`, and the other rooms that it imports."""
    arrows: dict[str, set[str]] = {}
    for path, imported in read_imports(package).items():
        room = room_of(path, package)
        arrows.setdefault(room, set()).update(room_of(other, package) for other in imported)
    return {room: others - {room} for room, others in sorted(arrows.items())}


def room_sizes(package: Path = PACKAGE) -> dict[str, int]:
    """Return the lines and files of Python of each room, and of the tests beside the package.

    Returns:
        `rooms.<room>.lines` and `rooms.<room>.files`; `all` is the package, `tests` the tests. An
        empty `__init__` is no file to read.
    """
    sizes: Counter[str] = Counter()
    for folder in (package, package.parent / "tests"):
        for path in sorted(folder.rglob("*.py")):
            if not (lines := len(path.read_text(encoding="utf-8").splitlines())):
                continue
            for room in {room_of(path, package), "all"} if folder == package else {"tests"}:
                sizes.update({f"rooms.{room}.lines": lines, f"rooms.{room}.files": 1})
    return dict(sizes)


def draw_rooms(package: Path = PACKAGE) -> str:
    """Return the rooms as a Mermaid diagram: an arrow is an import; those of `top` are left out."""
    sizes = room_sizes(package)
    rows = ["```mermaid", "flowchart LR"]
    for room, others in room_arrows(package).items():
        n, lines = (sizes[f"rooms.{room}.{unit}"] for unit in ("files", "lines"))
        rows.append(f'    {room}["{room}<br>{n} file{"s" * (n > 1)}, {lines / 1000:.1f}k lines"]')
        if room != TOP:
            rows += [f"    {room} --> {other}" for other in sorted(others - {TOP})]
    return "\n".join([*rows, "```"]) + "\n"


def _tree_bytes(process: psutil.Process) -> int:
    total = 0
    for member in (process, *process.children(recursive=True)):
        # it may end between listing and asking
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            memory = member.memory_full_info()
            total += getattr(memory, "pss", memory.rss)
    return total


def measure_yardstick() -> dict[str, float]:
    """Time the three kinds of work that the study is made of, each on one core.

    Returns:
        Seconds: `numpy` (arrays of a few MB, as in sampling), `numba` (a scalar loop, as in the
        renderer), `decoding` (many small products one after another, as in `generate`), `seconds`
        (their sum). Each is the shortest of three after a first run that compiles, in a process of
        its own with one thread.
    """
    env = os.environ | {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    command = [sys.executable, "-m", "cag_utils.reference", "--yardstick"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def _numpy_work() -> Callable[[], object]:
    import numpy as np

    frames = np.random.default_rng(0).random((24, 512, 512), dtype=np.float32)
    return lambda: [
        (frame.mean(), frame.var(), np.fft.rfft2(frame), np.sort(frame, axis=1)) for frame in frames
    ]


def _numba_work() -> Callable[[], object]:
    import numba
    import numpy as np

    @numba.njit
    def splat(n_points: int) -> float:
        picture = np.zeros((512, 512))
        row, column = 256.0, 256.0
        for i in range(n_points):
            row = (row * 1.61803 + i % 7) % 506.0
            column = (column * 2.41421 + i % 11) % 506.0
            for dy in range(6):
                for dx in range(6):
                    picture[int(row) + dy, int(column) + dx] += np.exp(-0.1 * (dx * dx + dy * dy))
        return picture.sum()

    return lambda: splat(500_000)


def _decoding_work() -> Callable[[], object]:
    import torch

    torch.set_num_threads(1)
    source = torch.Generator().manual_seed(0)
    layers = [torch.randn(256, 256, generator=source) / 16 for _ in range(24)]

    @torch.inference_mode()
    def decode() -> torch.Tensor:
        state = torch.ones(1, 256)
        for _ in range(400):  # tokens
            for layer in layers:
                state = torch.nn.functional.silu(state @ layer) + state
            state = state / state.norm()
        return state

    return decode


def _time_yardstick() -> dict[str, float]:
    makers = {"numpy": _numpy_work, "numba": _numba_work, "decoding": _decoding_work}
    # the shortest counts: whatever else runs only ever lengthens
    times = {name: timeit.repeat(make(), number=1, repeat=4)[1:] for name, make in makers.items()}
    found = {name: round(min(seconds), 4) for name, seconds in times.items()}
    return found | {"seconds": round(sum(found.values()), 4)}


def _read_command_line() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--study-only", action="store_true", help="no appendices, no benchmarks")
    single = [path.stem for path in sorted(root().glob("tests/benchmarks/bench_*.py"))]
    parts = [*APPENDICES, BENCHMARKS, *single]
    parser.add_argument("--only", nargs="+", choices=parts, help="these parts alone")
    parser.add_argument("--yardstick", action="store_true", help="print its seconds, and no more")
    parser.add_argument("--picture", action="store_true", help="the README's rooms, and no more")
    given = parser.parse_args()
    if given.yardstick:
        sys.stdout.write(json.dumps(_time_yardstick()) + "\n")
        return
    if not given.picture:
        refresh_parts(given.only) if given.only else main(given.study_only)
    replace_between(root() / "README.md", *ROOMS, draw_rooms())


if __name__ == "__main__":
    _read_command_line()
