"""Image retrieval with the matcher's own tokens: which reference views resemble an image.

Cells of an image and points of the map share one descriptor space, so the map's point descriptors,
clustered, are words of the place itself. An image is described by how its cells distribute over
these words; no second network, nothing to download. Letters: V words, C channels, K references.
"""

import logging
import math
import warnings

import numpy as np
from scipy.cluster.vq import kmeans2
import torch
from torch import Tensor
import torch.nn.functional as F

LOG = logging.getLogger(__name__)
# References; comparing an image with so many takes about 10 ms on one core. Grouping takes seconds
# each time a map is loaded.
EXACT_UP_TO = 65536
_PROBED = 32  # groups that a grouped search looks into
_LEARNED_FROM = 48  # references a group, that the groups are fitted to


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


class RetrievalIndex:
    """Finds the references most similar to an image.

    Up to `EXACT_UP_TO` of them every one is compared. Beyond, they are grouped by similarity and
    only the groups nearest to the image are searched, if faiss is there; without it the search
    stays exact, and slow.
    """

    def __init__(self, references: Tensor):
        """Prepare the search among references (K, V) of unit length."""
        self._references = references.float()
        self._groups = None
        if len(references) > EXACT_UP_TO:
            self._groups = _grouped(self._references)

    @property
    def exact(self) -> bool:
        """Whether every reference is compared."""
        return self._groups is None

    def nearest(self, descriptor: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Give numbers and scores of the `count` most similar references, best first.

        descriptor: (V,) of unit length, on the device of the references.
        """
        if self._groups is not None:
            scores, numbers = (torch.from_numpy(found[0]) for found in self._groups.search(
                descriptor[None].float().cpu().numpy(), min(count, len(self._references))))
            if (numbers >= 0).all():  # else the groups searched hold too few
                return numbers.to(descriptor.device), scores.to(descriptor)
        return nearest(descriptor, self._references, count)


def _grouped(references: Tensor) -> object | None:
    """Group references (K, V) with faiss; None where it is not installed."""
    try:
        import faiss
    except ImportError:
        LOG.warning('each image is compared with all %d reference views; install faiss '
                    '(pip install "nerfmatch_ros[scale]") to search among groups of them',
                    len(references))
        return None
    count, channels = references.shape
    groups = max(1, min(4 * math.isqrt(count), count // _LEARNED_FROM))
    made = faiss.IndexIVFFlat(
        faiss.IndexFlatIP(channels), channels, groups, faiss.METRIC_INNER_PRODUCT)
    made.cp.niter, made.cp.max_points_per_centroid = 8, _LEARNED_FROM
    made.nprobe = min(_PROBED, groups)
    values = references.cpu().numpy()
    made.train(values)
    made.add(values)
    LOG.info('%d reference views are searched in %d of %d groups', count, made.nprobe, groups)
    return made
