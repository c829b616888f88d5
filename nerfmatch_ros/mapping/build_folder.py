"""What a build is refused for before it begins, and the folder that its stages' results lie in."""

from dataclasses import replace
import hashlib
import json
from pathlib import Path

from nerfmatch_ros.config import to_dict
from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.errors import ConfigError, DataError
from nerfmatch_ros.field_file import FieldFile
from nerfmatch_ros.files import write_text
from nerfmatch_ros.mapping.build_config import BuildConfig
from nerfmatch_ros.matching.make_matcher import make_matcher
from nerfmatch_ros.scene_geometry import SceneGeometry
import numpy as np

FEWEST_IMAGES = 4
MARK = 'build.sha256'  # in a work folder
BEFORE_BUILDS = ('frames', 'motion')  # in a work folder: photographs of a bag, poses found
FARTHEST = 1e4  # times the spread of the cameras, that their origin may lie away


def check_images(images: list[PosedImage]) -> None:
    """Refuse photographs that cannot become a map."""
    if len(images) < FEWEST_IMAGES:
        raise DataError(f'a map needs at least {FEWEST_IMAGES} photographs, {len(images)} given')
    for image in images:
        if image.map_from_camera is None:
            raise DataError(f'{image.name} has no pose; a map is built of posed photographs')
    centres = np.stack([image.map_from_camera[:3, 3] for image in images])
    away, spread = np.abs(centres).max(), np.ptp(centres, axis=0).max()
    if away > FARTHEST * max(spread, 1e-9):
        raise DataError(
            f'the cameras lie up to {away:.6g} from the origin but within {spread:.3g} of each '
            'other, too far for single precision; move the origin of the poses near to them')


def extent(images: list[PosedImage]) -> float:
    """Diagonal of the bounding box of the camera centres, metres."""
    centres = np.stack([image.map_from_camera[:3, 3] for image in images])
    return float(np.linalg.norm(np.ptp(centres, axis=0)))


def check_networks(config: BuildConfig) -> None:
    """Make the networks once, so that options they refuse do not first cost a trained field."""
    field = config.field.make(1)
    layer = config.matcher.feature_layer
    if layer is not None and not 1 <= layer <= field.feature_layers:
        raise ConfigError(f"matcher.point_feature is '{config.matcher.point_feature}'; the field "
                          f"'{config.field.kind}' has f1 to f{field.feature_layers}")
    make_matcher(config.matcher, field.feature_channels)
    if config.scene_geometry.enabled:
        SceneGeometry(replace(config.scene_geometry.training.network, pretrained=False))
        if config.scene_geometry.training.labels != 'pose':
            raise ConfigError(
                f"scene_geometry.training.labels is '{config.scene_geometry.training.labels}'; a "
                'build knows poses. Leave it out, and give positions to `nerfmatch '
                'train-scene-geometry` afterwards')


def _files_of(image: PosedImage) -> dict[str, list]:
    """Give path, size and time of change (ns) of picture, masks and depth, as far as they are."""
    paths = {'picture': image.path, 'mask': image.mask_path, 'sky': image.sky_path,
             'transient': image.transient_path, 'depth': image.depth_path}
    found = {kind: (path.resolve(), path.stat()) for kind, path in paths.items()
             if path is not None}
    return {kind: [str(path), state.st_size, state.st_mtime_ns]
            for kind, (path, state) in found.items()}


def check_output(output: Path) -> None:
    """Refuse to write a map where something else lies."""
    if output.exists() and not output.is_dir():
        raise DataError(f'{output} is a file; give a folder for the map')
    if output.exists() and any(output.iterdir()) and not (output / 'map.yaml').exists():
        raise DataError(f'{output} is not empty and holds no map; choose another folder')


def describe_image(image: PosedImage) -> tuple:
    """Give what tells a photograph of a build from another, as plain values."""
    pose = image.map_from_camera
    return (image.name, str(image.camera), None if pose is None else pose.round(9).tolist(),
            _files_of(image))


def mark_of(identity: str) -> str:
    """Give the mark of a work folder by what its results depend on."""
    return hashlib.sha256(identity.encode()).hexdigest()


def mark_work_folder(
    work: Path, mark: str, *, holds: str = 'the unfinished build',
    remedy: str = 'repeat that command to finish it, or delete the folder to start anew',
) -> str:
    """Make the folder `work`, or find it left by what has the same mark, which it gives.

    holds, remedy: for the DataError that tells of another mark.
    """
    work.mkdir(parents=True, exist_ok=True)
    path = work / MARK
    if path.exists() and path.read_text() != mark:
        raise DataError(
            f'{work} holds {holds} of other photographs, poses, masks or options; {remedy}')
    write_text(path, mark)
    return mark


def check_minutes(minutes: float | None) -> None:
    """Refuse a length of training that is none; None: the steps alone count."""
    if minutes is not None and not minutes > 0:
        raise DataError(f'{minutes} minutes of training are asked for; give a positive number')


def open_work_folder(
    output: Path, work: Path, images: list[PosedImage], config: BuildConfig,
    minutes: float | None, given: FieldFile | None, rough: bool = False,
) -> None:
    """Make the folder `work`, or find it left by the same build."""
    check_output(output)
    check_minutes(minutes)
    mark_work_folder(work, mark_of(json.dumps([
        to_dict(config), minutes, *([] if given is None else [given.mark()]),
        *(['rough'] if rough else []),
        [describe_image(image) for image in images]])))
