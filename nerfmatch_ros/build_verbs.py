"""The verbs `nerfmatch build | frames`: what a robot or a photographer recorded becomes a map."""

from __future__ import annotations

from dataclasses import replace
import json
import os
from pathlib import Path
from typing import Annotated, Literal, TYPE_CHECKING

from nerfmatch_ros.errors import ConfigError
from nerfmatch_ros.ros.bag_options import BagFrameOptions
from nerfmatch_ros.verb_options import Device
from tyro.conf import arg, OmitArgPrefixes

if TYPE_CHECKING:
    from nerfmatch_ros.data.posed_image import PosedImage
    from nerfmatch_ros.mapping.build_config import BuildConfig
    from nerfmatch_ros.ros.bag_frames import ExtractedFrames

WITHOUT_BAG = BagFrameOptions()
Bag = Annotated[Path, arg(help='ROS 2 bag, mcap or sqlite3, with images, their camera_info, and '
                               'poses on /tf or a topic')]
BagCamera = Annotated[Path | None, arg(
    metavar='FILE', help='YAML file with model, width, height, fx, fy, cx, cy, distortion: of a '
    "bag's images, instead of their camera_info; or of pictures without poses, instead of having "
    'it calibrated')]


def build(
    *,
    images: Annotated[Path | None, arg(
        help='folder with transforms.json, a COLMAP model, or a scene of Cambridge Landmarks or '
             '7-Scenes')] = None,
    bag: Annotated[Path | None, arg(
        help='ROS 2 bag instead, mcap or sqlite3, with images, their camera_info, and poses on '
             '/tf or a topic')] = None,
    output: Annotated[Path | None, arg(
        help='folder of the map; a build that was cut short goes on. With --update it may be left '
             'out: the new map takes the place of the old one')] = None,
    update: Annotated[Path | None, arg(
        metavar='MAP', help='map of this place that learns the new photographs; what they do not '
        'show stays as it is, and so does the frame')] = None,
    poses: Annotated[Literal['auto', 'exact', 'rough', 'none'], arg(
        help='how good the given poses are; auto: rough if they are odometry of a bag, else '
             'exact; none: they are found by structure from motion, for any folder of pictures, '
             'and a bag gives no more than scale and direction, if it has poses')] = 'auto',
    scale: Annotated[tuple[str, str, float] | None, arg(
        metavar='IMAGE IMAGE METRES', help='with --poses none: how far apart two of the '
        'pictures were taken')] = None,
    registration: Annotated[str | None, arg(
        metavar='STEPS', help='how rough poses are mended: l2g, barf, features, or several joined '
        'by +; else as configured. With --poses none: how found ones are polished')] = None,
    scene_geometry: Annotated[bool, arg(
        help='train a second localizer for this map, too: one network, image to pose, no search; '
             'matching then looks first from its pose')] = False,
    config: Annotated[Path | None, arg(
        help='YAML file, see config/build_map.yaml, or config/update_map.yaml with --update')
    ] = None,
    minutes: Annotated[float | None, arg(help='time to train, instead of the configured')] = None,
    split: Annotated[Literal['train', 'test', 'all'] | None, arg(
        help="frames marked with this split, or 'all'; else train, and all of a bag or of "
             'pictures without poses')] = None,
    field: Annotated[Path | None, arg(
        help='folder made by nerfmatch import; the map gets this field and trains none')] = None,
    annotations: Annotated[Path | None, arg(
        metavar='FILE', help='transforms_<scene>_<split>.json of the published NeRFMatch; '
        '--images is then the folder that its file_paths are in')] = None,
    masks: Annotated[Path | None, arg(
        metavar='DIR', help="folder with 'masks_bg' (sky; learned as white by fields with "
        "white background, else ignored) and 'masks_trnz_cars' (what moves); "
        "white = masked")] = None,
    device: Device = 'auto',
    camera: BagCamera = None,
    frames: OmitArgPrefixes[BagFrameOptions] = WITHOUT_BAG,
) -> None:
    """Make a map from posed photographs or the bag of a robot, or teach an old map new ones."""
    from nerfmatch_ros.config import choose_device, from_dict, load_yaml
    from nerfmatch_ros.data.reader import read_posed_images
    from nerfmatch_ros.mapping.build_map import build_map, BuildConfig
    from nerfmatch_ros.ros.frame_folder import is_extraction
    if minutes is not None and not minutes > 0:
        raise ConfigError(f'--minutes {minutes} leaves no time; give a positive number')
    if (images is None) == (bag is None):
        raise ConfigError('a map is made of photographs or of a bag: give --images or --bag')
    if bag is None and frames != WITHOUT_BAG:
        raise ConfigError('topics, frames and keyframes are those of a bag: give --bag too')
    if bag is None and camera is not None and poses != 'none':
        raise ConfigError('--camera is that of a bag, or of pictures without poses; posed images '
                          'bring their cameras: leave it out, or give --bag or --poses none')
    if update is not None and poses in ('exact', 'rough'):
        raise ConfigError(f'--update finds the places of photographs itself, so --poses {poses} '
                          'says nothing; leave it out, or give --poses none if the poses that the '
                          'photographs bring are wrong')
    if scale is not None and poses != 'none':
        raise ConfigError('--scale is for pictures without poses: give --poses none')
    if poses == 'none' and (annotations is not None or masks is not None or field is not None):
        raise ConfigError('--annotations, --masks and --field belong to given poses; leave them '
                          'out or give the poses')
    values = ({} if config is None else load_yaml(config)) or {}
    if update is not None:
        from nerfmatch_ros.mapping.update_map import update_map, UpdateConfig
        if field is not None or registration is not None or scale is not None:
            raise ConfigError('--update trains the field of the map and places photographs by it; '
                              'leave --field, --registration and --scale out')
        if scene_geometry:
            raise ConfigError('an update has only the new photographs, and scene geometry is '
                              'trained on all: leave --scene-geometry out')
        output = (output or update).resolve()
        update_config = from_dict(UpdateConfig, values, str(config))
    elif output is None:
        raise ConfigError('no --output is given; name the folder of the new map')
    else:
        if scene_geometry:
            values = {**values, 'scene_geometry': {
                **(values.get('scene_geometry') or {}), 'enabled': True}}
        build_config = from_dict(BuildConfig, values, str(config))
    chosen, given = choose_device(device), {}
    if field is not None:
        from nerfmatch_ros.field_file import FieldFile
        given = {'given': FieldFile.load(field)}
    extracted = None
    if bag is not None:
        extracted = _extract(bag, output.with_name(output.name + '.build') / 'frames', frames,
                             camera, poses != 'none')
    elif is_extraction(images):  # by `nerfmatch frames`: what the bag said of the poses holds
        from nerfmatch_ros.ros.bag_frames import ExtractedFrames
        extracted = ExtractedFrames.load(images)
    if extracted is not None:
        images, split = extracted.folder, split or 'all'
        if scale is not None and extracted.quality != 'none':
            raise ConfigError('the poses of the bag say how far apart its pictures were taken; '
                              'leave --scale out')
    if poses == 'auto':
        poses = 'exact' if extracted is None else extracted.quality
    if registration is not None and poses == 'exact':
        raise ConfigError('--registration mends rough poses, and these are exact; '
                          'give --poses rough, or leave it out')
    rough = poses == 'rough' or registration is not None
    if rough and update is None:
        build_config = _registered_by(
            build_config, registration,
            None if extracted is None or poses == 'none' else extracted.report)
    # The build removes its own folder in the end, and the frames with it.
    reports, origin = {}, {'from': 'the data set', 'up': 'not known'}
    if extracted is not None:
        reports, origin = extracted.reports(), extracted.origin()
    if poses == 'none' and update is None:
        posed, found = _place(images, split, camera, scale, output,
                              from_bag=extracted is not None)
        reports['poses_from_motion.json'] = (json.dumps(found, indent=1) + '\n').encode()
        origin = {'from': 'structure from motion', 'up': found['up_from'],
                  'metres': found['scale_from']}
    elif poses == 'none':
        posed = _without_poses(images, split, camera, from_bag=extracted is not None)
    else:
        posed = read_posed_images(images, None if split == 'all' else split or 'train',
                                  annotations=annotations, masks=masks)
    if update is None:
        build_map(posed, output, build_config, device=chosen, minutes=minutes, rough=rough,
                  origin=origin, beside=reports, **given)
    else:
        update_map(update, posed, output, update_config, device=chosen, minutes=minutes,
                   beside=reports)


