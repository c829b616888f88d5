"""
Posed photographs from a bag: `nerfmatch frames`, and the beginning of `nerfmatch build --bag`.

The bag is read twice: for stamps, poses and cameras first, then for the pictures of those frames
that may become keyframes. What comes out is a folder with transforms.json like any other. One that
was cut short goes on; transforms.json is written last.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
import json
import logging
from pathlib import Path

from nerfmatch_ros.config import dump_yaml
from nerfmatch_ros.data import transforms_json
from nerfmatch_ros.data.image_size import image_size
from nerfmatch_ros.data.keyframes import even_segments, segments_within
from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.errors import DataError
from nerfmatch_ros.files import write_text
from nerfmatch_ros.geometry.camera import Camera
from nerfmatch_ros.ros.bag_camera import BagCamera
from nerfmatch_ros.ros.bag_faults import REPAIR
from nerfmatch_ros.ros.bag_keyframes import candidates, Report, take_pictures
from nerfmatch_ros.ros.bag_options import BagFrameOptions
from nerfmatch_ros.ros.bag_poses import camera_poses, CameraPoses
from nerfmatch_ros.ros.bag_report import (
    counts_of,
    Frame,
    FRAMES,
    KEPT,
    OUTCOMES,
    PICTURE,
    REPORT,
    write_reports,
)
from nerfmatch_ros.ros.bag_scan import BagScan, scan_bag
from nerfmatch_ros.ros.bag_sift import main_frame, nothing_usable, sift, stamp_of
from nerfmatch_ros.ros.extracted_pictures import CAMERA_FILE
from nerfmatch_ros.ros.frame_folder import FrameFolder
import numpy as np

DIM = 1 << 15  # samples of 16 bits that stay below it waste half of the grey levels or more
WORTH_A_WORD = 0.2  # share of the images; if more have no pose or are dropped, that is said

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExtractedFrames:
    """A folder of posed photographs and what is known of their poses."""

    folder: Path  # with transforms.json; without poses only with pictures and camera.yaml
    frame: str  # that the poses are in, '' without poses
    quality: str  # 'exact', 'rough' or 'none'
    z_up: bool
    report: dict  # as in report.json

    @staticmethod
    def load(folder: Path) -> 'ExtractedFrames':
        """Give what an extraction left that is finished."""
        try:
            report = json.loads((folder / REPORT).read_text(encoding='utf-8'))
            return ExtractedFrames(folder, report['frame'], report['poses'], report['z_up'],
                                   report)
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f'{folder / REPORT} cannot be read: {error}; delete the folder to '
                            'extract the frames anew') from error


    def reports(self) -> dict[str, bytes]:
        """Give report, table and picture by the names that they have in the folder of a map."""
        return {f'bag_{name}': (self.folder / name).read_bytes()
                for name in (REPORT, FRAMES, PICTURE) if (self.folder / name).is_file()}

    def origin(self) -> dict:
        """Give where the poses came from, as a map notes it."""
        return {'from': self.report.get('poses_from', ''), 'frame': self.frame,
                'up': '+z, as REP 105 has it' if self.z_up else 'not known'}


def _silent(name: str) -> Report:
    return lambda done, numbers=None: None


def extract_frames(
    bag: Path, folder: Path, options: BagFrameOptions | None = None, *,
    camera: Camera | None = None, need_poses: bool = True,
    bar: Callable[[str], Report] = _silent,
) -> ExtractedFrames:
    """
    Write the keyframes of a bag into a folder of its own, or finish that.

    camera: instead of the bag's camera_info; need_poses: False takes images that have no pose too,
    then all at even distances in time, from a bag that may have none; bar: begins a stage and
    gives the function that moves its bar. Raises a DataError for what no map could be made of.
    """
    options, bag, folder = options or BagFrameOptions(), Path(bag), Path(folder)
    if not bag.exists():
        raise DataError(f'the bag {bag} does not exist')
    place = FrameFolder(folder)
    journal = place.begin(_identity(bag, options, camera, need_poses))
    if place.finished:
        log.info('the frames of %s are in %s already', bag, folder)
        return ExtractedFrames.load(folder)
    scan = scan_bag(bag, options, bar('reading the bag'))
    frames = [Frame(index, image.received_ns, stamp_of(image, options))
              for index, image in enumerate(scan.images)]
    frame_id = main_frame(scan)
    usable = sift(frames, scan.images, frame_id)
    if not usable:
        raise DataError(nothing_usable(scan, frames))
    cameras = BagCamera.of(scan, frame_id, camera)
    stamps = np.array([frame.stamp_ns for frame in usable])
    camera_frame, missing = options.camera_frame.lstrip('/') or frame_id, ''
    try:
        way = camera_poses(scan, stamps, camera_frame, options)
    except DataError as error:
        # Who names where poses come from is told of it, also if they are not needed.
        if need_poses or options.pose_topic or options.odom_frame or options.extrinsic:
            raise
        way, missing = None, f'the images have no poses: {error}'
    if way is not None:
        usable = _with_poses(usable, way, need_poses)
    if way is not None and all(frame.pose is not None for frame in usable):
        starts, factor = segments_within(
            np.stack([frame.pose for frame in usable]), options.keyframe_metres,
            np.radians(options.keyframe_degrees), options.max_images)
    else:
        starts, factor = even_segments(len(usable), options.max_images), None
    segments = candidates(usable, starts)
    largest = take_pictures(place, scan, frames, segments, cameras, journal, bar('keyframes'))
    kept = [frame for frame in frames if frame.outcome == KEPT]
    if way is not None and kept and all(frame.pose is None for frame in kept):
        way, missing = None, 'no keyframe has a pose'
    report = _report(scan, options, way, cameras, frames, factor)
    report['notes'] += [missing] if missing else []
    dim = _dim(largest)
    report['notes'] += [dim] if dim else []
    with place.guarded():
        write_reports(folder, frames, report, _title(scan, way, len(frames)))
    if not kept:
        raise DataError(nothing_usable(scan, frames) + (f'; {dim}' if dim else ''))
    _write_folder(place, kept, cameras, way)
    place.finish()
    for note in report['notes']:
        log.warning('%s', note)
    return ExtractedFrames.load(folder)


def _with_poses(frames: list[Frame], way: CameraPoses, needed: bool) -> list[Frame]:
    """Give the frames whose pose is known, with it, and mark the others; all, if not needed."""
    for frame, pose, reason in zip(frames, way.poses, way.reasons):
        if not reason:
            frame.pose = pose
        elif needed:
            frame.outcome, frame.detail = 'no_pose', reason
    known = [frame for frame in frames if frame.pose is not None]
    lost = len(frames) - len(known)
    if lost > WORTH_A_WORD * len(frames):
        way.notes.append(f'{lost} of {len(frames)} images have no pose; the first is '
                         f'{next(reason for reason in way.reasons if reason)}')
    return known if needed else frames


def _write_folder(
    place: FrameFolder, kept: list[Frame], cameras: BagCamera, way: CameraPoses | None,
) -> None:
    """Write transforms.json; without any pose the camera alone."""
    seen = {frame.index: cameras.of_picture(
        frame.index, *image_size(place.folder / frame.name)) for frame in kept}
    with place.guarded():
        if way is None:
            if len(set(seen.values())) > 1:
                raise DataError(f'{cameras.source} changes during the bag; without poses there '
                                'must be one camera: give it with --camera')
            write_text(place.folder / CAMERA_FILE, dump_yaml(next(iter(seen.values())).to_dict()))
            return
        posed, others = [], []
        for frame in kept:
            (others if frame.pose is None else posed).append(
                transforms_json.frame_entry(PosedImage(
                    name=frame.name, camera=seen[frame.index], map_from_camera=frame.pose,
                    path=place.folder / frame.name, stamp=frame.stamp_ns / 1e9), place.folder))
        transforms_json.write(place.folder / transforms_json.EXPECTED, posed, others)


def _report(
    scan: BagScan, options: BagFrameOptions, way: CameraPoses | None, cameras: BagCamera,
    frames: list[Frame], factor: float | None,
) -> dict:
    """Give what is said of the whole bag."""
    notes = [*(() if way is None else way.notes), *cameras.notes]
    notes += [f'{count} messages on {topic} are lost, the bag is damaged: {REPAIR}'
              for topic, count in scan.missing.items()]
    notes += [f'{count} transforms not taken: {what} (a tree of frames has finite numbers, '
              'quaternions of length 1 and two names)'
              for what, count in scan.transforms.refused.items()]
    counts = counts_of(frames)
    notes += [f'{counts[kind]} of {len(frames)} images dropped: {OUTCOMES[kind]}'
              for kind in ('out_of_order', 'duplicate', 'repeated', 'unreadable', 'other_camera')
              if counts.get(kind, 0) > WORTH_A_WORD * len(frames)]
    report = {
        'bag': str(scan.path), 'image_topic': scan.image_topic, 'camera_from': cameras.source,
        'camera': cameras.first.to_dict(), 'poses': 'none', 'frame': '', 'z_up': False,
        'notes': notes}
    if way is None:
        return report
    kept = [frame for frame in frames if frame.outcome == KEPT]
    centres = np.array([frame.pose[:3, 3] for frame in kept
                        if frame.pose is not None]).reshape(-1, 3)
    if factor is not None:
        report |= {'keyframe_metres': factor * options.keyframe_metres,
                   'keyframe_degrees': factor * options.keyframe_degrees}
    if way.stated is not None:
        report |= way.stated.report()
    up = ('up is +z: the frame is one of REP 105' if way.z_up else
          f"'{way.frame}' is no frame of REP 105; whether its z axis is up is not known")
    return {**report, 'poses': way.quality, 'poses_from': way.source, 'frame': way.frame,
            'z_up': way.z_up, 'gravity': up, 'without_pose': len(kept) - len(centres),
            'keyframe_way_m': float(np.linalg.norm(np.diff(centres, axis=0), axis=1).sum()),
            'seconds': (kept[-1].stamp_ns - kept[0].stamp_ns) / 1e9 if kept else 0.0}


def _dim(largest: int) -> str:
    """Say that the largest sample of images of 16 bits is a small one; '' if it is not."""
    if not 0 < largest < DIM:
        return ''
    return (f'the images have 16 bits a sample, and the largest value is {largest}: pictures have '
            f'the upper 8 bits, so no more than {largest // 256 + 1} of 256 grey levels. Let the '
            'driver use all bits, or send 8')


def _title(scan: BagScan, way: CameraPoses | None, count: int) -> str:
    frame = '' if way is None else f", poses in '{way.frame}' ({way.quality})"
    return f'{scan.path.name}: {count} images{frame}'


def _identity(
    bag: Path, options: BagFrameOptions, camera: Camera | None, need_poses: bool,
) -> list:
    """Name what is extracted and how: another bag or option gives another."""
    files = sorted(bag.iterdir()) if bag.is_dir() else [bag]
    marks = [(file.name, file.stat().st_size, file.stat().st_mtime_ns)
             for file in files if file.is_file()]
    return [marks, asdict(options), None if camera is None else camera.to_dict(), need_poses]
