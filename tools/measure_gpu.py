"""Measures localization with the published networks on a GPU, in one run of some minutes.

    python tools/measure_gpu.py --json gpu.json --markdown docs/performance.md

A map of random weights in the published architecture at the paper's sizes: pictures of 480 x 480,
3600 points with 256 features a reference view, ConvFormer-B36, a Mip-NeRF of 128 + 128 samples.
Random weights match nothing, so the pose is given in place of the solver's; the solver is timed by
itself on made-up matches where poselib is installed. Without a GPU the same runs on the CPU;
--reduced makes everything small.

Parts: the table of `nerfmatch bench` against the plain pipeline, global and tracked; 1, 2, 4 and
10 reference views; agreement of half precision with single precision; memory; how often the host
waits for the GPU.
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
import json
from pathlib import Path
import sys
import tempfile
import time
from types import ModuleType, SimpleNamespace
from typing import Any
import warnings

try:
    import poselib  # noqa: F401
    SOLVER = True
except ImportError:  # everything else is measured without it
    sys.modules['poselib'] = ModuleType('poselib')
    SOLVER = False

from nerfmatch_ros.config import to_dict
from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.data.working_image import as_tensor
from nerfmatch_ros.evaluation import straightforward as plain_pipeline
from nerfmatch_ros.evaluation.bench import bench, BenchConfig
from nerfmatch_ros.evaluation.bench_report import machine_line, ratio_line, section
from nerfmatch_ros.evaluation.document import number, row, text_of, with_section
from nerfmatch_ros.evaluation.evaluate import json_ready
from nerfmatch_ros.evaluation.machine_rates import measure_rates
from nerfmatch_ros.evaluation.straightforward import Straightforward
from nerfmatch_ros.files import write_text
from nerfmatch_ros.geometry.camera import Camera
from nerfmatch_ros.geometry.similarity import Similarity
from nerfmatch_ros.localization import localizer as localizer_module
from nerfmatch_ros.localization.absolute_pose import (
    AbsolutePoseOptions,
    PoseEstimate,
    solve_absolute_pose,
)
from nerfmatch_ros.localization.localizer import Localizer, LocalizerConfig
from nerfmatch_ros.mapping.build_surface_cache import SURFACE_CACHE_POINTS, thinned_views
from nerfmatch_ros.mapping.point_tokens import with_tokens
from nerfmatch_ros.matching.make_matcher import make_matcher
from nerfmatch_ros.matching.matcher import MatcherConfig, Matches, PointTokens
from nerfmatch_ros.radiance_field.mip_field import MipField, MipFieldConfig
from nerfmatch_ros.radiance_field.scene_frame import SceneFrame
from nerfmatch_ros.references import References
from nerfmatch_ros.scene_map import FieldConfig, SceneMap, Surface
import numpy as np
import torch

MODELS = ('mini', 'full')
REFERENCES = (1, 2, 4, 10)
PRECISIONS = ('float32', 'bfloat16', 'float16')
MARK = 'measure_gpu'
TOKEN_NOISE = 0.1  # of a point's token, times its length, where precisions are compared


@dataclass(frozen=True)
class Sizes:
    """How large everything is."""

    side: int = 480  # pixels of the working picture
    backbone: str = 'convformer_b36'
    mip: MipFieldConfig = MipFieldConfig(official=True, random_rendering=True)
    views: int = 10
    images: int = 4
    repeats: int = 5

    @property
    def points(self) -> int:
        """Points of a reference view."""
        return (self.side // 8) ** 2


REDUCED = Sizes(side=96, backbone='convformer_s18', images=2, repeats=2, mip=MipFieldConfig(
    width=32, depth=5, skip=2, coarse_samples=16, fine_samples=16, official=True,
    random_rendering=True))


def published_map(folder: Path, model: str, sizes: Sizes) -> None:
    """Write a map of random weights in the published architecture."""
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    config = replace(MatcherConfig.published(fine=model == 'full', official=True),
                     backbone=sizes.backbone)
    field = MipField(sizes.mip).eval().requires_grad_(False)
    matcher = make_matcher(config, field.feature_channels).eval().requires_grad_(False)
    frame = SceneFrame(Similarity(0.2, np.eye(3), np.zeros(3)), 0.01, 1.0, ball=True)
    cameras = [camera_of(sizes)] * sizes.views
    poses = np.tile(np.eye(4), (sizes.views, 1, 1))
    poses[:, :3, 3] = 0.1 * random.standard_normal((sizes.views, 3))
    views = [SimpleNamespace(
        name=f'reference-{k}', points=wall(sizes, poses[k], random),
        features=torch.from_numpy(random.random((sizes.points, field.feature_channels))).half())
        for k in range(sizes.views)]
    words = torch.nn.functional.normalize(torch.randn(64, matcher.token_channels), dim=-1)
    descriptors = torch.nn.functional.normalize(torch.rand(sizes.views, 64), dim=-1)
    references = with_tokens(References(
        [view.name for view in views], cameras, poses, descriptors,
        sizes.points * torch.arange(sizes.views + 1), stored=views), matcher, frame)
    SceneMap(
        frame, FieldConfig('mip', mip=sizes.mip), field, config, matcher, references,
        Surface(views[0].points, views[0].features), words, float(cameras[0].fx), sizes.side,
        localization=to_dict(LocalizerConfig(
            start='retrieval', top_k=1, rounds=0, min_inliers=4)),
        working_size=(sizes.side, sizes.side), surface_cache=thinned_views(
            lambda k: (views[k].points, views[k].features), sizes.views, SURFACE_CACHE_POINTS),
    ).save(folder)


def wall(sizes: Sizes, map_from_camera: np.ndarray, random: np.random.Generator) -> torch.Tensor:
    """Give the points (N, 3) that a camera sees of a rough wall about 3 m ahead."""
    camera = camera_of(sizes).scaled_to(sizes.side, sizes.side)
    rays = camera.rays(camera.pixel_grid(8)).double().numpy()
    points = rays / rays[:, 2:] * random.uniform(2.98, 3.02, (len(rays), 1))
    return torch.from_numpy(
        points @ map_from_camera[:3, :3].T + map_from_camera[:3, 3]).float()


def camera_of(sizes: Sizes) -> Camera:
    """Give a camera of 640 x 480 pixels, of 96 x 96 where sizes are small."""
    width, height = (640, 480) if sizes.side >= 480 else (sizes.side, sizes.side)
    return Camera('PINHOLE', width, height, 0.9 * width, 0.9 * width, (width - 1) / 2,
                  (height - 1) / 2)


def pictures(sizes: Sizes) -> list[PosedImage]:
    """Give noise of several scales as photographs, with poses a step apart."""
    camera, random, images = camera_of(sizes), np.random.default_rng(1), []
    for k in range(sizes.images):
        pixels = sum(
            np.kron(random.integers(0, 255 // 3, (-(-camera.height // scale),
                                                  -(-camera.width // scale), 3)),
                    np.ones((scale, scale, 1)))[:camera.height, :camera.width]
            for scale in (1, 4, 16))
        pose = np.eye(4)
        pose[0, 3] = 0.02 * k
        images.append(PosedImage(f'{k}', camera, pose, pixels=pixels.astype(np.uint8)))
    return images


@contextmanager
def given_pose() -> Iterator[None]:
    """Let every solver answer with one pose; random weights give no matches to solve."""
    def answer(pixels: np.ndarray, points: np.ndarray, camera: Camera, **_: Any) -> PoseEstimate:
        count = len(pixels)
        return PoseEstimate(np.eye(4), '', 1e-4 * np.eye(6), count, count, 1.0,
                            np.ones(count, bool))
    modules = localizer_module, plain_pipeline
    kept = [module.solve_absolute_pose for module in modules]
    for module in modules:
        module.solve_absolute_pose = answer
    try:
        yield
    finally:
        for module, function in zip(modules, kept):
            module.solve_absolute_pose = function


def localizer_of(folder: Path, device: str, precision: str, **changes: Any) -> Localizer:
    """Load a map for a device, computing in a precision."""
    plain = Localizer.load(folder, device)
    if 'precision' in {field.name for field in fields(LocalizerConfig)}:
        changes['precision'] = precision
    elif precision != 'float32':
        changes['speed_up'] = precision
    speed_up = changes.pop('speed_up', None)
    made = Localizer(plain.scene_map, replace(plain.config, **changes))
    if speed_up is not None:
        made.scene_map.matcher.speed_up(getattr(torch, speed_up))
    return made


def timed(work: Callable[[], Any], device: str, repeats: int) -> dict[str, float | None]:
    """Give medians of wall and CPU milliseconds, after two runs, and the GPU's memory, MB."""
    for _ in range(2):
        work()
    if device != 'cpu':
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        if device != 'cpu':
            torch.cuda.synchronize()
        times.append((time.perf_counter() - wall, time.process_time() - cpu))
    wall, cpu = np.median(times, axis=0)
    memory = None if device == 'cpu' else torch.cuda.max_memory_allocated() / 1e6
    return {'wall_ms': 1000 * wall, 'cpu_ms': 1000 * cpu, 'memory_mb': memory}