def _registered_by(config: BuildConfig, steps: str | None, bag: dict | None) -> BuildConfig:
    """Give the configuration with these steps; rough poses of a bag are those of odometry.

    bag: the report of the extraction, if the poses come from it: what it says of their errors
    counts where the configuration says nothing.
    """
    from nerfmatch_ros.mapping.register_poses import (
        checked_steps,
        ODOMETRY,
        RegistrationConfig,
    )
    options, usual = config.registration, RegistrationConfig()
    if steps is not None:
        options = replace(options, steps=checked_steps(steps.split('+')))
    if bag is not None and options.odometry is None:
        stated = bag.get('pose_std')
        if stated is None:
            share = bag.get('odometry_share', {'value': ODOMETRY})['value']
            options = replace(options, odometry=share)
        else:
            options = replace(options, **{
                name: value for name, value in (('translation', stated['metres']),
                                                ('rotation', stated['degrees']))
                if value is not None and getattr(options, name) == getattr(usual, name)})
    return replace(config, registration=options)


def _without_poses(
    folder: Path, split: str | None, camera: Path | None, *, from_bag: bool,
) -> list[PosedImage]:
    """Give pictures whose poses a map is to find, and whose camera has to be known for that."""
    from nerfmatch_ros.data.photograph import read_camera
    from nerfmatch_ros.data.picture_folder import without_poses
    from nerfmatch_ros.ros.extracted_pictures import extracted_pictures
    if from_bag:
        return [replace(image, map_from_camera=None)
                for image in extracted_pictures(folder, split)]
    pictures, calibrated = without_poses(
        folder, split, None if camera is None else read_camera(camera))
    if not calibrated:
        raise ConfigError('photographs are placed in a map by a camera that is known; give its '
                          'intrinsics by --camera')
    return pictures


