"""A map on disk and in memory: the field, the matcher, the reference views, and their frame.

A map is a folder: `map.yaml` (version, frame, configurations, sha256 of each file) and safetensors
files. It is data only: loading it runs no code from it. `map.yaml` is written last and the folder
is swapped in whole, so a map that was cut short is never taken for one.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from dataclasses import field as dataclass_field
import json
import math
import os
from pathlib import Path
import shutil
from typing import Any

from nerfmatch_ros.config import dump_yaml, from_dict, load_yaml, to_dict
from nerfmatch_ros.data.posed_image import are_poses, checked_pose
from nerfmatch_ros.data.working_image import check_working_size, working_view, WorkingView
from nerfmatch_ros.errors import ConfigError, DataError, MapError
from nerfmatch_ros.files import file_sha256, full_disk_named
from nerfmatch_ros.geometry.camera import Camera
from nerfmatch_ros.geometry.similarity import Similarity
from nerfmatch_ros.matching.make_matcher import make_matcher, Matcher
from nerfmatch_ros.matching.matcher import MatcherConfig, PointTokens
from nerfmatch_ros.radiance_field.field import RadianceField
from nerfmatch_ros.radiance_field.grid_field import GridField, GridFieldConfig
from nerfmatch_ros.radiance_field.mip_field import MipField, MipFieldConfig
from nerfmatch_ros.radiance_field.nerfacto_field import NerfactoField, NerfactoFieldConfig
from nerfmatch_ros.radiance_field.nerfstudio_mip_field import (
    NerfstudioMipConfig,
    NerfstudioMipField,
)
from nerfmatch_ros.radiance_field.scene_frame import SceneFrame
from nerfmatch_ros.radiance_field.surface_cache import SurfaceCache
from nerfmatch_ros.references import (
    HOLDS,
    read_references,
    References,
    references_head_sha256,
    references_to_store,
)
from nerfmatch_ros.scene_geometry import SceneGeometry, SceneGeometryConfig
from nerfmatch_ros.tensor_file import read_header, write_tensors
from nerfmatch_ros.weights_file import halved, load_weights, read_tensors
import numpy as np
from safetensors import safe_open, SafetensorError
import torch
from torch import nn, Tensor

FORMAT = 'nerfmatch_ros map'
VERSION = 1
FILES = ('field.safetensors', 'matcher.safetensors', 'references.safetensors',
         'surface.safetensors')
NEIGHBOURS = 'neighbours.json'  # not in every map
SURFACE_CACHE = 'surface_cache.safetensors'  # not in every map
SCENE_GEOMETRY = 'scene_geometry.safetensors'  # not in every map
OPTIONAL = (NEIGHBOURS, SURFACE_CACHE, SCENE_GEOMETRY)
# Bytes; larger files of reference views are checked view by view when these are used, so that the
# time to load a map does not grow with them.
CHECKED_WHOLE = 64 << 20


@dataclass(frozen=True)
class FieldConfig:
    """Which radiance field, and its size."""

    # 'grid' (trains on a CPU) or 'mip' (the paper's); imported: 'nerfacto' or 'nerfstudio_mip'
    kind: str = 'grid'
    grid: GridFieldConfig = GridFieldConfig()
    mip: MipFieldConfig = MipFieldConfig()
    nerfacto: NerfactoFieldConfig | None = None
    nerfstudio_mip: NerfstudioMipConfig | None = None

    def make(self, images: int) -> RadianceField:
        """Make an untrained field with an appearance row for each of `images` images."""
        if self.kind == 'grid':
            return GridField(self.grid, images)
        if self.kind == 'mip':
            return MipField(self.mip, images)
        if self.kind == 'nerfacto' and self.nerfacto is not None:
            return NerfactoField(self.nerfacto, images)
        if self.kind == 'nerfstudio_mip' and self.nerfstudio_mip is not None:
            return NerfstudioMipField(self.nerfstudio_mip)
        raise ConfigError(f"field kind '{self.kind}' is unknown or not described; "
                          'use grid or mip, or import a field')


@dataclass(frozen=True)
class Surface:
    """Points on the surfaces of the whole map, thinned, for matching without retrieval."""

    points: Tensor  # (G, 3) map frame, metres
    features: Tensor | None  # (G, F) float16


@dataclass(frozen=True)
class SceneMap:
    """Everything localization needs."""

    frame: SceneFrame
    field_config: FieldConfig
    field: RadianceField
    matcher_config: MatcherConfig
    matcher: Matcher
    references: References
    surface: Surface
    words: Tensor  # (V, C) of retrieval
    working_focal: float  # pixels
    longest_side: int  # pixels of the working picture
    frame_id: str = 'map'
    localization: dict[str, Any] = dataclass_field(default_factory=dict)  # the map's own settings
    calibration: dict[str, Any] = dataclass_field(default_factory=dict)  # {}: never measured
    notes: dict[str, Any] = dataclass_field(default_factory=dict)  # how it was built
    sha256: str = ''  # of map.yaml, which holds that of every other file; '' before it is saved
    # (width, height) that every picture is squeezed to, instead of the focal length and side
    working_size: tuple[int, int] | None = None
    # For images, by name, whose similar views were retrieved beforehand: numbers, best first
    neighbours: dict[str, list[int]] = dataclass_field(default_factory=dict)
    surface_cache: SurfaceCache | None = None  # what any camera sees, looked up; None: rendered
    scene_geometry: SceneGeometry | None = None  # one image -> its pose, without the rest
    # of the poses of scene geometry; {}: never measured
    scene_geometry_calibration: dict[str, Any] = dataclass_field(default_factory=dict)

    @property
    def cameras(self) -> list[Camera]:
        """Cameras of the reference photographs, one per view."""
        return self.references.cameras

    @property
    def reference_poses(self) -> np.ndarray:
        """Poses (K, 4, 4) map_from_camera of the reference views."""
        return self.references.map_from_camera

    @property
    def reference_names(self) -> list[str]:
        """Names of the reference photographs."""
        return self.references.names

    @property
    def extent(self) -> float:
        """Diagonal of the bounding box of the map's camera centres, metres.

        A map may keep fewer reference views than it was built of, so the build notes it.
        """
        noted = self.notes.get('extent_m')
        if noted is not None:
            return float(noted)
        return float(np.linalg.norm(np.ptp(self.reference_poses[:, :3, 3], axis=0)))

    @property
    def is_official(self) -> bool:
        """Whether weights of the published NeRFMatch are in it, which are kept to the last bit."""
        return self.matcher_config.official

    def encode_points(self, points: Tensor, features: Tensor | None) -> PointTokens:
        """Show the matcher points (m, 3), map frame, metres, with their features (m, F)."""
        return encode_points(self.matcher, self.frame, points, features)

    def working_view(self, camera: Camera) -> WorkingView:
        """Choose how the matcher sees the picture of a camera."""
        return working_view(camera, self.working_focal, 2 * self.longest_side, self.working_size)

    def to(self, device: str) -> 'SceneMap':
        """Move the networks, the surface and its cache to a device."""
        features = self.surface.features
        surface = Surface(self.surface.points.to(device),
                          None if features is None else features.to(device))
        cache = None if self.surface_cache is None else self.surface_cache.to(device)
        geometry = None if self.scene_geometry is None else self.scene_geometry.to(device)
        return replace(self, field=self.field.to(device), matcher=self.matcher.to(device),
                       surface=surface, words=self.words.to(device), surface_cache=cache,
                       scene_geometry=geometry)

    def summary(self) -> dict[str, Any]:
        """Plain values that describe the map."""
        return {
            'frame_id': self.frame_id,
            'sha256': self.sha256,
            'reference_views': len(self.references.names),
            'reference_views_hold': self.references.holds,
            'extent_m': self.extent,
            'surface_points': len(self.surface.points),
            'surface_cache_points': 0 if self.surface_cache is None else len(self.surface_cache),
            **self._scene_geometry_summary(),
            'field': self.field_config.kind,
            'field_parameters': sum(p.numel() for p in self.field.parameters()),
            'backbone': self.matcher_config.backbone,
            'matcher_parameters': sum(p.numel() for p in self.matcher.parameters()),
            'point_feature': self.matcher_config.point_feature,
            'working_focal_px': self.working_focal,
            'working_longest_side_px': self.longest_side,
            'scene_from_map_scale': self.frame.scene_from_map.scale,
            'localization': self.localization,
            'calibration': {key: value for key, value in self.calibration.items()
                            if key != 'judge'} or None,
            **self.notes,
        }

    def _scene_geometry_summary(self) -> dict[str, Any]:
        network = self.scene_geometry
        if network is None:
            return {'scene_geometry': None}
        return {
            'scene_geometry': network.config.backbone,
            'scene_geometry_parameters': sum(p.numel() for p in network.parameters()),
            'scene_geometry_longest_side_px': network.config.longest_side,
            'scene_geometry_calibration': {
                key: value for key, value in self.scene_geometry_calibration.items()
                if key != 'model'} or None}

    def save(self, folder: Path, beside: Mapping[str, bytes] | None = None) -> None:
        """Write the map; an old map in `folder` stays until the new one is whole.

        beside: contents of further files, for people, by name.
        """
        folder = Path(folder).resolve()  # a link is followed: what it points to is replaced
        if folder.exists() and not folder.is_dir():
            raise MapError(f'{folder} is a file; give a folder for the map')
        if folder.exists() and any(folder.iterdir()) and not (folder / 'map.yaml').exists():
            raise MapError(f'{folder} is not empty and holds no map; choose another folder')
        with _partial(folder) as partial:
            partial.mkdir(parents=True)
            for name, content in (beside or {}).items():
                (partial / name).write_bytes(content)
            self._write(partial)
            _swap_in(partial, folder)

    def _write(self, partial: Path) -> None:
        """Write the files of the map, `map.yaml` last."""
        surface = {'points': self.surface.points, 'features': self.surface.features,
                   'words': self.words}
        stored = nn.Module.state_dict if self.is_official else halved
        tensors = (stored(self.field), stored(self.matcher), references_to_store(self.references),
                   {key: value for key, value in surface.items() if value is not None})
        for name, group in zip(FILES, tensors):
            write_tensors(partial / name, group)
        files = FILES
        if self.neighbours:
            (partial / NEIGHBOURS).write_text(json.dumps(self.neighbours))
            files += (NEIGHBOURS,)
        if self.surface_cache is not None:
            write_tensors(partial / SURFACE_CACHE, self.surface_cache.to_tensors())
            files += (SURFACE_CACHE,)
        described = {}
        if self.scene_geometry is not None:
            described = _write_scene_geometry(
                partial, self.scene_geometry, self.scene_geometry_calibration)
            files += (SCENE_GEOMETRY,)
        number = {camera: k for k, camera in enumerate(dict.fromkeys(self.references.cameras))}
        similarity = self.frame.scene_from_map
        description = {
            'format': FORMAT, 'version': VERSION, 'frame_id': self.frame_id,
            'scene_frame': {'scene_from_map': similarity.to_dict(), 'near': self.frame.near,
                            'far': self.frame.far, 'ball': self.frame.ball},
            'working_focal': self.working_focal, 'longest_side': self.longest_side,
            'working_size': None if self.working_size is None else list(self.working_size),
            'field': to_dict(self.field_config), 'matcher': to_dict(self.matcher_config),
            'localization': self.localization, 'calibration': self.calibration,
            'notes': self.notes, **described,
            'cameras': [camera.to_dict() for camera in number],
            'references_hold': self.references.holds,
            'references': [{'name': name, 'camera': number[camera]} for name, camera in
                           zip(self.references.names, self.references.cameras)],
            'references_head': references_head_sha256(partial / FILES[2]),
            'sha256': {name: file_sha256(partial / name) for name in files}}
        (partial / 'map.yaml').write_text(dump_yaml(description))

    @staticmethod
    def load(folder: Path) -> 'SceneMap':
        """Read and check a map; raises MapError that names the check, and what was found."""
        folder = Path(folder)
        description = _read_description(folder)
        try:
            return replace(_assemble(folder, description),
                           sha256=file_sha256(folder / 'map.yaml'))
        except (ArithmeticError, AttributeError, ConfigError, DataError, LookupError, MemoryError,
                OSError, RuntimeError, SafetensorError, TypeError, ValueError) as error:
            raise MapError(f'{folder} cannot be read as a map: {error!r}; '
                           'build it again or copy it again from its source') from error


def store_surface_cache(folder: Path, cache: SurfaceCache, sha256: str = '') -> None:
    """Give the map in `folder` a surface cache, or another one; nothing else of it changes.

    sha256: of the map that the cache was made of, '' for any. The old map stays until the new one
    is whole. Raises MapError for what is no map, or another one by now.
    """
    def write(partial: Path) -> dict[str, Any]:
        write_tensors(partial / SURFACE_CACHE, cache.to_tensors())
        return {}

    _store(folder, SURFACE_CACHE, write, sha256)


def store_scene_geometry(
    folder: Path, network: SceneGeometry, calibration: dict[str, Any], sha256: str = '',
) -> None:
    """Give the map in `folder` scene geometry, or another one; nothing else of it changes.

    calibration: plain values, {} where it was not measured; sha256: as for `store_surface_cache`.
    """
    _store(folder, SCENE_GEOMETRY,
           lambda partial: _write_scene_geometry(partial, network, calibration), sha256)


def _store(
    folder: Path, name: str, write: Callable[[Path], dict[str, Any]], sha256: str,
) -> None:
    """Let `write` make the file `name` of the map; it gives what map.yaml says of it."""
    folder = Path(folder).resolve()
    description = _read_description(folder)
    found = file_sha256(folder / 'map.yaml')
    if sha256 and found != sha256:
        what = name.partition('.')[0].replace('_', ' ')
        raise MapError(f'{folder} was replaced while its {what} was made: sha256 is {found}, '
                       f'it was made of {sha256}; make it again')
    with _partial(folder) as partial:
        shutil.copytree(folder, partial, copy_function=_linked)
        # These are links, and writing into them would change the map.
        for written in ('map.yaml', name):
            (partial / written).unlink(missing_ok=True)
        description |= write(partial)
        description['sha256'][name] = file_sha256(partial / name)
        (partial / 'map.yaml').write_text(dump_yaml(description))
        _swap_in(partial, folder)


def _write_scene_geometry(
    folder: Path, network: SceneGeometry, calibration: dict[str, Any],
) -> dict[str, Any]:
    """Write the weights; gives what map.yaml says of them."""
    write_tensors(folder / SCENE_GEOMETRY, halved(network))
    return {'scene_geometry': {'config': to_dict(network.config), 'calibration': calibration}}


@contextmanager
def _partial(folder: Path) -> Iterator[Path]:
    """Give the path of an unfinished map, with nothing there; after an error nothing is left."""
    partial = folder.with_name(folder.name + '.partial')
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with full_disk_named(folder):
            yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _swap_in(partial: Path, folder: Path) -> None:
    """Put a finished map in the place of an old one."""
    old = folder.with_name(folder.name + '.old')
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _linked(source: str, target: str) -> None:
    """Link a file to its copy where the file system can, which takes no time and no space."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def points_attend(config: MatcherConfig) -> bool:
    """Whether a matcher lets the points of a view attend to one another before it sees an image.

    This takes most of the time of their encoding and is the same for every image.
    """
    return config.kind == 'paper' and config.self_attention > 0


