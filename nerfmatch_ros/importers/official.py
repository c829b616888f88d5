"""A map of ours from what the published NeRFMatch leaves: two checkpoints, annotations, images.

    weights -> scene frame -> reference views -> descriptors, surface -> map

Rendering takes the time; views that are done lie in `<output>.import`, where a repeated import
finds them. Points, features and matches are those of the published code, quirks included; what
differs is listed in docs/published_model.md.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
import hashlib
import json
import logging
from pathlib import Path
import re
import shutil

from nerfmatch_ros.config import to_dict
from nerfmatch_ros.data.cached_view import cached_view_name, read_cached_view
from nerfmatch_ros.data.image_pairs import read_pairs
from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.data.reader import check_picture
from nerfmatch_ros.data.release_annotations import read_annotations, scene_and_split
from nerfmatch_ros.data.working_image import as_tensor, working_focal, working_view, WorkingView
from nerfmatch_ros.errors import ConfigError, DataError
from nerfmatch_ros.files import file_sha256, write_text
from nerfmatch_ros.importers.official_checkpoint import (
    OfficialCheckpoint,
    read_official_checkpoint,
)
from nerfmatch_ros.importers.official_field import official_field
from nerfmatch_ros.importers.official_weights import official_config, official_state
from nerfmatch_ros.localization.localizer import LocalizerConfig
from nerfmatch_ros.mapping.build_surface_cache import SURFACE_CACHE_POINTS, thinned_views
from nerfmatch_ros.mapping.cell_words import cells_of, fit_cell_words, images_for_words
from nerfmatch_ros.mapping.point_tokens import with_tokens
from nerfmatch_ros.mapping.reference_store import ReferenceStore, StoredView
from nerfmatch_ros.mapping.reference_views import ReferenceView
from nerfmatch_ros.mapping.surface_points import thin
from nerfmatch_ros.matching.make_matcher import make_matcher, Matcher
from nerfmatch_ros.matching.matcher import COARSE_STRIDE
from nerfmatch_ros.radiance_field.mip_field import MipField
from nerfmatch_ros.radiance_field.renderer import render_view
from nerfmatch_ros.radiance_field.scene_frame import frustum_frame, SceneFrame
from nerfmatch_ros.references import References
from nerfmatch_ros.retrieval import describe
from nerfmatch_ros.scene_map import FieldConfig, SceneMap, Surface
import numpy as np
from rich.console import Console
from rich.progress import track
import torch

LOG = logging.getLogger(__name__)
LICENCE = ('CC BY-NC-SA 4.0: weights of the published NeRFMatch '
           '(https://github.com/nv-dvl/nerfmatch), not for commercial use')
SURFACE_POINTS = 16384  # of the whole map
WORDS = 256  # of the retrieval descriptor
INDOORS = 10.0  # metres; published fields of rooms have frusta of 1 m, of streets of 50 m


@dataclass(frozen=True)
class OfficialFiles:
    """What an import reads."""

    nerf: Path  # .ckpt
    matcher: Path  # .ckpt, Mini or full
    annotations: Path  # transforms_<scene>_train.json, whole: it fixes the frame of the NeRF
    images: Path  # folder that the annotations' file paths are relative to
    pairs: Path | None = None  # similar reference views of images that will be localized
    cached_views: Path | None = None  # folder of .npy files to take instead of rendering


@dataclass(frozen=True)
class OfficialImportConfig:
    """How an import is made."""

    sampling: str = 'random'  # of rays: 'random' as published, 'even' for less noise
    reference_views: int = 0  # evenly chosen of those annotated; 0: all, or all that pairs name

    def __post_init__(self):
        """Refuse unknown ways to sample."""
        if self.sampling not in ('random', 'even'):
            raise ConfigError(f"sampling '{self.sampling}' is unknown; use random or even")
        if self.reference_views < 0:
            raise ConfigError(f'{self.reference_views} reference views are asked for; '
                              'give a positive number, or 0 for all')


def import_official(
    files: OfficialFiles, output: Path, config: OfficialImportConfig | None = None, *,
    device: str = 'cpu',
) -> SceneMap:
    """Make a map and save it to the folder `output`; DataError for what cannot become one."""
    config = config or OfficialImportConfig()
    output = Path(output).resolve()
    _check_output(output)
    nerf, published = (read_official_checkpoint(path) for path in (files.nerf, files.matcher))
    field = official_field(nerf, random_rendering=config.sampling == 'random').to(device)
    matcher = official_matcher(published, field.feature_channels).to(device)
    annotated = _annotated(files)
    _warn_of_other_scenes(nerf, published, files.annotations)
    frame = official_frame(nerf, annotated)
    chosen, neighbours = _choose(annotated, files.pairs, config.reference_views)
    for image in chosen:
        check_picture(files.images, image)
    size = _working_size(published)
    views = [working_view(image.camera, 1.0, 1, size) for image in chosen]
    work = _work_folder(output, files, config)
    stored = _reference_views(work, files, chosen, views, field, frame, matcher)
    words, descriptors = _describe(chosen, views, matcher)
    counts = torch.tensor([0] + [len(view.points) for view in stored])
    references = References(
        [image.name for image in chosen], [image.camera for image in chosen],
        np.stack([image.map_from_camera for image in chosen]), descriptors,
        torch.cumsum(counts, 0), stored=stored)
    references = with_tokens(references, matcher, frame)
    scene_map = SceneMap(
        frame, FieldConfig('mip', mip=field.config), field, matcher.config, matcher, references,
        _surface(stored), words, working_focal([image.camera for image in chosen], max(size)),
        max(size), localization=to_dict(_localization(matcher, nerf)), notes={
            'imported_from': 'the published NeRFMatch', 'licence': LICENCE,
            'scene': nerf.option('scene') or nerf.option('data', 'scene'),
            'nerf_checkpoint': files.nerf.name, 'matcher_checkpoint': files.matcher.name,
            'images': len(annotated), 'extent_m': _extent(annotated)},
        working_size=size, neighbours=neighbours, surface_cache=thinned_views(
            lambda k: (stored[k].points, stored[k].features), len(stored), SURFACE_CACHE_POINTS))
    scene_map.save(output)
    loaded = SceneMap.load(output)
    shutil.rmtree(work)
    LOG.info('map saved to %s; licence of its weights: %s', output, LICENCE)
    return loaded


def official_matcher(checkpoint: OfficialCheckpoint, feature_channels: int = 256) -> Matcher:
    """Make the matcher of a checkpoint, ready to match as the published code does.

    feature_channels: of the field whose inner features it is going to be shown.
    """
    require = checkpoint.require
    if not any(name.startswith('model.backbone.') for name in checkpoint.weights):
        raise DataError(f'{checkpoint.path} holds no image backbone (model.backbone...); is it '
                        'that of the NeRF?')
    require('model', 'pt_ftype', among=('nerf',))
    require('model', 'temp_type', among=('mul',))
    require('model', 'pt_feat_norm', among=(False, None))
    require('data', 'imagenet_norm', among=(True,))
    require('data', 'model_ds', among=(COARSE_STRIDE,))
    try:
        settings = official_config(
            checkpoint.weights, window=checkpoint.option('model', 'win_sz', default=5))
        settings = replace(settings, point_feature=f'f{feature_layer(checkpoint)}')
        weights = official_state(checkpoint.weights)
        matcher = make_matcher(settings, feature_channels)
        if any(weights[name].shape != value.shape for name, value in matcher.state_dict().items()
               if name in weights) or weights.keys() != matcher.state_dict().keys():
            raise DataError(f'it does not take features of {feature_channels} channels, which the '
                            'NeRF gives; import two checkpoints that were trained together')
        matcher.load_state_dict(weights)
    except DataError as error:
        raise DataError(f'{checkpoint.path}: {error}') from error
    return matcher.eval().requires_grad_(False)


def feature_layer(checkpoint: OfficialCheckpoint) -> int:
    """Give j of the inner feature f^j that a matcher was trained on; its views' folder says it."""
    folder = str(checkpoint.option('data', 'scene_dir', default=''))
    named = re.search(r'inter_layer(\d+)', folder)
    return int(named[1]) if named else 3


