"""Image retrieval with the matcher's own tokens: which reference views resemble an image.

Cells of an image and points of the map share one descriptor space, so the map's point descriptors,
clustered, are words of the place itself. An image is described by how its cells distribute over
these words; no second network, nothing to download. Letters: V words, C channels, K references.
"""

import warnings

import numpy as np
from scipy.cluster.vq import kmeans2
import torch
from torch import Tensor
import torch.nn.functional as F


def fit_words(descriptors: Tensor, count: int, seed: int = 0) -> Tensor:
    """Cluster point descriptors (m, C) of unit length into `count` words (V, C) of unit length."""
    count = min(count, len(descriptors))
    data = descriptors.double().numpy()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # a word that no point is nearest to stays where it was
        words, _ = kmeans2(data, count, iter=15, minit='points', seed=np.random.default_rng(seed))
    return F.normalize(torch.from_numpy(words).float(), dim=-1)


def describe(cells: Tensor, words: Tensor, scale: float) -> Tensor:
    """Describe an image by its cells (n, C) of unit length: (V,) of unit length.

    The square root keeps large plain areas from drowning small distinct ones.
    """
    assignment = torch.softmax(scale * cells @ words.T, dim=-1).mean(dim=0)
    return F.normalize(assignment.sqrt(), dim=-1)


def nearest(descriptor: Tensor, references: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Give indices and scores of the `count` most similar references (K, V), best first."""
    scores = references.float() @ descriptor
    best = torch.topk(scores, min(count, len(references)))
    return best.indices, best.values
