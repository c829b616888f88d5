"""Batch normalisation that two processes share equals that of one."""

from nerfmatch_ros.mapping.engine import make_engine
from nerfmatch_ros.matching.shared_batch_norm import SharedBatchNorm2d
import numpy as np
from processes import run_together
import pytest
import torch
from torch import nn

BATCH = 5 * torch.randn(5, 3, 4, 6, generator=torch.Generator().manual_seed(0)) + 2
WEIGHTS = torch.randn(BATCH.shape, generator=torch.Generator().manual_seed(1))


def normalise(kind=torch.float32) -> list[np.ndarray]:
    """Output, gradients and statistics after a step with this process's share of a batch."""
    engine = make_engine('cpu')
    norm = SharedBatchNorm2d(3)
    norm.weight.data = torch.tensor([0.5, 1.0, 2.0])
    share = BATCH[engine.global_rank::engine.world_size].to(kind).requires_grad_()
    out = norm(share)
    (out.float() * WEIGHTS[engine.global_rank::engine.world_size]).sin().sum().backward()
    return [value.detach().float().numpy() for value in (
        out, share.grad, norm.weight.grad, norm.bias.grad, norm.running_mean, norm.running_var)]


def test_two_shares_give_what_the_whole_batch_gives():
    whole = normalise()
    first, second = run_together(2, normalise)
    for index in range(2):
        for rank, part in enumerate((first, second)):
            np.testing.assert_allclose(part[index], whole[index][rank::2], rtol=1e-4, atol=1e-5)
    for index in (2, 3):  # of each share its own; a training averages them
        np.testing.assert_allclose(first[index] + second[index], whole[index], rtol=1e-4,
                                   atol=1e-4)
    for index in (4, 5):
        np.testing.assert_allclose(first[index], whole[index], rtol=1e-5)
        np.testing.assert_array_equal(first[index], second[index])


@pytest.mark.parametrize('training', [True, False])
def test_one_process_has_torchs_own(training):
    ours, torchs = SharedBatchNorm2d(3).train(training), nn.BatchNorm2d(3).train(training)
    assert torch.equal(ours(BATCH), torchs(BATCH))
    assert ours.state_dict().keys() == torchs.state_dict().keys()
    assert torch.equal(ours.running_var, torchs.running_var)


def test_half_precision_stays_half():
    for part in run_together(2, normalise, torch.bfloat16):
        assert all(np.isfinite(value).all() for value in part)
