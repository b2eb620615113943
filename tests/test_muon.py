import numpy as np
import pytest
import torch
from torch import nn

from cag_utils.making_tower import Muon, muon_and_adamw, orthogonalise


@pytest.mark.parametrize("shape", [(8, 8), (32, 8), (8, 32)])
def test_singular_values_end_near_one_and_directions_stay(shape):
    matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    got = orthogonalise(matrix)
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
    Muon([weight], lr=0.1, weight_decay=0.5).step()
    expected = 3 * (1 - 0.1 * 0.5) - 0.1 * 0.2 * 2**0.5 * x
    np.testing.assert_allclose(weight.detach(), torch.eye(2) * expected, atol=1e-5)


def test_it_is_pytorchs_muon_but_for_bfloat16():
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(24, 16, generator=generator)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    rate = {"lr": 0.05, "weight_decay": 0.05}
    pair = (
        (ours, Muon([ours], **rate)),
        (
            theirs,
            torch.optim.Muon([theirs], adjust_lr_fn="match_rms_adamw", **rate),
        ),
    )
    for _ in range(4):
        gradient = torch.randn(24, 16, generator=generator)
        for weight, optimiser in pair:
            weight.grad = gradient.clone()
            optimiser.step()
    moved = (ours - start).norm()
    assert moved > 0.5 and (ours - theirs).norm() < 0.03 * moved


def test_a_parameter_without_gradient_stays():
    weight = nn.Parameter(torch.ones(2, 2))
    Muon([weight], lr=0.1).step()
    assert torch.equal(weight, torch.ones(2, 2))


@pytest.mark.parametrize(
    "wrong", [{"lr": 0}, {"lr": 1, "momentum": 1}, {"lr": 1, "weight_decay": -1}]
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValueError, match="Muon needs"):
        Muon([nn.Parameter(torch.ones(2, 2))], **wrong)


def test_a_vector_is_refused():
    with pytest.raises(ValueError, match="matrices alone"):
        Muon([nn.Parameter(torch.ones(2))], lr=0.1)


def test_every_parameter_that_learns_has_one_optimiser():
    model = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)))
    model[1][0].bias.requires_grad_(False)
    (muon, fast), (adamw, slow) = muon_and_adamw(model[1], model, 0.02, 0.001).items()
    assert (fast, slow) == (0.02, 0.001) and isinstance(muon, Muon)
    held = [[p for g in o.param_groups for p in g["params"]] for o in (muon, adamw)]
    assert held[0][0] is model[1][0].weight and len(held[0]) == 1
    assert {id(p) for p in held[1]} == {
        id(p) for p in (*model[0].parameters(), *model[1][1].parameters())
    }
