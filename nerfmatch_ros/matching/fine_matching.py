"""Fine matching: where in a small window of the 1/2 map does a matched point lie.

Letters: M matches, W x W window, Cf channels. Positions are pixels of the working image; fine map
pixel k covers image pixels 2k and 2k + 1, so its centre is 2k + 0.5.
"""

import torch
from torch import Tensor
import torch.nn.functional as F

FINE_STRIDE = 2


def window_features(
    fine: Tensor, image_of_match: Tensor, centres: Tensor, width: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Cut windows out of fine maps around pixel positions.

    fine: (B, Cf, H/2, W/2); image_of_match: (M,) in [0, B); centres: (M, 2) pixels.
    Returns features (M, W*W, Cf), pixel positions (M, W*W, 2), inside (M, W*W) bool.
    """
    rows, columns = fine.shape[-2:]
    base = torch.floor(centres / FINE_STRIDE).long()
    # A cell is 4 fine pixels wide, so an even window lies symmetrically around its centre.
    offsets = torch.arange(width, device=fine.device) - (width - 1) // 2
    dv, du = torch.meshgrid(offsets, offsets, indexing='ij')
    u = base[:, :1] + du.reshape(1, -1)
    v = base[:, 1:] + dv.reshape(1, -1)
    inside = (u >= 0) & (v >= 0) & (u < columns) & (v < rows)
    flat = fine.permute(0, 2, 3, 1).reshape(-1, fine.shape[1])
    index = (image_of_match[:, None] * rows + v.clamp(0, rows - 1)) * columns
    features = flat[index + u.clamp(0, columns - 1)]
    positions = torch.stack([u, v], dim=-1).to(centres.dtype) * FINE_STRIDE + 0.5
    return features, positions, inside


def unit_logits(features: Tensor, point_features: Tensor, inside: Tensor, scale: Tensor) -> Tensor:
    """Do what `fine_logits` does for vectors of unit length."""
    cosine = (features @ point_features[..., None])[..., 0]
    return (scale * cosine).masked_fill(~inside, -1e4)


def fine_logits(features: Tensor, point_features: Tensor, inside: Tensor, scale: Tensor) -> Tensor:
    """Scaled cosine of each window position with its point: (M, W*W, Cf), (M, Cf) -> (M, W*W)."""
    return unit_logits(F.normalize(features, dim=-1), F.normalize(point_features, dim=-1), inside,
                       scale)


def expectation(logits: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Mean position (M, 2) and variance (M,), pixels squared, under the softmax of the logits."""
    probability = logits.softmax(dim=-1)
    mean = (probability[..., None] * positions).sum(1)
    variance = (probability * ((positions - mean[:, None]) ** 2).sum(-1)).sum(1)
    return mean, variance


def fine_loss(logits: Tensor, positions: Tensor, inside: Tensor, truth: Tensor) -> Tensor:
    """Cross entropy with the bilinear share of each position, and distance of the expectation.

    truth: (M, 2) pixels; matches whose truth is outside of the window do not count. (The paper's
    Eq. 4 has the variance-weighted distance alone; from scratch the cross entropy learns faster.)
    """
    apart = (positions - truth[:, None]).abs() / FINE_STRIDE
    share = (1 - apart).clamp(min=0).prod(dim=-1) * inside
    usable = share.sum(-1) > 0.99
    if not usable.any():
        return logits.sum() * 0
    entropy = -(share * logits.log_softmax(-1)).sum(-1)[usable]
    mean, variance = expectation(logits[usable], positions[usable])
    weight = 1 / variance.detach().clamp(min=0.25)
    distance = F.smooth_l1_loss(mean, truth[usable], reduction='none').sum(-1)
    return entropy.mean() + 0.5 * (weight / weight.mean() * distance).mean()
