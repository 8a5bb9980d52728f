"""Batch norm whose statistics are those of the whole batch, where each of several processes has a share of it.

For each channel, with the sums over all N values of the images in all processes:

    mean = sum(x) / N,  var = sum((x - mean)^2) / N,  y = weight (x - mean) / sqrt(var + eps) + bias

This equals `torch.nn.BatchNorm2d` on the whole batch (`tests/distributed/test_pretrain_processes.py`). With statistics
of shares, the model and its weights would depend on the number of processes. torch's `SyncBatchNorm` computes the same,
but on GPUs only.
"""

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from stages.core import processes


class SharedBatchNorm(BatchNormAct2d):
    """timm's batch norm and activation, with the weights, buffers and layers of `module`."""

    def __init__(self, module: BatchNormAct2d):
        super().__init__(module.num_features, module.eps)
        self.momentum = module.momentum
        self.weight = module.weight
        self.bias = module.bias
        self.running_mean = module.running_mean
        self.running_var = module.running_var
        self.num_batches_tracked = module.num_batches_tracked
        self.drop = module.drop
        self.act = module.act
        self.train(module.training)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize and activate `(B, channels, H, W)`; in training, `B` is this process's share of the batch."""
        if not self.training:
            return super().forward(x)
        values = x.new_tensor([x.numel() / x.shape[1]])
        sums = processes.all_reduce(torch.cat([x.sum((0, 2, 3)), values]))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centered = x - mean.view(-1, 1, 1)
        var = processes.all_reduce(centered.square().sum((0, 2, 3))) / count
        self._update_statistics(mean.detach(), var.detach() * count / (count - 1))
        scale = self.weight * (var + self.eps).rsqrt()
        return self.act(self.drop(centered * scale.view(-1, 1, 1) + self.bias.view(-1, 1, 1)))

    def _update_statistics(self, mean: Tensor, unbiased_var: Tensor) -> None:
        # torch's stubs allow for batch norm without statistics; timm has none.
        assert self.num_batches_tracked is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.momentum is not None
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(unbiased_var, self.momentum)


def share_batch_norm(model: nn.Module) -> None:
    """Replace all batch norms of timm in `model` by `SharedBatchNorm`; a single process keeps them."""
    if processes.count() == 1:
        return
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, BatchNormAct2d):
                setattr(parent, name, SharedBatchNorm(child))
