"""Scene geometry for a map that exists: trained anew, or carried on with new photographs.

New photographs need not be posed: with positions alone, of RTK say, the network finds their
orientations itself, and both improve ("Implicit Learning of Scene Geometry from Poses for Global
Localization", RA-L 2023, arXiv 2312.02029, fine-tuning with partial labels).
"""

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
import json
import logging
from pathlib import Path
import shutil

from nerfmatch_ros.config import to_dict
from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.errors import ConfigError, DataError
from nerfmatch_ros.mapping.build_folder import describe_image, mark_of, mark_work_folder
from nerfmatch_ros.mapping.calibrate_scene_geometry import (
    calibrate_with_map,
    GeometryCalibrationConfig,
)
from nerfmatch_ros.mapping.field_depth import with_field_depth
from nerfmatch_ros.mapping.held_out import held_out
from nerfmatch_ros.mapping.rendered_views import render_new_views, seen_camera
from nerfmatch_ros.mapping.train_scene_geometry import SceneGeometryTraining, train_scene_geometry
from nerfmatch_ros.scene_geometry import SceneGeometryConfig
from nerfmatch_ros.scene_map import SceneMap, store_scene_geometry

LOG = logging.getLogger(__name__)
GOING_ON_RATE = 0.25  # of the learning rate of a new network
CHECKPOINT = 'scene_geometry.checkpoint'  # in the folder of what is unfinished
_MOST_HELD_OUT = 12
Report = Callable[[float, dict], None]


def train_for_map(
    folder: Path, images: Sequence[PosedImage], training: SceneGeometryTraining, *,
    calibration: GeometryCalibrationConfig | None = None, anchors: Sequence[PosedImage] = (),
    go_on: bool = False, rendered: int = 0, minutes: float | None = None, device: str = 'cpu',
    report: Report = lambda progress, numbers: None,
    report_measuring: Report = lambda progress, numbers: None,
) -> dict:
    """Give the map in `folder` scene geometry learned from photographs in its frame.

    images: posed, or of labels 'position' with positions; anchors: posed photographs that are
    learned beside those. go_on: from the network that the map has, as labels 'position' always
    do. rendered: views of the field from new places that are learned as well, which the paper does
    not do; nor does it know losses.points, how much the points of the field count. report,
    report_measuring: of both stages, with the share that is done. An interrupted training
    goes on from a folder beside the map, which is refused to other photographs or options. Gives
    figures. Raises ConfigError for a map without the network to go on from, MapError for what is
    no map, DataError where the training of other photographs is unfinished.
    """
    scene_map = SceneMap.load(folder)
    go_on = go_on or training.labels == 'position'
    start = scene_map.scene_geometry if go_on else None
    if go_on and start is None:
        raise ConfigError(f'{folder} has no scene geometry to go on from; train one with '
                          '--labels pose first')
    if start is not None:
        _check_network(training.network, start.config, folder)
        training = replace(training, network=start.config, rate=GOING_ON_RATE * training.rate)
    # Positions alone measure no orientation, so the anchors do, or nothing.
    posed = list(anchors if training.labels == 'position' else images)
    held = [posed[k] for k in held_out(len(posed), _MOST_HELD_OUT)]
    # By file, not by name: what records photographs names those of every place alike.
    files = set(map(_file_of, held))
    images, anchors = ([image for image in given if _file_of(image) not in files]
                       for given in (images, anchors))
    if not images:
        raise DataError(f'all photographs to learn from are among the {len(held)} that measure '
                        'the result; give others')
    scene_map = scene_map.to(device)
    described = [[describe_image(image) for image in given] for given in (images, anchors)]
    views = render_new_views(
        scene_map, seen_camera(scene_map, training.network.longest_side), rendered,
        seed=training.seed)
    if training.labels == 'position':
        anchors = [*anchors, *views]
    else:
        images = [*images, *views]
    if training.losses.points > 0:
        anchors = with_field_depth(anchors, scene_map.field, scene_map.frame)
        if training.labels == 'pose':
            images = with_field_depth(images, scene_map.field, scene_map.frame)
    work = Path(folder).resolve()
    work = work.with_name(work.name + '.scene_geometry.build')
    if work.exists() and not (work / CHECKPOINT).exists():
        shutil.rmtree(work)  # nothing in it could be lost
    mark_work_folder(work, mark_of(json.dumps([
        scene_map.sha256, to_dict(training), go_on, rendered, minutes, *described])))
    network = train_scene_geometry(
        images, training, start=start, anchors=anchors, checkpoint=work / CHECKPOINT,
        minutes=minutes, device=device, report=report)
    measured = scene_map.scene_geometry_calibration if start is not None else {}
    try:
        measured = calibrate_with_map(
            scene_map, network, held, calibration, report=report_measuring).to_dict()
    except DataError as error:
        LOG.warning('scene geometry is not calibrated anew, and %s: %s',
                    'poses that only look right may pass' if not measured
                    else 'keeps what was measured before', error)
    store_scene_geometry(folder, network, measured, scene_map.sha256)
    shutil.rmtree(work)
    return {'images': len(images), 'anchors': len(anchors), 'held_out': len(held),
            'rendered': len(views), 'labels': training.labels, 'went_on': start is not None}


def _check_network(asked: SceneGeometryConfig, had: SceneGeometryConfig, folder: Path) -> None:
    """Refuse another network than the one to go on from; the default asks for none."""
    for field in fields(SceneGeometryConfig):
        value, default = getattr(asked, field.name), field.default
        if field.name not in ('working_focal', 'pretrained') \
                and value not in (default, getattr(had, field.name)):
            raise ConfigError(
                f'scene_geometry.training.network.{field.name} is {value}, but the network of '
                f'{folder} has {getattr(had, field.name)}; leave it out to go on from that, or '
                'train a new one: --labels pose without --go-on')


def _file_of(image: PosedImage) -> Path | int:
    """Give what tells a photograph from others: its file, or its memory."""
    return id(image.pixels) if image.path is None else image.path.resolve()
