"""Reader for `transforms.json`, the format of nerfstudio and instant-ngp.

What the format does differently is converted here and nowhere else: its camera axes are OpenGL's
(y up, z backward), and its principal point counts from the corner of the first pixel.
"""

from collections.abc import Sequence
import json
import math
from pathlib import Path
from typing import Any

from nerfmatch_ros.data.image_size import image_size
from nerfmatch_ros.data.posed_image import checked_pose, PosedImage
from nerfmatch_ros.errors import DataError
from nerfmatch_ros.files import write_text
from nerfmatch_ros.geometry.camera import Camera, DISTORTION_LENGTHS
import numpy as np

EXPECTED = 'transforms.json'
OPENGL_FROM_OPENCV = np.diag((1.0, -1.0, -1.0, 1.0))  # turns about the camera's x axis
DEFAULT_DEPTH_SCALE = 0.001  # metres per unit: depth pictures hold millimetres

WITHOUT_POSE = 'frames_without_pose'  # a list of our own, which other programs pass over

_EXTENSIONS = ('.png', '.jpg', '.jpeg', '.PNG', '.JPG', '.JPEG')
_SPLITS = {'train': 'train', 'test': 'test', 'val': 'test'}
# Our model and the names of its coefficients, for each model of the format.
_MODELS = {
    'SIMPLE_PINHOLE': ('PINHOLE', ()),
    'PINHOLE': ('PINHOLE', ()),
    'PERSPECTIVE': ('PINHOLE', ()),
    'SIMPLE_RADIAL': ('OPENCV', ('k1', 'k2', 'p1', 'p2')),
    'RADIAL': ('OPENCV', ('k1', 'k2', 'p1', 'p2')),
    'OPENCV': ('OPENCV', ('k1', 'k2', 'p1', 'p2')),
    'OPENCV_FISHEYE': ('OPENCV_FISHEYE', ('k1', 'k2', 'k3', 'k4')),
    'FULL_OPENCV': ('RATIONAL', ('k1', 'k2', 'p1', 'p2', 'k3', 'k4', 'k5', 'k6')),
}
_COEFFICIENTS = ('k1', 'k2', 'k3', 'k4', 'k5', 'k6', 'p1', 'p2')


def found(folder: Path) -> bool:
    """Tell whether the folder holds this format."""
    return (folder / 'transforms.json').is_file()


def read(folder: Path, *, positions: bool = False) -> list[PosedImage]:
    """Read the frames of `folder/transforms.json`; `split` stays None where the file has none.

    positions: a frame may have a 'position' [x, y, z], metres, in place of 'transform_matrix'; its
    pose gets the rotation of none.
    """
    file = folder / 'transforms.json'
    content = _content(file)
    frames = content.get('frames')
    if not _is_list_of_frames(frames):
        raise DataError(f"{file} has no list 'frames'; write it with nerfstudio's ns-process-data")
    splits = _splits_by_name(content)
    marked = bool(splits) or any('split' in frame for frame in frames)
    shared = {key: value for key, value in content.items() if key != 'frames'}
    return [_read_frame(file, index, frame, shared, splits, marked, positions=positions)
            for index, frame in enumerate(frames)]


def read_without_pose(folder: Path) -> list[PosedImage]:
    """Read the images that `write` was given without a pose; none of other programs' files."""
    file = folder / 'transforms.json'
    frames = _content(file).get(WITHOUT_POSE, [])
    if not _is_list_of_frames(frames):
        raise DataError(f"{file}: '{WITHOUT_POSE}' is no list of frames; write it again")
    return [_read_frame(file, index, frame, {}, {}, False, posed=False)
            for index, frame in enumerate(frames)]


def write(file: Path, frames: list[dict[str, Any]],
          without_pose: Sequence[dict[str, Any]] = ()) -> None:
    """Write `transforms.json`, whole or not at all, with the given frames, see `frame_entry`.

    without_pose: frames that `read` is not to see, but `read_without_pose`.
    """
    more = {WITHOUT_POSE: list(without_pose)} if without_pose else {}
    write_text(file, json.dumps({'frames': frames, **more}, indent=1) + '\n')


