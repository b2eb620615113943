"""Muon for hidden matrices, AdamW for the rest: what the twins and their tower learn with."""

from collections.abc import Sequence

import torch
from torch import nn

QUINTIC = (3.4445, -4.7750, 2.0315)  # Jordan 2024: steepest at 0, so that small directions grow
ITERATIONS, MOMENTUM = 5, 0.95
# Peak rate of the hidden matrices. In a trial of 200 steps of the tower Muon had learnt what took
# AdamW alone about 500.
MATRIX_RATE = 5e-3
LIKE_ADAMW = 0.2  # root mean square of AdamW's usual step (Liu et al. 2025, arXiv 2502.16982)


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum, decoupled weight decay, and AdamW's size of step.

    `torch.optim.Muon` in 32 bit: that one reckons in bfloat16, which many processors emulate.

    Args:
        params: Matrices alone.
        lr: Learning rate; as AdamW's, or a few times that.
        weight_decay: Share of the rate by which weights shrink at a step.

    Source:
        Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"; the step's
        size is that of `torch.optim.Muon` with `adjust_lr_fn="match_rms_adamw"`.
    """

    def __init__(self, params: Sequence[nn.Parameter], lr: float, weight_decay: float = 0.05):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        """Take one step; parameters without a gradient stay."""
        for group in self.param_groups:
            rate = group["lr"]
            for p in (p for p in group["params"] if p.grad is not None):
                buffer = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
                ahead = p.grad.lerp(buffer.lerp_(p.grad, 1 - MOMENTUM), MOMENTUM)
                p.mul_(1 - rate * group["weight_decay"])
                size = rate * LIKE_ADAMW * max(p.shape) ** 0.5
                p.sub_(orthogonalise(ahead), alpha=size)


def muon_and_adamw(
    hidden: nn.Module | None, model: nn.Module, rate: float, matrix_rate: float = MATRIX_RATE
) -> list[torch.optim.Optimizer]:
    """Return Muon for a network's hidden matrices and AdamW for all else that learns.

    Embeddings, first and last layers, norms and biases are AdamW's, as Muon's authors have it.
    What requires no gradient is left out.

    Args:
        hidden: The part of `model` whose matrices are Muon's; None for AdamW alone.
        rate: Peak of AdamW's learning rate.
        matrix_rate: Peak of Muon's.
    """
    inner = hidden.parameters() if hidden else ()
    matrices = [p for p in inner if p.requires_grad and p.ndim == 2]
    own = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in own]
    adamw = torch.optim.AdamW(rest, lr=rate, weight_decay=0.05, betas=(0.9, 0.98), fused=True)
    return [Muon(matrices, lr=matrix_rate), adamw] if matrices else [adamw]


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
