"""One matcher for several maps: trained on all of them, and each put together anew with it.

The fields, frames and poses of the maps stay as they are; what depends on the matcher is made
again: tokens, words, descriptors and, from the photographs that were held out, the calibration.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
import functools
import hashlib
import json
import logging
import math
from pathlib import Path
import shutil
from typing import TYPE_CHECKING

from nerfmatch_ros.config import to_dict
from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.errors import ConfigError, DataError
from nerfmatch_ros.files import write_text, written_atomically
from nerfmatch_ros.geometry.camera import Camera
from nerfmatch_ros.localization.localizer import Localizer
from nerfmatch_ros.mapping.assemble_map import assemble_map
from nerfmatch_ros.mapping.build_config import BuildConfig
from nerfmatch_ros.mapping.calibrate import calibrate
from nerfmatch_ros.mapping.engine import from_first, make_engine, once
from nerfmatch_ros.mapping.progress_bars import ProgressBars
from nerfmatch_ros.mapping.reference_store import open_references, render_into_store, StoredView
from nerfmatch_ros.mapping.train_matcher import check_shares, train_matcher, training_data
from nerfmatch_ros.matching.make_matcher import make_matcher, Matcher
from nerfmatch_ros.scene_map import SceneMap
import numpy as np
from safetensors.torch import load_file, save_file
import torch

if TYPE_CHECKING:
    from lightning_fabric import Fabric

LOG = logging.getLogger(__name__)
_SAME_CENTRE = 1e-3  # metres, by which the pose of a photograph may differ from the map's
_SAME_ROTATION = 1e-3  # radians
_SAME_PIXEL = 1e-3  # pixels, of focal lengths and the principal point


@dataclass(frozen=True)
class Place:
    """One map with the photographs it was built of."""

    folder: Path
    scene_map: SceneMap
    images: list[PosedImage]

    @property
    def held_out(self) -> list[PosedImage]:
        """Photographs that neither the field nor the matcher may learn from."""
        names = set(self.scene_map.notes.get('held_out', ()))
        return [image for image in self.images if image.name in names]

    @property
    def learned(self) -> list[int]:
        """Numbers of the others."""
        names = {image.name for image in self.held_out}
        return [k for k, image in enumerate(self.images) if image.name not in names]


def share_matcher(
    maps: Sequence[Path], photographs: Sequence[list[PosedImage]], output: Path,
    config: BuildConfig, *, device: str = 'cpu', minutes: float | None = None,
) -> list[Path]:
    """Train one matcher on several maps; gives the folders of the new maps, in `output`.

    photographs: of each map, those it was built of; config: matcher, matcher_training,
    augmentation, calibration, words, surface_points and seed of it count, and localization where
    the matcher is of another kind than before; all else is as in the maps. What is finished lies
    in `<output>.build` until all is whole, so that the same command goes on after an interruption.
    Under torchrun all processes call this.
    """
    engine = make_engine(device)
    check_shares(config.matcher_training, config.matcher.kind, engine.world_size)
    device = str(engine.device)  # of several processes, each has its own
    places = _open(maps, photographs, config, device)
    output = Path(output).resolve()
    work = output.with_name(output.name + '.build')
    minutes = config.minutes if minutes is None else minutes
    once(engine, lambda: _open_work_folder(work, output, places, config, minutes))
    torch.manual_seed(config.seed)
    folders = [output / place.folder.name for place in places]
    with ProgressBars(shown=engine.is_global_zero) as bars:
        references = [_references(place, work / f'references-{k}', config, engine, bars)
                      for k, place in enumerate(places)]
        matcher = _train(places, references, work, config, engine, minutes, bars)
        for place, views, folder in zip(places, references, folders):
            once(engine, functools.partial(
                _put_together, place, views, matcher, folder, maps, config, device, bars))
    once(engine, lambda: shutil.rmtree(work))
    return folders


def _open(maps: Sequence[Path], photographs: Sequence[list[PosedImage]], config: BuildConfig,
          device: str) -> list[Place]:
    """Load the maps and refuse those that cannot share a matcher."""
    maps = [Path(folder).resolve() for folder in maps]
    if len(maps) != len(photographs) or not maps:
        raise ConfigError(f'{len(maps)} maps and {len(photographs)} sets of photographs are '
                          'given; give each map the photographs it was built of, in its order')
    names = [folder.name for folder in maps]
    if len(set(names)) < len(names):
        raise ConfigError(f'two maps have the same folder name among {names}; the new maps are '
                          'named like them, so rename one')
    places = [Place(folder, SceneMap.load(folder).to(device), images)
              for folder, images in zip(maps, photographs)]
    channels = {place.folder.name: place.scene_map.field.feature_channels for place in places}
    if config.matcher.feature_layer is not None:
        if len(set(channels.values())) > 1:
            raise ConfigError(f'the fields give features of different lengths, {channels}; one '
                              'matcher needs them alike, build the maps with the same field')
        for place in places:
            layers = place.scene_map.field.feature_layers
            if not 1 <= config.matcher.feature_layer <= layers:
                raise ConfigError(f"matcher.point_feature is '{config.matcher.point_feature}'; "
                                  f'the field of {place.folder} has f1 to f{layers}')
    for place in places:
        _check_photographs(place)
        if not place.learned:
            raise DataError(f'all photographs of {place.folder} were held out; give the others')
    return places


def _check_photographs(place: Place) -> None:
    """Refuse photographs of another place, which may well have the same names."""
    given = {image.name: image for image in place.images}
    references = place.scene_map.references
    missing = sorted(set(references.names) - set(given))
    if missing:
        raise DataError(f"{place.folder} has a view '{missing[0]}' ({len(missing)} such) that "
                        'is not among the photographs given; give those it was built of')
    for image in place.images:
        if image.map_from_camera is None:
            raise DataError(f"photograph '{image.name}' given for {place.folder} has no pose; "
                            'give those the map was built of, with their poses')
    for name, camera, pose in zip(
            references.names, references.cameras, references.map_from_camera):
        found = given[name].map_from_camera
        away = np.linalg.norm(found[:3, 3] - pose[:3, 3])
        # The chord between two rotations is sqrt(8) sin(angle / 2).
        chord = np.linalg.norm(found[:3, :3] - pose[:3, :3]) / math.sqrt(8)
        angle = 2 * math.asin(min(chord, 1.0))
        if away > _SAME_CENTRE or angle > _SAME_ROTATION:
            raise DataError(
                f"photograph '{name}' given for {place.folder} lies {away:.3f} m and "
                f'{math.degrees(angle):.2f} degrees from the view of this name in the map; give '
                'the photographs and poses it was built of')
        if not _alike(given[name].camera, camera):
            raise DataError(f"photograph '{name}' given for {place.folder} has "
                            f'{given[name].camera}, the view of this name in the map {camera}; '
                            'give the photographs and intrinsics it was built of')


def _alike(first: Camera, second: Camera) -> bool:
    """Tell whether two cameras are one, up to rounding in a file."""
    lenses = [('PINHOLE', ()) if camera.is_pinhole else (camera.model, camera.distortion)
              for camera in (first, second)]
    numbers = [(camera.fx, camera.fy, camera.cx, camera.cy) for camera in (first, second)]
    return (first.width, first.height) == (second.width, second.height) \
        and lenses[0][0] == lenses[1][0] \
        and np.allclose(lenses[0][1], lenses[1][1], rtol=0, atol=1e-6) \
        and np.allclose(*numbers, rtol=0, atol=_SAME_PIXEL)


def _open_work_folder(work: Path, output: Path, places: list[Place], config: BuildConfig,
                      minutes: float | None) -> None:
    """Make the folder `work`, or find it left by the same command."""
    if output.exists() and not output.is_dir():
        raise DataError(f'{output} is a file; give a folder for the maps')
    folders = {place.folder for place in places}
    for place in places:
        new = (output / place.folder.name).resolve()
        if new in folders:
            raise DataError(f'the new map would replace {new}, which it is made of; '
                            'give another output')
        if new.exists() and not new.is_dir():
            raise DataError(f'{new} is a file where a new map is to be; give another output')
        if new.exists() and any(new.iterdir()) and not (new / 'map.yaml').exists():
            raise DataError(f'{new} is not empty and holds no map; give another output')
    identity = json.dumps([to_dict(config), minutes, [
        [place.scene_map.sha256, [
            (image.name, str(image.camera), image.map_from_camera.round(9).tolist())
            for image in place.images]] for place in places]])
    mark = hashlib.sha256(identity.encode()).hexdigest()
    path = work / 'build.sha256'
    if path.exists() and path.read_text() != mark:
        raise DataError(
            f'{work} holds the unfinished work on other maps, photographs, poses or options; '
            'repeat that command to finish it, or delete the folder to start anew')
    work.mkdir(parents=True, exist_ok=True)
    write_text(path, mark)


def _references(
    place: Place, path: Path, config: BuildConfig, engine: 'Fabric', bars: ProgressBars,
) -> list[StoredView]:
    """Render what each photograph's camera sees of the map's field."""
    scene_map = place.scene_map
    size = {'longest_side': scene_map.longest_side, 'size': scene_map.working_size}
    once(engine, lambda: render_into_store(
        path, scene_map.field, scene_map.frame, place.images,
        feature_layer=config.matcher.feature_layer, **size,
        report=bars.bar(f'views of {place.folder.name}')))
    return open_references(path, place.images, **size)


def _train(
    places: list[Place], references: list[list[StoredView]], work: Path, config: BuildConfig,
    engine: 'Fabric', minutes: float | None, bars: ProgressBars,
) -> Matcher:
    matcher = make_matcher(config.matcher, places[0].scene_map.field.feature_channels)
    path, checkpoint = work / 'matcher.safetensors', work / 'matcher.checkpoint'
    report = bars.bar('matcher')
    if not from_first(engine, path.exists()):
        data = [training_data(
            [place.images[k] for k in place.learned], [views[k] for k in place.learned],
            place.scene_map.frame, config.matcher.kind, config.matcher_training,
            config.augmentation) for place, views in zip(places, references)]
        train_matcher(matcher, data, config.matcher_training, engine=engine,
                      checkpoint=checkpoint, minutes=minutes, report=report)

        def save() -> None:
            with written_atomically(path) as temporary:
                save_file({name: value.contiguous().cpu()
                           for name, value in matcher.state_dict().items()}, temporary)
            checkpoint.unlink(missing_ok=True)

        once(engine, save)
    matcher.load_state_dict(load_file(path))
    report(1.0)
    return matcher.to(engine.device).eval().requires_grad_(False)


def _put_together(
    place: Place, references: list[StoredView], matcher: Matcher, folder: Path,
    maps: Sequence[Path], config: BuildConfig, device: str, bars: ProgressBars,
) -> None:
    """Make and save the map of one place with the matcher of all."""
    old = place.scene_map
    number = {image.name: k for k, image in enumerate(place.images)}
    own = replace(
        config, field=old.field_config, longest_side=old.longest_side,
        working_size=old.working_size, frame_id=old.frame_id)
    cache = old.surface_cache  # what the field shows is what it was
    if cache is not None and (cache.features is not None or not old.field.official):
        own = replace(own, surface_cache_points=0)
    else:
        cache = None
    notes = {name: note for name, note in old.notes.items() if name != 'matcher_checkpoint'}
    made = assemble_map(
        place.images, references, old.field, matcher, old.frame, own, device=device,
        views=[number[name] for name in old.reference_names],
        notes={**notes, 'extent_m': old.extent,
               'matcher_shared_by': [Path(folder).resolve().name for folder in maps]},
        report=bars.bar(f'words of {place.folder.name}'))
    if cache is not None:
        made = replace(made, surface_cache=cache.to(device))
    # The views are the same in the same order, so what is known of their likeness still holds.
    made = replace(
        made, working_focal=old.working_focal, neighbours=old.neighbours,
        scene_geometry=old.scene_geometry,  # which uses no matcher
        scene_geometry_calibration=old.scene_geometry_calibration)
    if matcher.per_view == old.matcher.per_view:  # else the map's own way may not suit it
        made = replace(made, localization=old.localization)
    if place.held_out:
        calibration = calibrate(
            Localizer(made), place.held_out, config=config.calibration,
            scales=(Localizer(made).config.covariance_scale,) * 2,
            report=bars.bar(f'calibration of {place.folder.name}'))
        made = replace(made, calibration=calibration.to_dict())
    else:
        LOG.warning('none of the photographs of %s was held out, so the covariances of its new '
                    'map are not calibrated and it has no judge', place.folder)
    made.save(folder)
    LOG.info('map saved to %s', folder)