def encode_points(
    matcher: Matcher, frame: SceneFrame, points: Tensor, features: Tensor | None,
) -> PointTokens:
    """Show a matcher points (m, 3), map frame, metres, in the frame that it learned them in."""
    points = points.float()
    return matcher.encode_points(points if matcher.map_points else frame.to_scene(points),
                                 features)


def _read_description(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise MapError(f'there is no map folder {folder}; make one with `nerfmatch build`',
                       'folder')
    if not (folder / 'map.yaml').is_file():
        raise MapError(f'{folder} holds no map.yaml, so it is no map or was never finished; '
                       'run `nerfmatch build` with the same --output to finish it', 'folder')
    try:
        description = load_yaml(folder / 'map.yaml')
    except ConfigError as error:
        raise MapError(str(error), 'description') from error
    if not isinstance(description, dict) or description.get('format') != FORMAT:
        raise MapError(f"{folder / 'map.yaml'} does not describe a map ('format: {FORMAT}')",
                       'description')
    if description.get('version') != VERSION:
        raise MapError(f"{folder} has map version {description.get('version')}, this program "
                       f'reads version {VERSION}; build the map again', 'description')
    checksums = description.get('sha256')
    optional = [name for name in OPTIONAL
                if isinstance(checksums, dict) and name in checksums]
    for name in (*FILES, *optional):
        path = folder / name
        if path.is_symlink() or not path.is_file():
            raise MapError(f'{path} is missing or no plain file; copy the whole map folder')
        expected = checksums.get(name) if isinstance(checksums, dict) else None
        if expected is None:
            raise MapError(f'{folder}/map.yaml is damaged: it states no sha256 of {name}; '
                           'copy the map again from its source', 'description')
        if _by_view(folder, description, name):
            found, expected = _head_sha256(path), description['references_head']
        else:
            found = file_sha256(path)
        if found != expected:
            raise MapError(f'{path} is damaged: sha256 is {found}, map.yaml says {expected}')
    return description


def _by_view(folder: Path, description: dict[str, Any], name: str = FILES[2]) -> bool:
    """Whether a file is too large to be checked whole, and can be checked view by view."""
    return name == FILES[2] and 'references_head' in description \
        and (folder / name).stat().st_size > CHECKED_WHOLE


def _head_sha256(path: Path) -> str:
    try:
        return references_head_sha256(path)
    except ValueError as error:
        raise MapError(f'{path} is damaged: {error}') from error


def _assemble(folder: Path, description: dict[str, Any]) -> SceneMap:
    scene = description['scene_frame']
    frame = SceneFrame(Similarity.from_dict(scene['scene_from_map']), float(scene['near']),
                       float(scene['far']), scene.get('ball', False) is True)
    focal, side = float(description['working_focal']), int(description['longest_side'])
    if not (0 < frame.near < frame.far < math.inf and 0 < focal < math.inf and side > 0):
        raise ValueError(f'near {frame.near}, far {frame.far}, working_focal {focal} or '
                         f'longest_side {side} is out of range')
    size = description.get('working_size')
    if size is not None:
        size = tuple(int(pixels) for pixels in size)
        check_working_size(size)
    field_config = from_dict(FieldConfig, description['field'], 'map.yaml: field')
    matcher_config = replace(from_dict(MatcherConfig, description['matcher'],
                                       'map.yaml: matcher'), pretrained=False)
    with safe_open(folder / FILES[0], 'pt') as opened:
        rows = [opened.get_slice(key).get_shape()[0] for key in opened.keys()
                if key in ('exposure', 'appearance.weight')]
    field = field_config.make(rows[0] if rows else 1)
    load_weights(field, folder / FILES[0])
    matcher = make_matcher(matcher_config, field.feature_channels)
    load_weights(matcher, folder / FILES[1])
    cameras = [Camera.from_dict(camera) for camera in description['cameras']]
    views = description['references']
    holds = description.get('references_hold', 'features')
    if holds not in HOLDS or holds == 'tokens' and not points_attend(matcher_config):
        raise ValueError(f'references_hold is {holds!r}, which a matcher of kind '
                         f'{matcher_config.kind} cannot take')
    references = read_references(
        folder / FILES[2], [view['name'] for view in views],
        [cameras[view['camera']] for view in views], holds=holds,
        check_views=_by_view(folder, description))
    _check_references(references)
    tensors = read_tensors(folder / FILES[3])
    surface, words = Surface(tensors['points'], tensors.get('features')), tensors['words']
    _check_shapes(references, surface, words, matcher, field.feature_channels)
    return SceneMap(
        frame, field_config, field, matcher_config, matcher, references, surface, words,
        focal, side, str(description['frame_id']), dict(description['localization']),
        dict(description.get('calibration', {})), dict(description['notes']), working_size=size,
        neighbours=_read_neighbours(folder, description, len(references.names)),
        surface_cache=_read_surface_cache(folder, description, matcher, field),
        **_read_scene_geometry(folder, description))


def _read_neighbours(
    folder: Path, description: dict[str, Any], views: int,
) -> dict[str, list[int]]:
    if NEIGHBOURS not in description['sha256']:
        return {}
    neighbours = json.loads((folder / NEIGHBOURS).read_text())
    if any(not 0 <= view < views for numbers in neighbours.values() for view in numbers):
        raise ValueError(f'{NEIGHBOURS} names views beyond the {views} of the map')
    return neighbours


def _read_surface_cache(
    folder: Path, description: dict[str, Any], matcher: Matcher, field: RadianceField,
) -> SurfaceCache | None:
    if SURFACE_CACHE not in description['sha256']:
        return None
    cache = SurfaceCache.from_tensors(read_tensors(folder / SURFACE_CACHE))
    needed = matcher.config.feature_layer is not None
    found = None if cache.features is None else cache.features.shape[1]
    if needed and found != field.feature_channels and (field.official or found is not None):
        raise ValueError(f'{SURFACE_CACHE} holds features of {found} channels, the field gives '
                         f'{field.feature_channels}')
    return cache


def _read_scene_geometry(folder: Path, description: dict[str, Any]) -> dict[str, Any]:
    if SCENE_GEOMETRY not in description['sha256']:
        return {}
    described = description['scene_geometry']
    network = SceneGeometry(replace(from_dict(
        SceneGeometryConfig, described['config'], 'map.yaml: scene_geometry'), pretrained=False))
    load_weights(network, folder / SCENE_GEOMETRY)
    return {'scene_geometry': network,
            'scene_geometry_calibration': dict(described['calibration'])}


def _check_references(references: References) -> None:
    """Refuse poses that are none, and descriptors that are no numbers."""
    for k in np.flatnonzero(~are_poses(references.map_from_camera)):
        checked_pose(references.map_from_camera[k],
                     f'{FILES[2]}, map_from_camera of reference view {k}')
    if not references.descriptors.isfinite().all():
        raise ValueError(f'{FILES[2]}: descriptors holds NaN or infinity')


def _check_shapes(references: References, surface: Surface, words: Tensor, matcher: Matcher,
                  feature_channels: int) -> None:
    """Refuse tensors that do not fit to one another, before a query stumbles over them."""
    stored = read_header(references.file)
    shapes = {key: part.shape for key, part in stored.items()}
    types = {key: part.kind for key, part in stored.items() if key not in ('starts', 'digests')}
    types |= {'surface points': surface.points.dtype, 'words': words.dtype}
    for name, kind in types.items():
        if not kind.is_floating_point:
            raise ValueError(f'{name} is of type {kind}, not of numbers with fractions')
    starts, views = references.starts, len(references.names)
    if starts.dtype != torch.int64 or starts.shape != (views + 1,) \
            or (starts.diff() < 0).any() or starts[0] != 0:
        raise ValueError(f'starts of {FILES[2]} does not hold {views} reference views')
    rows, count = starts[-1].item(), len(surface.points)
    expected = {'map_from_camera': (views, 4, 4), 'descriptors': (views, len(words)),
                'points': (rows, 3), 'surface points': (count, 3),
                'words': (len(words), matcher.token_channels)}
    shapes |= {'surface points': tuple(surface.points.shape), 'words': tuple(words.shape)}
    if matcher.config.feature_layer is not None:
        expected |= {'surface features': (count, feature_channels)}
        if references.holds == 'features':
            expected |= {'features': (rows, feature_channels)}
        shapes['surface features'] = None if surface.features is None \
            else tuple(surface.features.shape)
    if references.holds == 'tokens':
        expected |= {'tokens': (rows, matcher.token_channels)}
    if references.digests is not None:
        expected |= {'digests': (views, 32)}
    for name, shape in expected.items():
        if shapes.get(name) != shape:
            raise ValueError(f'{name} has shape {shapes.get(name)}, not {shape}')
