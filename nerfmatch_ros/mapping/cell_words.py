"""Words of retrieval from the cells of map images, for matchers with attention.

Attention takes points to a space of their own before they are compared with cells, so there the
words of a place are not clusters of its points but of what its images show.
"""

from collections.abc import Iterable

from nerfmatch_ros.matching.make_matcher import Matcher
from nerfmatch_ros.retrieval import fit_words
import numpy as np
import torch
from torch import Tensor
import torch.nn.functional as F

IMAGES = 48  # that words are made of, at most
EVERY = 16  # of the cells of each


def images_for_words(count: int) -> list[int]:
    """Choose images, by number, evenly from `count`."""
    return np.unique(np.linspace(0, count - 1, IMAGES).round().astype(int)).tolist()


@torch.inference_mode()
def cells_of(picture: Tensor, matcher: Matcher) -> Tensor:
    """Give the cells (n, C) of a picture (3, h, w) in [0, 1], unit length, on the CPU."""
    device = next(matcher.parameters()).device
    tokens = matcher.encode_image(picture.to(device)).coarse.float()
    return F.normalize(tokens, dim=-1).cpu()


def fit_cell_words(pictures: Iterable[Tensor], matcher: Matcher, count: int) -> Tensor:
    """Cluster the cells of pictures (3, h, w) into `count` words (V, C) of unit length."""
    return fit_words(torch.cat([cells_of(picture, matcher)[::EVERY] for picture in pictures]),
                     count)
