"""Replaying a network on a GPU without launching its hundreds of kernels one by one."""

from collections import OrderedDict
from collections.abc import Callable
import logging

import torch
from torch import Tensor

LOG = logging.getLogger(__name__)
_SHAPES = 4  # of pictures whose graphs are kept; each holds the memory of a forward pass
_REHEARSALS = 3  # before a capture, in which libraries choose their kernels

Maps = tuple[Tensor, Tensor | None]


class GraphedEncoder:
    """An encoder of images that is captured once for each shape of picture and replayed.

    A capture that fails is logged, and that shape is computed without one. The results are copies
    that the next image does not change. Call it from one thread at a time.
    """

    def __init__(self, encode: Callable[[Tensor], Maps]):
        self._encode = encode
        self._captured: OrderedDict[tuple, Callable[[Tensor], Maps]] = OrderedDict()

    def __call__(self, images: Tensor) -> Maps:
        """Encode images (B, C, H, W) as the encoder does."""
        key = (*images.shape, images.dtype)
        if key not in self._captured:
            try:
                self._captured[key] = self._capture(images)
            except RuntimeError as error:
                LOG.warning('pictures of shape %s are encoded without a CUDA graph: %s',
                            tuple(images.shape), str(error).splitlines()[0])
                self._captured[key] = self._encode
            if len(self._captured) > _SHAPES:
                self._captured.popitem(last=False)
        self._captured.move_to_end(key)
        return self._captured[key](images)

    def _capture(self, images: Tensor) -> Callable[[Tensor], Maps]:
        with torch.inference_mode(False):  # else it could be written to in that mode only
            given = images.clone()
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream(images.device)
        stream.wait_stream(torch.cuda.current_stream(images.device))
        # All of it on the device of the images, which need not be the current one.
        with torch.cuda.device(images.device):
            with torch.cuda.stream(stream):
                for _ in range(_REHEARSALS):
                    self._encode(given)
            torch.cuda.current_stream().wait_stream(stream)
            # Other threads may use the GPU meanwhile: a refiner in the same process, for one.
            with torch.cuda.graph(graph, stream=stream, capture_error_mode='thread_local'):
                coarse, fine = self._encode(given)

        def replay(images: Tensor) -> Maps:
            given.copy_(images)
            graph.replay()
            return coarse.clone(), None if fine is None else fine.clone()

        return replay
