"""COLMAP models, text or binary, with the pictures in `images/` beside them; its cameras."""

from pathlib import Path

from nerfmatch_ros.data.posed_image import checked_pose, PosedImage
from nerfmatch_ros.errors import DataError
from nerfmatch_ros.geometry.camera import Camera
import numpy as np

EXPECTED = 'a COLMAP model (sparse/0, sparse or the folder itself)'


def found(folder: Path) -> bool:
    """Tell whether the folder holds this format."""
    return _model_folder(folder) is not None


def read(folder: Path) -> list[PosedImage]:
    """Read the registered images of the folder's COLMAP model; they have no split."""
    model = _model_folder(folder)
    try:
        import pycolmap  # late: only who reads such models needs it
    except ImportError as error:
        raise DataError(f'{model} is a COLMAP model and pycolmap is not installed; '
                        'pip install nerfmatch_ros[sfm]') from error
    try:
        reconstruction = pycolmap.Reconstruction(str(model))
    except (ValueError, RuntimeError, IndexError) as error:
        raise DataError(f'{model} cannot be read as a COLMAP model: {error}; '
                        'export it again') from error
    pictures = _picture_folder(folder, model)
    return [PosedImage(name=name, camera=camera, map_from_camera=pose, path=pictures / name)
            for name, (camera, pose) in registered(reconstruction, model).items()]


def registered(reconstruction, model: Path) -> dict[str, tuple[Camera, np.ndarray]]:
    """Give camera and map_from_camera (4, 4) of each registered image of a model, by its name.

    model: where the pycolmap.Reconstruction comes from, for errors.
    """
    cameras = {number: _camera(model, number, camera)
               for number, camera in reconstruction.cameras.items()}
    images = {}
    for image in reconstruction.images.values():
        if not image.has_pose:
            continue
        pose = image.cam_from_world
        pose = pose() if callable(pose) else pose  # a property before pycolmap 3.12
        camera_from_map = checked_pose(pose.matrix(), f"{model}: image '{image.name}'")
        images[image.name] = cameras[image.camera_id], np.linalg.inv(camera_from_map)
    return images


def colmap_camera(camera: Camera) -> tuple[str, list[float]]:
    """Give the name of COLMAP's model and its parameters, pixels counted from the corner."""
    name = {'RATIONAL': 'FULL_OPENCV'}.get(camera.model, camera.model)
    return name, [camera.fx, camera.fy, camera.cx + 0.5, camera.cy + 0.5, *camera.distortion]


def _model_folder(folder: Path) -> Path | None:
    for model in (folder / 'sparse' / '0', folder / 'sparse', folder):
        if any((model / f'cameras{ending}').is_file() for ending in ('.txt', '.bin')):
            return model
    return None


def _picture_folder(folder: Path, model: Path) -> Path:
    """Find the pictures beside the model or beside the folder that holds it."""
    candidates = [parent / 'images' for parent in (folder, model, *model.parents[:2])]
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    raise DataError(f"{folder} has a COLMAP model but no folder 'images' beside it; "
                    'put the pictures there')


def _camera(model: Path, number: int, camera) -> Camera:
    """Convert a COLMAP camera, whose pixels count from the corner of the first, not its centre."""
    name, p = camera.model.name, [float(value) for value in camera.params]
    if name in ('SIMPLE_PINHOLE', 'SIMPLE_RADIAL', 'RADIAL'):
        p = [p[0], *p]  # one focal length for both axes
    coefficients = p[4:]
    match name:
        case 'SIMPLE_PINHOLE' | 'PINHOLE':
            ours = 'PINHOLE'
        case 'SIMPLE_RADIAL' | 'RADIAL':
            ours, coefficients = 'OPENCV', [*coefficients, 0.0, 0.0, 0.0][:4]
        case 'OPENCV' | 'OPENCV_FISHEYE':
            ours = name
        case 'FULL_OPENCV':
            ours = 'RATIONAL'
        case _:
            raise DataError(f'{model}: camera {number} has model {name}, which is not supported; '
                            "undistort the pictures with COLMAP's image_undistorter")
    try:
        return Camera(ours, camera.width, camera.height, p[0], p[1], p[2] - 0.5, p[3] - 0.5,
                      tuple(coefficients))
    except DataError as error:
        raise DataError(f'{model}: camera {number}: {error}') from error