def _place(
    folder: Path, split: str | None, camera: Path | None, scale: tuple[str, str, float] | None,
    output: Path, *, from_bag: bool,
) -> tuple[list[PosedImage], dict]:
    """Find the poses of pictures; gives the images that have one, and the report."""
    from nerfmatch_ros.data.photograph import read_camera
    from nerfmatch_ros.data.picture_folder import without_poses
    from nerfmatch_ros.mapping.motion_frame import KnownDistance
    from nerfmatch_ros.mapping.progress_bars import ProgressBars
    from nerfmatch_ros.mapping.structure_from_motion import poses_from_motion
    from nerfmatch_ros.ros.extracted_pictures import extracted_pictures
    import numpy as np
    if os.environ.get('WORLD_SIZE', '1') != '1':
        raise ConfigError('poses are found by one process: run without torchrun')
    rough = None
    if from_bag:
        pictures, calibrated = extracted_pictures(folder, split), True
        given = [image.map_from_camera for image in pictures]
        if any(pose is not None for pose in given):
            rough = np.stack([np.full((4, 4), np.nan) if pose is None else pose
                              for pose in given])
    else:
        pictures, calibrated = without_poses(
            folder, split, None if camera is None else read_camera(camera))
    with ProgressBars(shown=True) as bars:
        found = poses_from_motion(
            pictures, output.with_name(output.name + '.build') / 'motion', calibrated=calibrated,
            rough=rough, distance=None if scale is None else KnownDistance(*scale),
            report=bars.bar('poses'))
    return found.images, found.numbers


def frames(
    *,
    bag: Bag,
    output: Annotated[Path, arg(
        help='folder for transforms.json, pictures, and a report of what became of each image; '
             'what was cut short goes on')],
    poses: Annotated[Literal['auto', 'none'], arg(
        help='none: pictures are taken without poses too, for structure from motion; poses that '
             'the bag has are kept')] = 'auto',
    camera: BagCamera = None,
    frames: OmitArgPrefixes[BagFrameOptions] = WITHOUT_BAG,
) -> None:
    """Take posed photographs from the bag of a robot, for build, evaluate and bench."""
    extracted = _extract(bag, output, frames, camera, poses != 'none')
    report = extracted.report
    dropped = ', '.join(f'{count} {kind}' for kind, count in report['dropped'].items())
    print(f"{report['kept']} of {report['frames_read']} images kept in {output}"
          + (f' (dropped: {dropped})' if dropped else ''))
    if extracted.quality == 'none':
        print(f'poses: none; the camera is in {output / "camera.yaml"}')
        return
    print(f"poses: {extracted.quality}, in '{extracted.frame}', from {report['poses_from']}; "
          f"{report['gravity']}")


def _extract(
    bag: Path, folder: Path, options: BagFrameOptions, camera: Path | None, need_poses: bool,
) -> ExtractedFrames:
    from nerfmatch_ros.data.photograph import read_camera
    from nerfmatch_ros.mapping.progress_bars import ProgressBars
    from nerfmatch_ros.ros.bag_frames import extract_frames
    if os.environ.get('WORLD_SIZE', '1') != '1':
        raise ConfigError('a bag is read by one process: run `nerfmatch frames` without torchrun '
                          'first and give its folder as --images')
    with ProgressBars(shown=True) as bars:
        return extract_frames(bag, folder, options, bar=bars.bar, need_poses=need_poses,
                              camera=None if camera is None else read_camera(camera))
