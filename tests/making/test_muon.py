"""Muon: hand-worked steps, and beside torch's own."""

import numpy as np
import pytest
import torch
from torch import nn

from cag_utils.making import muon


@pytest.mark.parametrize("shape", [(8, 8), (32, 8), (8, 32)])
def test_singular_values_end_near_one_and_directions_stay(shape):
    matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    got = muon.orthogonalise(matrix)
    kept = (u.T @ got @ v.T).numpy()
    assert np.all((np.diag(kept) > 0.6) & (np.diag(kept) < 1.3))
    np.testing.assert_allclose(kept - np.diag(np.diag(kept)), 0, atol=1e-4)


def test_one_step_by_hand():
    # an orthogonal gradient stays so: the step is lr * 0.2 * sqrt(2), times the quintic's 1 -> x
    weight = nn.Parameter(torch.eye(2) * 3)
    weight.grad = torch.eye(2)
    x = 1 / 2**0.5  # each singular value over the Frobenius norm
    for _ in range(5):
        x = 3.4445 * x - 4.7750 * x**3 + 2.0315 * x**5
    idle = nn.Parameter(torch.ones(2, 2))
    muon.Muon([weight, idle], lr=0.1, weight_decay=0.5).step()
    assert torch.equal(idle, torch.ones(2, 2))  # it has no gradient
    expected = 3 * (1 - 0.1 * 0.5) - 0.1 * 0.2 * 2**0.5 * x
    np.testing.assert_allclose(weight.detach(), torch.eye(2) * expected, atol=1e-5)


def test_it_is_pytorchs_muon_but_for_bfloat16():
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(24, 16, generator=generator)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    rate = {"lr": 0.05, "weight_decay": 0.05}
    own = muon.Muon([ours], **rate)
    torchs = torch.optim.Muon([theirs], adjust_lr_fn="match_rms_adamw", **rate)
    for _ in range(4):
        ours.grad = torch.randn(24, 16, generator=generator)
        theirs.grad = ours.grad.clone()
        own.step()
        torchs.step()
    moved = (ours - start).norm()
    assert moved > 0.5 and (ours - theirs).norm() < 0.03 * moved


def test_every_parameter_that_learns_has_one_optimiser():
    model = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)))
    model[1][0].bias.requires_grad_(False)
    matrices, adamw = muon.muon_and_adamw(model[1], model, 0.001)
    assert isinstance(matrices, muon.Muon)
    assert [o.param_groups[0]["lr"] for o in (matrices, adamw)] == [muon.MATRIX_RATE, 0.001]
    held = [[p for g in o.param_groups for p in g["params"]] for o in (matrices, adamw)]
    assert held[0][0] is model[1][0].weight and len(held[0]) == 1
    others = {id(p) for p in (*model[0].parameters(), *model[1][1].parameters())}
    assert {id(p) for p in held[1]} == others