def tables(folders: dict[str, Path], sizes: Sizes, device: str) -> dict[str, dict]:
    """Run `nerfmatch bench` against the plain pipeline: Mini and full, global and tracked."""
    reports = {}
    for model, folder in folders.items():
        for track in (False, True):
            ours = localizer_of(folder, device, 'float32')
            plain = Straightforward(SceneMap.load(folder).to(device), ours.config)
            with given_pose():
                report = bench(ours, pictures(sizes), BenchConfig(
                    repeats=min(sizes.repeats, 3), track=track), straightforward=plain)
            for figures in report['ways'].values():
                figures['accuracy'] = None  # of a pose that was given
            reports[f'{model} {report["mode"]}'] = report
    return reports


def several_references(folders: dict[str, Path], sizes: Sizes, device: str) -> list[dict]:
    """Time global localization against 1 to 10 reference views, and a tracked frame."""
    found, image = [], replace(pictures(sizes)[0], map_from_camera=None)
    for model, folder in folders.items():
        for precision in PRECISIONS if device != 'cpu' else PRECISIONS[:2]:
            cases = [(f'{count} references', {'top_k': count}, None)
                     for count in REFERENCES if count <= sizes.views]
            for name, changes, prior in (*cases, ('tracked', {}, np.eye(4))):
                ours = localizer_of(folder, device, precision, **changes)
                with given_pose():
                    figures = timed(lambda: ours.localize(image, prior),  # noqa: B023
                                    device, sizes.repeats)
                found.append({'model': model, 'precision': precision, 'case': name, **figures})
    return found


