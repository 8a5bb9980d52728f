"""Muon in single precision takes the steps of torch's, which rounds to bfloat16."""

import torch

from stages.pretraining.muon import Muon

SHAPES = [(384, 128), (128, 128), (128, 128), (128, 512)]


def test_steps_are_those_of_torch_up_to_its_rounding():
    """Momentum, shape-dependent scale, weight decay and learning rate over three steps."""
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(0.1 * torch.randn(shape)) for shape in SHAPES]
    theirs = [torch.nn.Parameter(weight.detach().clone()) for weight in ours]
    before = [weight.detach().clone() for weight in ours]
    optimizers = (Muon(ours, 0.02, 0.05), torch.optim.Muon(theirs, lr=0.02, weight_decay=0.05))
    for _ in range(3):
        for weight, other in zip(ours, theirs, strict=True):
            weight.grad = torch.randn_like(weight)
            other.grad = weight.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for weight, other, start in zip(ours, theirs, before, strict=True):
        # bfloat16 has 8 bits: each of the 15 products of a step rounds by up to 2^-9, relative to the update.
        assert (weight - other).norm() < 15 * 2**-9 * (weight - start).norm()


def test_updates_are_nearly_orthogonal():
    """The quintic iteration takes singular values to 0.7 to 1.2, from those of any gradient."""
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.zeros(32, 128))
    weight.grad = torch.randn(32, 128) * torch.logspace(-1, 1, 128)
    Muon([weight], 1.0, 0.0).step()
    singular_values = torch.linalg.svdvals(weight.detach())
    assert 0.6 < singular_values.min()
    assert singular_values.max() < 1.3