def official_frame(nerf: OfficialCheckpoint, images: Sequence[PosedImage]) -> SceneFrame:
    """Compute the frame of a NeRF anew from all its training images, as the published code does.

    The checkpoint does not hold it.
    """
    nerf.require('data', 'normalize_scene', among=(True,))
    nerf.require('data', 'snorm_type', among=('fst',))
    nerf.require('data', 'rescale_factor', among=(1, 1.0))
    depth = nerf.option('data', 'max_frustum_depth')
    if not isinstance(depth, (int, float)):
        raise DataError(f'{nerf.path}: hyper-parameter data.max_frustum_depth is {depth!r}; '
                        'without it the frame of the field is unknown')
    return frustum_frame([image.camera for image in images],
                         np.stack([image.map_from_camera for image in images]), float(depth))


def _annotated(files: OfficialFiles) -> list[PosedImage]:
    """Read the training images, each once; DataError for what cannot be what a NeRF learned."""
    images = read_annotations(files.annotations, files.images)
    if not images:
        raise DataError(f'{files.annotations} lists no frames; give those the NeRF learned from')
    if images[0].split == 'test':
        raise DataError(f'{files.annotations} are test images; give transforms_SCENE_train.json, '
                        'which fixes the frame of the NeRF')
    names = [image.name for image in images]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{files.annotations} lists '{twice}' more than once; "
                        'give the file as it was published')
    return images


