"""Working pictures of the map images: a stated number of bytes in memory, the others read anew."""

from collections.abc import Sequence

from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.mapping.reference_views import ReferenceView
import numpy as np

KEPT_BYTES = 512 * 2 ** 20  # 1600 pictures of the default size


class PictureCache:
    """Pictures (h, w, 3) uint8 of map images, resized and without distortion.

    The first ones that are drawn stay, as many as there is room for; which ones those are changes
    how long a picture takes and nothing else.
    """

    def __init__(
        self, images: Sequence[PosedImage], references: Sequence[ReferenceView], *,
        kept_bytes: int = KEPT_BYTES,
    ):
        self._images, self._references = images, references
        self._room = kept_bytes
        self._kept: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self._images)

    def size(self, k: int) -> tuple[int, int]:
        """Height and width of a picture."""
        camera = self._references[k].view.camera
        return camera.height, camera.width

    def __getitem__(self, k: int) -> np.ndarray:
        """Give a picture; it is not to be changed."""
        if k in self._kept:
            return self._kept[k]
        picture = self._references[k].view.picture(self._images[k].rgb())
        if picture.nbytes <= self._room:
            self._room -= picture.nbytes
            self._kept[k] = picture
        return picture
