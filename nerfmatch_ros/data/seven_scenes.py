"""Reader for a scene of 7-Scenes as it is distributed, its sequences unpacked.

The poses are those of KinectFusion, of the depth camera, and are taken for the colour camera's, a
few centimetres beside it, as is usual. The depth pictures are not registered to the colour camera
and therefore not used.
"""

from pathlib import Path
import re

from nerfmatch_ros.data.posed_image import checked_pose, PosedImage
from nerfmatch_ros.errors import DataError
from nerfmatch_ros.geometry.camera import Camera
import numpy as np

EXPECTED = '7-Scenes (TrainSplit.txt, TestSplit.txt, seq-01, seq-02, ...)'
# The focal length of published evaluations; pixels count from the corner of the first in 320, 240.
CAMERA = Camera('PINHOLE', 640, 480, 525.0, 525.0, 319.5, 239.5)
POSE_TOLERANCE = 0.02  # largest entry of |R^T R - I| that is repaired; beyond, tracking was lost

_LISTS = {'train': 'TrainSplit.txt', 'test': 'TestSplit.txt'}
_SEQUENCE = re.compile(r'sequence\s*(\d+)')


def found(folder: Path) -> bool:
    """Tell whether the folder holds this format."""
    return any((folder / name).is_file() for name in _LISTS.values())


def read(folder: Path) -> list[PosedImage]:
    """Read every frame of the listed sequences, `seq-XX/frame-XXXXXX.color.png`."""
    return [_read_frame(folder, picture, split)
            for split, name in _LISTS.items() if (folder / name).is_file()
            for sequence in _sequences(folder / name)
            for picture in _pictures(folder / sequence)]


def _sequences(file: Path) -> list[str]:
    names = []
    try:
        lines = file.read_text(encoding='utf-8').splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f'cannot read {file}: {error}') from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        match = _SEQUENCE.fullmatch(line.strip())
        if match is None:
            raise DataError(f"{file}, line {number}: expected 'sequence' and a number, got "
                            f"'{line.strip()}'")
        names.append(f'seq-{int(match[1]):02d}')
    return names


def _pictures(folder: Path) -> list[Path]:
    pictures = sorted(folder.glob('frame-*.color.png'))
    if not pictures:
        raise DataError(f'{folder} has no frame-XXXXXX.color.png; unpack {folder.name}.zip there')
    return pictures


def _read_frame(folder: Path, picture: Path, split: str) -> PosedImage:
    file = picture.with_name(picture.name.replace('.color.png', '.pose.txt'))
    try:
        matrix = np.array(file.read_text(encoding='utf-8').split(), np.float64).reshape(4, 4)
    except (OSError, ValueError) as error:
        raise DataError(f'{file} is no pose of 4 x 4 numbers: {error}') from error
    return PosedImage(
        name=picture.relative_to(folder).as_posix(), camera=CAMERA, path=picture, split=split,
        map_from_camera=checked_pose(matrix, str(file), POSE_TOLERANCE))