def agreement(folders: dict[str, Path], sizes: Sizes, device: str) -> list[dict]:
    """Say how many matches of single precision half precision finds too, and how far off.

    The points carry the tokens of the image's own cells in another order, with noise: matches
    that are there to be found, as random weights would have none.
    """
    found = []
    for model, folder in folders.items():
        matches: dict[str, Matches] = {}
        points = None
        for precision in PRECISIONS:
            ours = localizer_of(folder, device, precision)
            matcher, image = ours.scene_map.matcher, pictures(sizes)[0]
            view = ours.scene_map.working_view(image.camera)
            with torch.inference_mode():
                tokens = matcher.encode_image(as_tensor(view.picture(image.rgb())).to(device))
                if points is None:
                    points = shuffled(tokens.coarse)
                matches[precision] = matcher.match(tokens, points)
            if precision != 'float32':
                found.append({'model': model, 'precision': precision,
                              **compared(matches['float32'], matches[precision])})
    return found


def shuffled(cells: torch.Tensor) -> PointTokens:
    """Make points of cells (n, C), in another order and with noise."""
    random = torch.Generator().manual_seed(0)
    order = torch.randperm(len(cells), generator=random).to(cells.device)
    noise = torch.randn(cells.shape, generator=random).to(cells)
    noise = noise * cells.norm(dim=-1, keepdim=True) / cells.shape[1] ** 0.5
    return PointTokens((cells + TOKEN_NOISE * noise)[order], None)


def compared(first: Matches, second: Matches) -> dict[str, float]:
    """Compare matches: share of the first's points that are matched to the same place."""
    at = {point: pixel for point, pixel in zip(second.points.tolist(), second.pixels.tolist())}
    apart = np.array([np.hypot(*np.subtract(pixel, at[point])) for point, pixel in zip(
        first.points.tolist(), first.pixels.tolist()) if point in at])
    count = max(len(first.points), 1)
    return {'matches': len(first.points), 'same_within_1px': float((apart < 1).sum() / count),
            'median_px': float(np.median(apart)) if len(apart) else None,
            'confidence': float((first.confidence.median() - second.confidence.median()).abs())
            if len(second.points) and len(first.points) else None}


def waits(folders: dict[str, Path], sizes: Sizes, device: str) -> list[dict]:
    """Count how often the host waits for the GPU in one localization."""
    found, image = [], replace(pictures(sizes)[0], map_from_camera=None)
    for model, folder in folders.items():
        ours = localizer_of(folder, device, 'float32')
        for name, prior in (('global', None), ('tracked', np.eye(4))):
            with given_pose():
                ours.localize(image, prior)
                torch.cuda.set_sync_debug_mode('warn')
                try:
                    with warnings.catch_warnings(record=True) as caught:
                        warnings.simplefilter('always')
                        ours.localize(image, prior)
                finally:
                    torch.cuda.set_sync_debug_mode('default')
            places = [f'{Path(one.filename).name}:{one.lineno}' for one in caught
                      if 'synchroniz' in str(one.message)]
            found.append({'model': model, 'case': name, 'waits': len(places),
                          'places': sorted(set(places))})
    return found


