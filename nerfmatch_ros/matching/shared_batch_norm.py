"""Batch normalisation over the images of all processes that train together.

Torch's own `SyncBatchNorm` runs on CUDA only. With one process, and after training, this is
`BatchNorm2d` itself, weights and names included.
"""

import functools

import torch
from torch import distributed, nn, Tensor


@functools.lru_cache(maxsize=1)
def _own_group(world: object) -> object:
    """Make a group of all processes for these sums alone.

    Gradients are exchanged while the backward pass still goes on, in an order that depends on what
    an image sees; in one group with them, sums of one process would meet gradients of another.
    """
    return distributed.new_group()


class _Sum(torch.autograd.Function):
    """Sum over all processes; its gradient is summed as well."""

    @staticmethod
    def forward(ctx, values: Tensor) -> Tensor:
        values = values.clone()
        distributed.all_reduce(values, group=_own_group(distributed.group.WORLD))
        return values

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return _Sum.forward(ctx, gradient.contiguous())


class SharedBatchNorm2d(nn.BatchNorm2d):
    """`BatchNorm2d` whose mean and variance are those of the whole batch, not of one share."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, h, w); every process calls this, with B of its own."""
        if not (self.training and distributed.is_available() and distributed.is_initialized()
                and distributed.get_world_size() > 1):
            return super().forward(x)
        values, channels, shape = x.float(), x.shape[1], (1, -1, 1, 1)
        count = values.new_full((1,), values.numel() / channels)
        sums = _Sum.apply(torch.cat([values.sum((0, 2, 3)), count]))
        mean, count = sums[:-1] / sums[-1], sums[-1]
        # In a second round: the mean of squares less the square of the mean is not as precise.
        centred = values - mean.view(shape)
        variance = _Sum.apply(centred.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        factor = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * factor.view(shape) + self.bias.view(shape)).to(x.dtype)
