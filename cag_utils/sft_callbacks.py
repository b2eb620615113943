"""What watches a fine-tuning run: a progress bar, patience, the projector's head start, a log."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from tqdm import tqdm
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback


class Progress(TrainerCallback):
    """One plain progress bar, refreshed every half minute: a notebook stays readable."""

    def __init__(self, label: str):
        self.label = label

    def on_train_begin(self, args, state, control, **kwargs):
        """Open the bar at the step a resumed run starts from."""
        hidden = not state.is_world_process_zero
        self.bar = tqdm(
            total=state.max_steps,
            initial=state.global_step,
            desc=self.label,
            mininterval=30,
            disable=hidden,
        )

    def on_step_end(self, args, state, control, **kwargs):
        """Count one optimiser step."""
        self.bar.update(1)

    def on_train_end(self, args, state, control, **kwargs):
        """Close the bar."""
        self.bar.close()


class Patience(TrainerCallback):
    """Stops when so many evaluations in a row have brought no new lowest validation loss.

    It counts from the run's own log, which checkpoints hold. The library's callback keeps a counter
    of its own: a resumed run, which measures its start again, would count that twice.
    """

    def __init__(self, patience: int):
        self.patience = patience

    def on_evaluate(self, args, state, control, **kwargs):
        """Ask for the end."""
        if evaluations_since_best(state.log_history) >= self.patience:
            control.should_training_stop = True


def evaluations_since_best(log: Sequence[Mapping]) -> int:
    """Count the evaluations after the one with the lowest validation loss; the base is none.

    Args:
        log: `state.log_history`.
    """
    measured = {e["step"]: e["eval_loss"] for e in log if "eval_loss" in e and e["step"] > 0}
    losses = list(measured.values())
    return len(losses) - 1 - losses.index(min(losses)) if losses else 0


class ProjectorFirst(TrainerCallback):
    """Trains the projector alone for the first steps; what is frozen depends on the step alone.

    A replaced tower speaks another language than the projector knows; until that is learnt, LoRA
    would learn to make do with noise.
    """

    def __init__(self, steps: int):
        self.steps = steps

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        """Freeze LoRA before the step that ends the head start, thaw it after."""
        for name, values in model.named_parameters():
            if "lora_" in name:
                values.requires_grad_(state.global_step >= self.steps)


class RunLog(TensorBoardCallback):
    """TensorBoard's log in a folder of our choice: the library takes one from the environment."""

    def __init__(self, folder: Path):
        super().__init__()
        self.logging_dir = str(folder)
