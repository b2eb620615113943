"""Muon: momentum whose every matrix is made orthogonal before it is taken as a step.

PyTorch has it as `torch.optim.Muon`, which works in bfloat16 whatever it is given; on a CPU without
bfloat16 arithmetic that takes fifteen times as long as float32 and costs more than the training
itself. This is the same update in the parameters' own type.
"""

from collections.abc import Iterable

import torch
from torch import nn

QUINTIC = (3.4445, -4.7750, 2.0315)  # Jordan 2024: steepest at 0, so that small directions grow
ITERATIONS = 5
LIKE_ADAMW = 0.2  # root mean square of AdamW's usual step (Liu et al. 2025, arXiv 2502.16982)


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum, decoupled weight decay, and AdamW's size of step.

    Args:
        params: Matrices alone.
        lr: Learning rate, above 0; as AdamW's, or a few times that.
        momentum: 0 to 1.
        weight_decay: 0 or more.

    Raises:
        ValueError: A parameter is no matrix, or a number breaks its rule.

    Source:
        Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"; the step's
        size is that of `torch.optim.Muon` with `adjust_lr_fn="match_rms_adamw"`.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.05,
    ):
        if not (lr > 0 and 0 <= momentum < 1 and weight_decay >= 0):
            raise ValueError(
                "Muon needs lr > 0, momentum in [0, 1) and weight_decay >= 0, "
                f"got {lr}, {momentum} and {weight_decay}"
            )
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        for group in self.param_groups:
            if odd := [tuple(p.shape) for p in group["params"] if p.ndim != 2]:
                raise ValueError(f"Muon takes matrices alone, got shapes {odd}")

    @torch.no_grad()
    def step(self) -> None:
        """Take one step; parameters without a gradient stay."""
        for group in self.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):
                state, rate = self.state[p], group["lr"]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(p)
                buffer = state["momentum_buffer"].lerp_(p.grad, 1 - group["momentum"])
                ahead = p.grad.lerp(buffer, group["momentum"])
                p.mul_(1 - rate * group["weight_decay"])
                size = rate * LIKE_ADAMW * max(p.shape) ** 0.5
                p.sub_(orthogonalise(ahead), alpha=size)


def muon_and_adamw(
    hidden: nn.Module, model: nn.Module, matrix_rate: float, rate: float
) -> dict[torch.optim.Optimizer, float]:
    """Return Muon for a network's hidden matrices and AdamW for all else that learns.

    Embeddings, first and last layers, norms and biases are AdamW's, as Muon's authors have it.

    Args:
        hidden: The layers whose matrices are Muon's: a part of `model`.
        model: Whatever of it requires no gradient is left out.
        matrix_rate: Peak learning rate of Muon.
        rate: Peak learning rate of AdamW.

    Returns:
        Each optimiser and its peak rate.
    """
    matrices = [p for p in hidden.parameters() if p.requires_grad and p.ndim == 2]
    own = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in own]
    adamw = torch.optim.AdamW(rest, lr=rate, weight_decay=0.05, betas=(0.9, 0.98), fused=True)
    return {Muon(matrices, lr=matrix_rate): matrix_rate, adamw: rate}


def orthogonalise(matrix: torch.Tensor) -> torch.Tensor:
    """Return about the nearest matrix with orthogonal rows or columns, (n, m).

    Newton-Schulz iteration: singular values of more than a few thousandths of the matrix's norm end
    between about 0.7 and 1.2, which is all that Muon needs.
    """
    a, b, c = QUINTIC
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x
