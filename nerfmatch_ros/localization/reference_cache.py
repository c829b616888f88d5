"""The reference views that were used last, encoded and on the device."""

from collections import OrderedDict
from collections.abc import Sequence

from nerfmatch_ros.matching.matcher import PointTokens
from nerfmatch_ros.scene_map import SceneMap
import torch
from torch import Tensor

Encoded = tuple[Tensor, PointTokens]  # points (N, 3), map frame, metres, and their tokens


class ReferenceCache:
    """Keeps what a matcher needs of reference views until a budget is spent; the oldest go first.

    What is kept of a view depends on the map alone, so the answers are those of encoding it anew.
    Call it from one thread at a time.
    """

    def __init__(
        self, scene_map: SceneMap, device: str | torch.device = 'cpu',
        budget_bytes: int = 512 << 20, dtype: torch.dtype | None = None,
    ):
        """Begin with nothing.

        device: that of the map's matcher; budget_bytes: of that device, 0 keeps nothing; dtype: of
        the tokens kept, None: as the matcher encodes them, float32 where the map holds tokens.
        """
        self._scene_map, self._device = scene_map, torch.device(device)
        self._budget, self._dtype = budget_bytes, dtype
        self._kept: OrderedDict[int, Encoded] = OrderedDict()
        self.bytes = 0  # of what is kept
        self.hits = self.misses = 0

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, k: int) -> bool:
        return k in self._kept

    def get(self, k: int) -> Encoded:
        """Give points (N, 3), map frame, metres, and tokens of reference view k, on the device.

        They are shared with later calls: leave them as they are. Raises MapError for a view that
        is damaged.
        """
        if k in self._kept:
            self.hits += 1
            self._kept.move_to_end(k)
            return self._kept[k]
        self.misses += 1
        encoded = self._read(k)
        size = _bytes(encoded)
        if size <= self._budget:
            self._kept[k] = encoded
            self.bytes += size
            while self.bytes > self._budget:
                self.bytes -= _bytes(self._kept.popitem(last=False)[1])
        return encoded

    def get_together(self, numbers: Sequence[int]) -> Encoded:
        """Give several views as one set of points, for a matcher that is not `per_view`."""
        views = [self.get(k) for k in numbers]
        fine = [tokens.fine for _, tokens in views]
        return torch.cat([points for points, _ in views]), PointTokens(
            torch.cat([tokens.coarse for _, tokens in views]),
            None if fine[0] is None else torch.cat(fine))

    def clear(self) -> None:
        """Forget all views."""
        self._kept.clear()
        self.bytes = 0

    def halve(self) -> None:
        """Forget all views, and keep half as much from now on."""
        self._budget //= 2
        self.clear()

    @torch.no_grad()
    def _read(self, k: int) -> Encoded:
        references = self._scene_map.references
        points, features = (self._moved(part) for part in references.view(k))
        if references.holds == 'tokens':
            tokens = PointTokens(features.to(self._dtype or torch.float32), None)
        else:
            tokens = self._scene_map.encode_points(points, features)
        if self._dtype is not None:
            tokens = PointTokens(tokens.coarse.to(self._dtype), None if tokens.fine is None
                                 else tokens.fine.to(self._dtype))
        return points, tokens

    def _moved(self, part: Tensor | None) -> Tensor | None:
        """Bring a tensor to the device; the host does not wait for a GPU to receive it."""
        if part is None or self._device.type != 'cuda':
            return part if part is None else part.to(self._device)
        return part.pin_memory().to(self._device, non_blocking=True)


def _bytes(encoded: Encoded) -> int:
    points, tokens = encoded
    return sum(part.numel() * part.element_size()
               for part in (points, tokens.coarse, tokens.fine) if part is not None)
