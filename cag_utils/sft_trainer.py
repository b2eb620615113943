"""TRL's trainer with the study's batches, and with answers beside the loss."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
import trl.trainer.utils as trl_utils
from torch.utils.data import Sampler
from trl import SFTTrainer

from cag_utils.length_buckets import LengthBuckets
from cag_utils.sft_history import PREFIX


class CaseTrainer(SFTTrainer):
    """Trains on `sft_data.to_cases`, batched by length; scores answers after each evaluation."""

    def __init__(
        self,
        *args,
        scorer: Callable[[torch.nn.Module], Mapping[str, float]] | None = None,
        **kwargs,
    ):
        """Keep the scorer; all else is `SFTTrainer`'s.

        Args:
            *args: As `SFTTrainer`.
            scorer: Given the model, returns numbers for the log; none for the loss alone.
            **kwargs: As `SFTTrainer`.
        """
        super().__init__(*args, **kwargs)
        self.scorer = scorer

    def train(self, *args, **kwargs):
        """Train, scoring the answers' tokens alone."""
        with answers_scored_only():
            return super().train(*args, **kwargs)

    def _get_train_sampler(self, train_dataset=None) -> Sampler:
        data = self.train_dataset if train_dataset is None else train_dataset
        return LengthBuckets(data["length"], self.args.train_batch_size, self.args.data_seed)

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        """Measure the loss, then let the first process score answers and log them."""
        metrics = super().evaluate(*args, **kwargs)
        if self.scorer is not None and self.is_world_process_zero():
            scores = self.scorer(self.model)
            self.log({PREFIX + name: value for name, value in scores.items()})
        return metrics


@contextmanager
def answers_scored_only() -> Iterator[None]:
    """Let TRL score the answer's tokens alone on a CPU too, as it does on a GPU.

    Off a GPU, TRL 1.16 computes the loss of every token and then drops the prompt's, nine tokens
    in ten. The loss and the gradients are the same; a PaliGemma twin trains 1.7 times as fast.
    The switch is a private name: if a release renames it, training is slower and nothing else.
    """
    kept = getattr(trl_utils, "_use_triton", None)
    if kept is not None:
        trl_utils._use_triton = lambda device: True
    try:
        yield
    finally:
        if kept is not None:
            trl_utils._use_triton = kept
