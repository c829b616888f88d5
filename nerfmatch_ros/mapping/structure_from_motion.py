"""Poses of photographs about which nothing is known, by COLMAP's incremental mapping (pycolmap).

Keypoints and their matches are this package's own, so masks and image search count here as
elsewhere; COLMAP verifies them, places camera after camera and calibrates unknown lenses
(Schoenberger and Frahm, CVPR 2016). What is finished lies in the work folder and is not done
again.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
import hashlib
import json
import logging
import os
from pathlib import Path
import shutil

from nerfmatch_ros.data.colmap import colmap_camera, registered
from nerfmatch_ros.data.picture_folder import up_in_picture
from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.errors import ConfigError, DataError
from nerfmatch_ros.files import write_text, written_atomically
from nerfmatch_ros.geometry.camera import Camera
from nerfmatch_ros.mapping.feature_pairs import PairConfig, propose_pairs
from nerfmatch_ros.mapping.features import detect_features, match_features
from nerfmatch_ros.mapping.motion_frame import frame_from_poses, KnownDistance, level_frame
import numpy as np
from PIL import Image

LOG = logging.getLogger(__name__)
FEWEST = 3  # photographs that a model must have
_STATE, _DATABASE, _PICTURES, _MODEL = 'motion.json', 'database.db', 'pictures', 'model'
_SPACE, _SPACE_EACH = 32 << 20, 1 << 20  # bytes, of the database and what SQLite keeps beside it
_FEW_MATCHES = 15  # between two images; fewer are not looked at


@dataclass(frozen=True)
class MotionConfig:
    """How photographs without poses are compared."""

    max_features: int = 2500  # per image
    detection_side: int = 1600  # pixels; larger images are scaled down to it to find features
    # Proposals where nothing is known: photographs of neighbouring names, and similar ones.
    pairs: PairConfig = field(default_factory=lambda: PairConfig(
        all_up_to=40, along_way=(1, 2, 3, 5, 8), by_appearance=16))
    seed: int = 0


@dataclass(frozen=True, eq=False)
class PosesFromMotion:
    """The photographs that found a place."""

    images: list[PosedImage]  # with poses and, if it was calibrated, a new camera
    left_out: tuple[str, ...]  # names of those without a pose
    numbers: dict  # of the report, plain values; where scale and gravity come from


def poses_from_motion(
    images: Sequence[PosedImage], work: Path, *, calibrated: bool = True,
    rough: np.ndarray | None = None, distance: KnownDistance | None = None,
    config: MotionConfig | None = None,
    report: Callable[[float, dict], None] = lambda done, numbers: None,
) -> PosesFromMotion:
    """Find poses of photographs; poses that they have are not looked at.

    work: folder for what is finished, begun anew if the photographs are others. calibrated: the
    cameras of the images are right; False: only their sizes are, and COLMAP calibrates one camera
    for each size. rough: (K, 4, 4) map_from_camera, such as odometry, gives frame and scale; NaN
    where it is not known. distance: gives the scale, and the frame is level. Without either, the
    scale is a guess, which `numbers` says. Only the largest group of photographs that hang
    together is kept.
    """
    pycolmap = _pycolmap()
    if len(images) < FEWEST:
        raise DataError(f'{len(images)} photographs are too few to find poses; {FEWEST} are the '
                        'least, dozens are better')
    named = {image.name for image in images}
    for name in () if distance is None else (distance.first, distance.second):
        if name not in named:
            raise DataError(f"the known distance is that of '{name}', which is none of the "
                            f'{len(images)} photographs, such as {images[0].name}')
    config, work = config or MotionConfig(), Path(work)
    names = [f'{number:06d}{".png" if image.path is None else image.path.suffix.lower()}'
             for number, image in enumerate(images)]
    quiet = pycolmap.logging.minloglevel
    pycolmap.logging.minloglevel = 2
    try:
        _open(work, images, calibrated, config)
        if not (work / _MODEL).is_dir():
            _check_space(work, len(images))
            if not (work / _DATABASE).is_file():
                _match(pycolmap, images, names, work, calibrated, config, report)
            _map(pycolmap, names, work, config, report)
        model = pycolmap.Reconstruction(str(work / _MODEL))
    except (OSError, RuntimeError, ValueError) as error:
        raise DataError(f'structure from motion in {work} failed: {error}; look whether the disk '
                        'is full, or delete the folder to begin anew') from error
    finally:
        pycolmap.logging.minloglevel = quiet
    found = registered(model, work / _MODEL)
    rows = [row for row, name in enumerate(names) if name in found]
    poses = np.array([found[names[row]][1] for row in rows])
    numbers = {'photographs': len(images), 'placed': len(rows), 'points': len(model.points3D),
               'reprojection_px': round(float(model.compute_mean_reprojection_error()), 3)}
    if rough is not None:
        given = np.asarray(rough, np.float64)[rows]
        known = np.isfinite(given).all(axis=(1, 2))
        if known.sum() < FEWEST:
            LOG.warning('%d of the photographs that found a place have a given pose; that is too '
                        'few for scale and frame', known.sum())
            rough = None
    if rough is not None:
        frame = frame_from_poses(poses[known], given[known])
        numbers |= {'scale_from': 'rough poses', 'up_from': 'rough poses'}
    else:
        frame, origin = level_frame(
            poses, [images[row].name for row in rows], distance, _depths(model, found),
            np.array([up_in_picture(images[row].path) for row in rows]))
        numbers |= origin
    left_out = tuple(image.name for row, image in enumerate(images) if row not in set(rows))
    if left_out:
        LOG.warning('%d of %d photographs found no place among the others, first %s',
                    len(left_out), len(images), left_out[0])
    if rough is None and distance is None:
        LOG.warning('the scale is a guess: give a known distance, or poses, for metres')
    placed = [
        replace(images[row], map_from_camera=pose,
                camera=images[row].camera if calibrated else found[names[row]][0])
        for row, pose in zip(rows, frame.apply_to_pose(poses))]
    report(1.0, {'placed': len(placed)})
    return PosesFromMotion(placed, left_out, {**numbers, 'left_out': list(left_out)})


def _pycolmap():
    try:
        import pycolmap  # late: only who has no poses needs it
    except ImportError as error:
        raise ConfigError('poses are found by pycolmap, which is not installed: '
                          'pip install "nerfmatch_ros[sfm]"') from error
    return pycolmap


def _open(work: Path, images: Sequence[PosedImage], calibrated: bool, config: MotionConfig):
    """Keep what is finished of the very same photographs, and delete what is of others."""
    digest = hashlib.sha256()
    for image in images:
        stat = None if image.path is None else image.path.stat()
        digest.update(repr((
            image.name, image.camera, None if stat is None else (stat.st_size, stat.st_mtime_ns),
            None if image.pixels is None else hashlib.sha256(image.pixels).hexdigest())).encode())
    state = {'photographs': digest.hexdigest(), 'calibrated': calibrated,
             'config': json.loads(json.dumps(asdict(config)))}
    file = work / _STATE
    if file.is_file() and json.loads(file.read_text(encoding='utf-8')) == state:
        return
    for name in (_PICTURES, _MODEL):
        shutil.rmtree(work / name, ignore_errors=True)
    for name in (_DATABASE, _STATE):
        (work / name).unlink(missing_ok=True)
    work.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(state))


def _check_space(work: Path, count: int) -> None:
    """Refuse a disk that fills up while COLMAP writes to it, which ends the process at once."""
    for path in work.glob('.database.*'):  # of a process that was killed
        path.unlink()
    free, needed = shutil.disk_usage(work).free, (_SPACE_EACH * count + _SPACE)
    if free < needed:
        raise DataError(f'{work} has {free >> 20} MB of free space; {needed >> 20} MB are needed '
                        f'to find the poses of {count} photographs. Free some, then repeat the '
                        'command')


def _match(
    pycolmap, images: Sequence[PosedImage], names: list[str], work: Path, calibrated: bool,
    config: MotionConfig, report: Callable[[float, dict], None],
) -> None:
    """Write keypoints and verified matches of all images into the database."""
    features = []
    for number, image in enumerate(images):
        report(0.25 * number / len(images), {})
        features.append(detect_features(image, config.max_features, config.detection_side))
    pairs = propose_pairs(None, np.arange(len(images)), features, config.pairs)
    _write_pictures(images, names, work / _PICTURES)
    with written_atomically(work / _DATABASE) as path:
        path.unlink(missing_ok=True)
        pycolmap.Database.open(str(path)).close()
        _import_images(pycolmap, images, names, path, work / _PICTURES, calibrated)
        database = pycolmap.Database.open(str(path))
        numbers = {image.name: image.image_id for image in database.read_all_images()}
        for name, found in zip(names, features):
            database.write_keypoints(numbers[name], (found.pixels + 0.5).astype(np.float32))
        matched = []
        for count, (i, j) in enumerate(pairs):
            report(0.25 + 0.4 * count / len(pairs), {})
            matches, _ = match_features(features[i], features[j], config.pairs.ratio)
            # Orientations of one place match more than once.
            matches = np.unique(matches, axis=0)
            if len(matches) >= _FEW_MATCHES:
                database.write_matches(numbers[names[i]], numbers[names[j]],
                                       matches.astype(np.uint32))
                matched.append(f'{names[i]} {names[j]}\n')
        database.close()
        listed = work / 'pairs.txt'
        write_text(listed, ''.join(matched))
        options = pycolmap.TwoViewGeometryOptions()
        options.ransac.random_seed = config.seed
        if matched:
            pycolmap.verify_matches(str(path), str(listed), options)
    report(0.7, {'pairs': len(matched)})


def _write_pictures(images: Sequence[PosedImage], names: list[str], folder: Path) -> None:
    """Name the pictures for COLMAP, which reads their sizes and what they say of their lens."""
    folder.mkdir(exist_ok=True)
    for image, name in zip(images, names):
        target = folder / name
        target.unlink(missing_ok=True)
        if image.path is not None:
            target.symlink_to(image.path.resolve())
        else:
            Image.fromarray(image.pixels).save(target)


def _import_images(
    pycolmap, images: Sequence[PosedImage], names: list[str], database: Path, pictures: Path,
    calibrated: bool,
) -> None:
    """Write images into the database, one camera for those that have the same."""
    groups: dict[Camera | tuple[int, int], list[str]] = {}
    for image, name in zip(images, names):
        camera = image.camera
        groups.setdefault(camera if calibrated else (camera.width, camera.height), []).append(name)
    for camera, group in groups.items():
        options = pycolmap.ImageReaderOptions()
        options.camera_model = 'SIMPLE_RADIAL'
        if calibrated:
            options.camera_model, values = colmap_camera(camera)
            options.camera_params = ', '.join(repr(float(value)) for value in values)
        pycolmap.import_images(str(database), str(pictures),
                               camera_mode=pycolmap.CameraMode.SINGLE, image_names=group,
                               options=options)


def _map(
    pycolmap, names: list[str], work: Path, config: MotionConfig,
    report: Callable[[float, dict], None],
) -> None:
    """Place camera after camera; keep the largest model."""
    state = json.loads((work / _STATE).read_text(encoding='utf-8'))
    options = pycolmap.IncrementalPipelineOptions()
    options.min_model_size = FEWEST
    options.random_seed = config.seed
    options.extract_colors = False
    options.ba_refine_focal_length = options.ba_refine_extra_params = not state['calibrated']
    options.mapper.abs_pose_refine_focal_length = not state['calibrated']
    options.mapper.abs_pose_refine_extra_params = not state['calibrated']
    scratch = work / f'.models.{os.getpid()}'
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    placed = 0

    def count() -> None:
        nonlocal placed
        placed += 1
        report(0.7 + 0.29 * min(placed / len(names), 1.0), {})

    try:
        models = pycolmap.incremental_mapping(
            str(work / _DATABASE), str(work / _PICTURES), str(scratch), options,
            next_image_callback=count)
        largest = max(models.values(), key=lambda m: m.num_reg_images(), default=None)
        if largest is None or largest.num_reg_images() < FEWEST:
            raise DataError(
                f'no poses can be found for these {len(names)} photographs: too few of them show '
                'the same things from different places; take more, with much overlap, and walk '
                'rather than turn on the spot')
        ready = scratch / 'largest'
        ready.mkdir()
        largest.write_binary(str(ready))
        os.replace(ready, work / _MODEL)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _depths(model, found: dict[str, tuple[Camera, np.ndarray]]) -> np.ndarray:
    """Give the distances (M,) from cameras to the points they see, units of the model."""
    centres = {number: found[image.name][1][:3, 3] for number, image in model.images.items()
               if image.name in found}
    return np.array([
        np.linalg.norm(point.xyz - centres[element.image_id])
        for point in model.points3D.values() for element in point.track.elements
        if element.image_id in centres])