def _warn_of_other_scenes(
    nerf: OfficialCheckpoint, matcher: OfficialCheckpoint, annotations: Path,
) -> None:
    """Warn where the files name different scenes, as no check of numbers can."""
    named = {'the NeRF': nerf.option('data', 'scene') or nerf.option('scene'),
             'the annotations': scene_and_split(annotations)[0]}
    learned = matcher.option('data', 'scenes')
    if isinstance(learned, list) and len(learned) == 1:
        named['the matcher'] = learned[0]
    distinct = {str(scene).casefold() for scene in named.values() if scene}
    if len(distinct) > 1:
        LOG.warning('the files are of different scenes (%s); a map of them finds no poses unless '
                    'they belong together', ', '.join(
                        f'{what}: {scene}' for what, scene in named.items()))


def _check_output(output: Path) -> None:
    if output.exists() and not output.is_dir():
        raise DataError(f'{output} is a file; give a folder for the map')
    if output.exists() and any(output.iterdir()) and not (output / 'map.yaml').exists():
        raise DataError(f'{output} is not empty and holds no map; choose another folder')


def _choose(
    annotated: list[PosedImage], pairs: Path | None, count: int,
) -> tuple[list[PosedImage], dict[str, list[int]]]:
    """Choose the images of the reference views, and number those that pairs name."""
    if pairs is None:
        kept = range(len(annotated)) if not count else np.unique(
            np.linspace(0, len(annotated) - 1, count).round().astype(int))
        return [annotated[k] for k in kept], {}
    if count:
        raise ConfigError('reference views are chosen either by their number or by pairs; '
                          'leave one of both out')
    listed = read_pairs(pairs)
    names = {name for references in listed.values() for name in references}
    unknown = sorted(names - {image.name for image in annotated})
    if unknown:
        raise DataError(f"{pairs} names '{unknown[0]}' ({len(unknown)} such references), which "
                        'the annotations do not hold; give those of the training images')
    chosen = [image for image in annotated if image.name in names]
    number = {image.name: k for k, image in enumerate(chosen)}
    return chosen, {query: [number[name] for name in references]
                    for query, references in listed.items()}


def _working_size(matcher: OfficialCheckpoint) -> tuple[int, int]:
    size = matcher.option('data', 'img_wh', default=[480, 480])
    if not (isinstance(size, list) and len(size) == 2 and all(
            isinstance(side, int) for side in size)):
        raise DataError(f'{matcher.path}: hyper-parameter data.img_wh is {size!r}; '
                        'two numbers of pixels are needed')
    return tuple(size)


def _work_folder(output: Path, files: OfficialFiles, config: OfficialImportConfig) -> Path:
    """Make `<output>.import`, or find it left by the same import; another one's is emptied."""
    digest = hashlib.sha256(json.dumps(to_dict(config)).encode())
    for path in (files.nerf, files.matcher, files.annotations, files.pairs):
        if path is not None:
            digest.update(file_sha256(path).encode())
    if files.cached_views is not None:
        for path in sorted(files.cached_views.glob('*.npy')):
            digest.update(f'{path} {path.stat().st_size} {path.stat().st_mtime_ns}'.encode())
    work, mark = output.with_name(output.name + '.import'), digest.hexdigest()
    path = work / 'import.sha256'
    if work.exists() and not path.exists():
        raise DataError(f'{work} was not left by an import; move it away, or choose another '
                        'output')
    if work.exists() and path.read_text() != mark:
        shutil.rmtree(work)
    work.mkdir(parents=True, exist_ok=True)
    write_text(path, mark)
    return work