def frame_entry(image: PosedImage, folder: Path) -> dict[str, Any]:
    """Give the frame that `read` turns into this image again; its name is the picture's path.

    folder: of transforms.json; depth and mask are named relative to it.
    """
    camera = image.camera
    model = {'RATIONAL': 'FULL_OPENCV'}.get(camera.model, camera.model)
    entry = {
        'file_path': image.name, 'camera_model': model, 'w': camera.width, 'h': camera.height,
        'fl_x': camera.fx, 'fl_y': camera.fy, 'cx': camera.cx + 0.5, 'cy': camera.cy + 0.5,
        **dict(zip(_MODELS[model][1], camera.distortion)),
    }
    if image.map_from_camera is not None:
        entry['transform_matrix'] = (image.map_from_camera @ OPENGL_FROM_OPENCV).tolist()
    if image.split is not None:
        entry['split'] = image.split
    if image.stamp is not None:
        entry['timestamp'] = image.stamp
    if image.depth_path is not None:
        entry['depth_file_path'] = image.depth_path.relative_to(folder).as_posix()
        entry['depth_unit_scale_factor'] = image.depth_scale
    if image.mask_path is not None:
        entry['mask_path'] = image.mask_path.relative_to(folder).as_posix()
    return entry


def _content(file: Path) -> dict:
    try:
        content = json.loads(file.read_text(encoding='utf-8'))
    except ValueError as error:
        raise DataError(f'{file} is not valid JSON: {error}; write it again') from error
    return content if isinstance(content, dict) else {}


def _is_list_of_frames(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(frame, dict) for frame in value)


def _checked_position(value: Any, where: str) -> list[float]:
    """Give a position [x, y, z]; DataError for anything else."""
    if not (isinstance(value, list) and len(value) == 3 and all(
            isinstance(one, (int, float)) and not isinstance(one, bool) and math.isfinite(one)
            for one in value)):
        raise DataError(f'{where}: position is {value!r}; give [x, y, z] in metres')
    return value


def _read_frame(
    file: Path, index: int, frame: dict, shared: dict, splits: dict[str, str], marked: bool, *,
    posed: bool = True, positions: bool = False,
) -> PosedImage:
    if not isinstance(frame.get('file_path'), str) or not frame['file_path']:
        raise DataError(f"{file}: frame {index} has file_path {frame.get('file_path')!r}; "
                        'name its picture')
    stated = frame['file_path'].replace('\\', '/')
    where = f"{file}: frame {index} '{stated}'"
    path = _picture(file.parent, stated, where)
    if posed and 'transform_matrix' not in frame and not (positions and 'position' in frame):
        alone = '; positions alone serve --labels position' if 'position' in frame else ''
        raise DataError(f"{where} has no 'transform_matrix'{' and no position' * positions}; "
                        f'register it or take it out{alone}')
    pose = None
    if posed and 'transform_matrix' not in frame:
        pose = np.eye(4)
        pose[:3, 3] = _checked_position(frame['position'], where)
    elif posed:
        pose = checked_pose(frame['transform_matrix'], where) @ OPENGL_FROM_OPENCV
    values = {**shared, **frame}
    split = None
    if marked:
        stated_split = frame.get('split', splits.get(stated, 'train'))
        split = _SPLITS.get(stated_split) if isinstance(stated_split, str) else None
        if split is None:
            raise DataError(f"{where} has split {stated_split!r}; use 'train', 'test' or 'val'")
    scale = _number(where, values, 'depth_unit_scale_factor', DEFAULT_DEPTH_SCALE)
    return PosedImage(
        name=_name(file.parent, path), camera=_camera(where, values, path), map_from_camera=pose,
        path=path, depth_path=_beside(file, frame, 'depth_file_path', where),
        mask_path=_beside(file, frame, 'mask_path', where), split=split,
        stamp=_number(where, frame, 'timestamp', None), depth_scale=scale)