def solver(repeats: int) -> dict[str, float | None]:
    """Time the pose solver on 2000 made-up matches, half of them wrong."""
    random = np.random.default_rng(0)
    camera = Camera('PINHOLE', 640, 480, 576.0, 576.0, 319.5, 239.5)
    points = random.uniform((-2, -1.5, 3), (2, 1.5, 6), (2000, 3))
    pixels = camera.project(torch.from_numpy(points)).numpy() + random.standard_normal((2000, 2))
    pixels[::2] = random.uniform((0, 0), (640, 480), (1000, 2))
    return timed(lambda: solve_absolute_pose(pixels, points, camera, options=AbsolutePoseOptions(
        max_reprojection_error=5.0)), 'cpu', repeats)


def text(report: dict) -> str:
    """Write the section of the document."""
    lines = ['### The published networks, random weights', '', '```', report['command'], '```', '',
             f'{machine_line(report["machine"])}; torch {report["torch"]}. Pictures of '
             f'{report["side"]} x {report["side"]} pixels, {report["points"]} points a view. '
             + ' '.join(report['notes']), '']
    lines += [f'- {name}: {ratio_line(way, times)}' for name, one in report['tables'].items()
              for way, times in one['times_longer'].items()]
    lines += ['', row('model', 'precision', 'case', 'ms', 'CPU ms', 'GPU MB'), row(*['---'] * 6)]
    lines += [row(one['model'], one['precision'], one['case'], number(one['wall_ms']),
                  number(one['cpu_ms']), number(one['memory_mb']))
              for one in report['localization']]
    lines += ['', row('model', 'precision', 'matches of float32', 'same within 1 px', 'median px'),
              row(*['---'] * 5)]
    lines += [row(one['model'], one['precision'], str(one['matches']),
                  f'{one["same_within_1px"]:.1%}', number(one['median_px']))
              for one in report['agreement']]
    if report['waits']:
        lines += ['', row('model', 'case', 'waits of the host', 'where'), row(*['---'] * 4)]
        lines += [row(one['model'], one['case'], str(one['waits']), ', '.join(one['places']))
                  for one in report['waits']]
    if report['solver']:
        lines += ['', f'The solver takes {report["solver"]["wall_ms"]:.1f} ms for 2000 matches, '
                  'half of them wrong.']
    for name, one in report['tables'].items():
        lines += ['', '<details><summary>' + name + '</summary>', '',
                  *section({**one, 'machine': {}}, name).splitlines()[2:], '', '</details>']
    return '\n'.join([*lines, ''])


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--device', default='auto', help='cuda, cpu or auto')
    parser.add_argument('--reduced', action='store_true', help='small pictures and networks')
    parser.add_argument('--minutes', type=float, default=9, help='no part begins after this time')
    parser.add_argument('--json', type=Path, help='file for every figure')
    parser.add_argument('--markdown', type=Path, help='document whose section is replaced')
    options = parser.parse_args()
    device = options.device
    if device == 'auto':
        device = 'cuda' if torch.cuda.is_available() else 'cpu'
    torch.backends.cudnn.allow_tf32 = False  # float32 is to be float32
    sizes, begin = REDUCED if options.reduced else Sizes(), time.monotonic()
    report = {
        'command': ' '.join(['python', 'tools/measure_gpu.py', *sys.argv[1:]]),
        'torch': torch.__version__, 'side': sizes.side, 'points': sizes.points,
        'machine': measure_rates(device).to_dict(), 'tables': {},
        'notes': ['Random weights find no poses: a pose is given in place of the solver, and no '
                  'image is looked at again from its estimate. The solver is timed by itself.'],
        'localization': [], 'agreement': [], 'waits': [], 'solver': None}
    if options.reduced:
        report['notes'].append("Reduced sizes: these figures say nothing of the paper's.")
    if SOLVER:
        report['solver'] = solver(sizes.repeats)
    else:
        report['notes'].append('poselib is not installed, the solver was not timed.')
    with tempfile.TemporaryDirectory() as folder:
        folders = {model: Path(folder) / model for model in MODELS}
        for model, path in folders.items():
            published_map(path, model, sizes)
        parts = {'localization': several_references, 'agreement': agreement, 'tables': tables}
        if device != 'cpu':
            parts['waits'] = waits
        for name, part in parts.items():
            spent = (time.monotonic() - begin) / 60
            if spent > options.minutes:
                report['notes'].append(f'Out of time before part {name}.')
                continue
            print(f'{spent:5.1f} min: {name}', flush=True)
            report[name] = part(folders, sizes, device)
    report = json_ready({**report, 'seconds': time.monotonic() - begin})
    print(text(report))
    if options.json is not None:
        write_text(options.json, json.dumps(report, indent=1, allow_nan=False) + '\n')
    if options.markdown is not None:
        write_text(options.markdown, with_section(text_of(options.markdown), MARK, text(report)))


if __name__ == '__main__':
    main()
