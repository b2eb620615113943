"""The training loop of the appendices: many frames, any loss, averaged weights, able to resume."""

import copy
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from cag_utils.cine_stills import fit_picture
from cag_utils.networks import autocast, prepare
from cag_utils.randomise import randomise
from cag_utils.trainer import moving_average, rate_factor

NETWORK = "convnext_twin"
AVERAGE = 0.998  # decay of the moving average of the weights, which is what is kept
COARSE_SHARE, COARSE_PX = 0.5, 112  # of the epochs, on smaller pictures: a quarter of the time


def fit(
    model: nn.Module,
    pictures: Tensor,
    answers: Tensor,
    loss: Callable[[Tensor, Tensor, Tensor], Tensor],
    epochs: int,
    rate: float,
    randomised: float = 1.0,
    batch_size: int = 64,
    checkpoint: Path | None = None,
    coarse_share: float = COARSE_SHARE,
) -> nn.Module:
    """Train with AdamW and a cosine schedule, the first epochs on smaller pictures.

    Args:
        model: On its device; changed.
        pictures: (n, 1, px, px) uint8.
        answers: (n, ...) what `loss` compares the outputs with.
        loss: Of outputs, answers, and (n,) bool which pictures are as they were drawn.
        epochs: Passes over the pictures.
        rate: Peak learning rate.
        randomised: Share of the pictures that are changed by `randomise`; the rest stay as drawn.
        batch_size: Pictures a step.
        checkpoint: File that is written after every epoch; if it is there, training goes on from
            it, unless it belongs to a training of another length. None keeps none.
        coarse_share: Share of the epochs on smaller pictures, 0 to 1.

    Returns:
        The moving average of the model's weights, in evaluation mode.
    """
    n_steps = epochs * math.ceil(len(pictures) / batch_size)
    optimiser = torch.optim.AdamW(model.parameters(), rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: rate_factor(step, n_steps, min(300, n_steps / 10), "cosine")
    )
    average = moving_average(model, AVERAGE)
    parts = {"model": model, "average": average, "optimiser": optimiser}
    done = _restore(checkpoint, parts, schedule, n_steps)
    n_coarse = math.ceil(coarse_share * epochs) if epochs > 1 else 0
    coarse = _shrink(pictures, COARSE_PX) if done < n_coarse else pictures
    model.train()
    bar = tqdm(range(done, epochs), desc="epochs", mininterval=30, initial=done, total=epochs)
    for epoch in bar:
        source, total = (coarse if epoch < n_coarse else pictures), 0.0
        for index in torch.randperm(len(source)).split(batch_size):
            seen, plain = _look(source[index], randomised)
            total += _step(model, seen, (answers[index], plain), loss, optimiser) * len(index)
            schedule.step()
            average.update_parameters(model)
        bar.set_postfix(loss=round(total / len(source), 4))
        _keep(checkpoint, parts, schedule, {"n_steps": n_steps, "done": epoch + 1})
    return copy.deepcopy(average.module).eval()


def _look(pictures: Tensor, randomised: float) -> tuple[Tensor, Tensor]:
    """Pictures of which that share is randomised, float32; and which are not."""
    seen, changed = pictures.float(), torch.rand(len(pictures)) < randomised
    if changed.any():
        seen[changed] = randomise(pictures[changed])
    return seen, ~changed


def _step(model, seen: Tensor, wanted: tuple[Tensor, Tensor], loss, optimiser) -> float:
    """One step of the optimiser; return the loss."""
    device = next(model.parameters()).device
    with autocast(device):
        outputs = model(prepare(seen.to(device), NETWORK))
    value = loss(outputs.float(), *(part.to(device) for part in wanted))
    value.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return value.item()


def _shrink(pictures: Tensor, px: int) -> Tensor:
    """Pictures of at most `px` a side."""
    if pictures.shape[-1] <= px:
        return pictures
    small = np.stack([fit_picture(grey, px) for grey in pictures[:, 0].numpy()])
    return torch.from_numpy(small)[:, None]


def _keep(checkpoint: Path | None, parts: dict, schedule, counts: dict[str, int]) -> None:
    """Write everything that decides the rest, beside and renamed: never half a file."""
    if checkpoint is None:
        return
    state = {name: part.state_dict() for name, part in parts.items()}
    state |= counts | {"step": schedule.last_epoch, "torch_rng": torch.get_rng_state()}
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, checkpoint.with_suffix(".tmp"))
    checkpoint.with_suffix(".tmp").replace(checkpoint)


def _restore(checkpoint: Path | None, parts: dict, schedule, n_steps: int) -> int:
    """Go back to the last whole epoch, if there is one; return how many are done."""
    if checkpoint is None or not checkpoint.is_file():
        return 0
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    if state["n_steps"] != n_steps:
        return 0
    for name, part in parts.items():
        part.load_state_dict(state[name])
    schedule.load_state_dict({"last_epoch": state["step"], "lr_lambdas": [None]})
    torch.set_rng_state(state["torch_rng"])
    return state["done"]
