"""Trials of the tower's recipe at equal core time: `python -m cag_utils.making.trials FOLDER`.

Each recipe trains for as many steps as fit into the same seconds of one core, with a whole schedule
of its own, and is scored on held-out patients after every eighth. What is done is kept in FOLDER;
the rows of all go to `trials.csv` beside this file, from which notebook A13 draws the curves.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from cag_utils.making import stills as drawn
from cag_utils.making.sight import score_tower
from cag_utils.making.tower import DenseTask, Recipe, save_tower, train_tower
from cag_utils.making.twins import IMAGE_PX, make_tower_config
from cag_utils.shipped import WEIGHTS, read_card
from cag_utils.study import provenance

TABLE = Path(__file__).with_name("trials.csv")
PARTS = 8  # of a training, each followed by a score
TIMED_STEPS = 6  # of a throw-away training, in both halves of the schedule, to know a step's cost
SCORED = 400  # held-out pictures
FEW = 2000  # stills, where not all are used
# From the shipped tower, which knows most already: what is new is asked at once, more gently.
CONTINUED = Recipe(
    start="shipped", dense_share=0, sparse_share=0.6, crowded_share=0.75, learning_rate=1e-3,
    matrix_rate=3e-3,
)  # fmt: skip
RECIPES = {
    "plain": Recipe(),
    "guided": Recipe(guided_share=0.75),
    "structured start": Recipe(start="structured"),
    "twice the augmentation": Recipe(strength=2.0),
    "bfloat16": Recipe(bfloat16=True),
    "fewer stills": Recipe(),
    "convnext": Recipe("convnext"),
    "continued": CONTINUED,
    "continued, guided": replace(CONTINUED, guided_share=0.75),
}


def run_trial(
    name: str,
    recipe: Recipe,
    stills: drawn.Stills,
    held_out: drawn.Stills,
    core_s: float,
    folder: Path,
    guide: DenseTask | None = None,
    crowded: int = 0,
) -> tuple[DenseTask, pd.DataFrame]:
    """Train by one recipe for about `core_s` seconds of this process' processor time.

    The `crowded` last stills are shown as the recipe says.

    Returns:
        (the network; `recipe`, `step`, `core_s` so far without scoring, and the scores of
        `score_tower`, a row a part). A finished or interrupted trial goes on where it was.
    """
    train = {"stills": stills, "config": make_tower_config(), "recipe": recipe, "guide": guide}
    train["crowded"] = crowded
    cost = folder / f"{name}.cost"
    if not cost.is_file():  # kept, since the number of steps must stay the same after a kill
        began = time.process_time()
        train_tower(**train, steps=TIMED_STEPS)
        folder.mkdir(parents=True, exist_ok=True)
        cost.write_text(str((time.process_time() - began) / TIMED_STEPS), encoding="utf-8")
    steps = PARTS * max(1, round(core_s / float(cost.read_text(encoding="utf-8")) / PARTS))
    began = time.process_time()

    def evaluate(task: DenseTask) -> dict[str, float]:
        nonlocal began
        used = time.process_time() - began
        scores = score_tower(task, held_out) | {"core_s": used}
        began = time.process_time()
        return scores

    state = folder / f"{name}.pt"
    task, done = train_tower(**train, steps=steps, parts=PARTS, checkpoint=state, evaluate=evaluate)
    table = pd.DataFrame(done.epochs)
    table = table.assign(step=table["epoch"] * steps // PARTS, core_s=table["core_s"].cumsum())
    hidden = ["epoch", "learning_rate", "seconds", "best"]
    return task, table.drop(columns=hidden).assign(recipe=name)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m cag_utils.making.trials", description=__doc__)
    parser.add_argument(
        "folder", type=Path, help="cached stills (A13: data/pretraining), unfinished trainings"
    )
    parser.add_argument("--core-s", type=float, default=900, help="seconds of a core a recipe")
    parser.add_argument("--stills", type=int, default=10_000)
    parser.add_argument("--crowded", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=1, help="of a training")
    parser.add_argument("--recipes", nargs="*", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument(
        "--ship", action="store_true", help="put the last recipe's tower in weights/"
    )
    given = parser.parse_args(arguments)
    names = sorted(given.recipes, key=lambda name: RECIPES[name].network != "convnext")
    if given.ship and RECIPES[names[-1]].network == "convnext":
        parser.error("a convolutional network has no tower to ship")
    torch.set_num_threads(given.threads)
    commit = provenance()["commit"]  # of what runs, not of what the checkout holds hours later
    kinds = (drawn.FIRST_SEED, given.stills), (drawn.FIRST_CROWDED_SEED, given.crowded)
    whole, crowded, held_out = (
        drawn.cached_stills(given.folder, first, count, IMAGE_PX)
        for first, count in (*kinds, (drawn.FIRST_HELD_OUT_SEED, 800))
    )
    pictures, some = drawn.join([whole, crowded]), held_out.part(np.arange(SCORED))
    guide, tables = None, []
    for name in names:  # the guide first
        few, recipe = name == "fewer stills", RECIPES[name]
        stills = pictures.part(np.arange(FEW)) if few else pictures
        told = {"guide": guide if recipe.guided_share else None}
        told["crowded"] = 0 if few else given.crowded
        trial = name, recipe, stills, some, given.core_s, given.folder / "trials"
        task, table = run_trial(*trial, **told)
        guide = task if recipe.network == "convnext" else guide
        tables.append(table.assign(stills=len(stills)))
        known = [pd.read_csv(TABLE)] if TABLE.is_file() else []
        rows = pd.concat([*(t[t["recipe"] != name] for t in known), tables[-1]])
        columns = ["recipe", "stills", "step", "core_s", "train_loss"]
        rest = [c for c in rows if c not in columns]
        rows[columns + rest].round(4).to_csv(TABLE, index=False)
    if given.ship:
        made_by = f"recipe `{name}` of `making.trials`: {table['step'].iloc[-1]} steps of 32, "
        made_by += f"{len(stills)} stills, commit {commit}"
        folder, scores = WEIGHTS / "siglip_tower", score_tower(task, held_out)
        known = score_tower(task, whole.part(np.arange(min(len(whole), len(held_out)))))
        scores["known_significant_f1"] = known["significant_f1"]
        card = read_card(folder) if (folder / "README.md").is_file() else {}
        # What the pictures allow was measured by A13, and is no matter of the tower.
        scores |= {name: value for name, value in card.items() if name.startswith("ceiling")}
        save_tower(task, folder, scores, made_by)


if __name__ == "__main__":
    main()