def _splits_by_name(content: dict) -> dict[str, str]:
    """Read nerfstudio's lists of file names for each split, where there are any."""
    return {name: split for split in ('train', 'val', 'test')
            for name in content.get(f'{split}_filenames') or ()}


def _picture(folder: Path, stated: str, where: str) -> Path:
    """Find the picture of a `file_path` that may lack its extension."""
    path = folder / stated
    candidates = [path, *(path.with_name(path.name + extension) for extension in _EXTENSIONS)]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise DataError(f'{where}: picture {path} does not exist (nor with .png, .jpg, .jpeg); '
                    'put it there or take the frame out')


def _beside(file: Path, frame: dict, key: str, where: str) -> Path | None:
    stated = frame.get(key)
    if stated is None:
        return None
    if not isinstance(stated, str) or not stated:
        raise DataError(f'{where} has {key} {stated!r}; name a file or leave the key out')
    return file.parent / stated.replace('\\', '/')


def _name(folder: Path, path: Path) -> str:
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.as_posix()


def _camera(where: str, values: dict, path: Path) -> Camera:
    """Make the camera of a frame from its own and the shared intrinsics."""
    if 'w' in values and 'h' in values:
        width, height = (_number(where, values, key, None) for key in ('w', 'h'))
    else:
        size = image_size(path)
        if size is None:
            raise DataError(f'{where}: {path} is not a readable picture; '
                            'store it again as PNG or JPEG')
        width, height = size
    fx = _focal_length(where, values, 'x', width)
    fy = _focal_length(where, values, 'y', height)
    if fx is None and fy is None:
        raise DataError(f"{where} has no focal length; give 'fl_x' or 'camera_angle_x'")
    fx, fy = (fy if fx is None else fx), (fx if fy is None else fy)
    model, distortion = _distortion(where, values)
    # The format counts from the corner of the first pixel, we from its centre.
    cx = _number(where, values, 'cx', width / 2) - 0.5
    cy = _number(where, values, 'cy', height / 2) - 0.5
    try:
        return Camera(model, width, height, fx, fy, cx, cy, distortion)
    except DataError as error:
        raise DataError(f'{where}: {error}') from error


def _focal_length(where: str, values: dict, axis: str, pixels: float) -> float | None:
    focal = _number(where, values, f'fl_{axis}', None)
    angle = _number(where, values, f'camera_angle_{axis}', None)
    if focal is not None or angle is None:
        return focal
    if not 0 < angle < math.pi:
        raise DataError(f'{where}: camera_angle_{axis} is {angle:g}; it is the full opening angle '
                        'in radians, between 0 and pi')
    return 0.5 * pixels / math.tan(0.5 * angle)


def _distortion(where: str, values: dict) -> tuple[str, tuple[float, ...]]:
    """Give our camera model and its coefficients; one that the model lacks must be 0."""
    stated = values.get('camera_model') or (
        'OPENCV_FISHEYE' if values.get('is_fisheye') else 'OPENCV')
    if stated not in _MODELS:
        raise DataError(f'{where} has camera_model {stated!r}; supported: {", ".join(_MODELS)}. '
                        'Undistort the pictures to use others')
    if stated == 'OPENCV' and _number(where, values, 'k3', 0.0) != 0:
        # The sixth power, as Metashape and Polycam write it, is a rational model without divisor.
        model, names = 'RATIONAL', ('k1', 'k2', 'p1', 'p2', 'k3')
    else:
        model, names = _MODELS[stated]
    for name in _COEFFICIENTS:
        value = _number(where, values, name, 0.0)
        if name not in names and value != 0:
            raise DataError(f'{where} has {name} = {value:g}, which camera_model {stated} does '
                            'not have; undistort the pictures or calibrate without it')
    coefficients = [_number(where, values, name, 0.0) for name in names]
    missing = DISTORTION_LENGTHS[model] - len(names)
    return model, (*coefficients, *[0.0] * missing)


def _number(where: str, values: dict, key: str, default: float | None) -> float | None:
    value = values.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise DataError(f'{where} has {key} {value!r}; it must be a finite number')
    return float(value)