def _reference_views(
    work: Path, files: OfficialFiles, images: list[PosedImage], views: list[WorkingView],
    field: MipField, frame: SceneFrame, matcher: Matcher,
) -> list[StoredView]:
    """Render, or read, the reference views that the work folder does not hold yet."""
    store = ReferenceStore(work / 'references.bin')
    for k in _tracked(range(len(store), len(images)), 'reference views'):
        image, view = images[k], views[k]
        pose = torch.from_numpy(np.ascontiguousarray(image.map_from_camera))
        if files.cached_views is not None:
            path = files.cached_views / cached_view_name(image.name)
            if not path.is_file():
                raise DataError(f'{path} does not exist; render it with the published code or '
                                'leave the cached views out')
            cached = read_cached_view(path)
            points, features = (torch.from_numpy(part) for part in (
                cached.points, cached.features))
            if not len(points) or features.shape[1] != field.feature_channels:
                raise DataError(f'{path} holds {len(points)} points with {features.shape[1]} '
                                f'features; some with {field.feature_channels} are needed')
            depth = torch.zeros(1, 1)
        else:
            shown = render_view(field, frame, view.camera, pose, stride=COARSE_STRIDE,
                                feature_layer=matcher.config.feature_layer)
            points, features = shown.points.cpu(), shown.features.cpu()
            depth = shown.depth.view(shown.rows, shown.columns).cpu()
        store.append(ReferenceView(image.name, view, pose, points, features, depth))
    return store.views(images, views)


def _tracked(numbers: Sequence[int], what: str) -> Iterator[int]:
    return track(numbers, description=f'{what:<16}', console=Console(stderr=True))


def _describe(
    images: list[PosedImage], views: list[WorkingView], matcher: Matcher,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Give words (V, C) and the descriptors (K, V) of the images, for retrieval.

    The published code has none, only lists of a benchmark.
    """
    def picture(k: int) -> torch.Tensor:
        return as_tensor(views[k].picture(images[k].rgb()))

    sample = images_for_words(len(images))
    words = fit_cell_words((picture(k) for k in _tracked(sample, 'words')), matcher, WORDS)
    return words, torch.stack([
        describe(cells_of(picture(k), matcher), words, matcher.scale.item())
        for k in _tracked(range(len(images)), 'descriptors')])


def _surface(stored: list[StoredView]) -> Surface:
    """Thin the points of all views."""
    chosen = thin(torch.cat([view.points for view in stored]), SURFACE_POINTS)
    starts = np.cumsum([0] + [len(view.points) for view in stored])
    points, features = [], []
    for view, start, end in zip(stored, starts, starts[1:]):
        own = chosen[(chosen >= start) & (chosen < end)] - int(start)
        points.append(view.points[own])
        features.append(view.features[own])
    return Surface(torch.cat(points), torch.cat(features))


def _localization(matcher: Matcher, nerf: OfficialCheckpoint) -> LocalizerConfig:
    """How the paper localizes: ten views for the full model outdoors, else one.

    It looks again once outdoors and twice indoors, where its fields see no farther than a few
    metres; the last look is the refinement's.
    """
    full, indoors = matcher.config.fine, nerf.option('data', 'max_frustum_depth') < INDOORS
    error = 5.0 if full else 10.0
    return LocalizerConfig(
        start='retrieval', top_k=10 if full and not indoors else 1, rounds=int(indoors),
        first_error=error,
        refined_error=error, min_inliers=12, min_inlier_ratio=0.02, refine=('match',))


def _extent(images: Sequence[PosedImage]) -> float:
    """Diagonal of the bounding box of the camera centres, metres."""
    centres = np.stack([image.map_from_camera[:3, 3] for image in images])
    return float(np.linalg.norm(np.ptp(centres, axis=0)))
