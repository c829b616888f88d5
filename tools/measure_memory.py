"""Measures the memory that each stage of a build takes on a large set of photographs.

    python tools/measure_memory.py --config config/paper_cambridge.yaml --images 900

Photographs of the synthetic room, each with a focal length of its own; real stages, but few steps
and small networks: what they hold of the data depends on the configuration, not on how long they
run. Reference views are as large as the configuration makes them, with 256 features in a recipe of
the paper, and filled with random numbers, unless --render is given. --whole-matcher trains the
configured matcher, which takes minutes. Prints the peak of the resident
memory in each stage, and of its part that is no mapped file.
"""

import argparse
from dataclasses import replace
import json
from pathlib import Path
import tempfile
import threading
import time

import cv2
from nerfmatch_ros.config import load_config
from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.data.synthetic import (
    default_camera,
    map_trajectory,
    synthetic_images,
    SyntheticRoom,
)
from nerfmatch_ros.mapping import build_map as building
from nerfmatch_ros.mapping import reference_store
from nerfmatch_ros.mapping.build_config import BuildConfig
from nerfmatch_ros.mapping.reference_views import ReferenceView
from nerfmatch_ros.matching.matcher import COARSE_STRIDE, ImageTokens
from nerfmatch_ros.matching.paper_matcher import PaperMatcher
from nerfmatch_ros.scene_map import SceneMap
import numpy as np
import torch

STAGES = ('triangulate', 'multi_view_depth', 'write_pixels', 'train_field',
          'compare_with_photographs', 'render_into_store', 'training_data', 'train_matcher',
          'assemble_map', 'calibrate')


class MemoryWatch:
    """Peaks of the resident memory by stage, looked at fifty times a second."""

    def __init__(self):
        self.stage, self.peaks = 'start', {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._ended.wait(0.02):
            self.look()

    def look(self) -> None:
        """Note what is in use now."""
        lines = Path('/proc/self/status').read_text().splitlines()
        values = dict(line.split(':', 1) for line in lines)
        now = [int(values[name].split()[0]) / 1024 for name in ('VmRSS', 'RssAnon')]
        peak = self.peaks.setdefault(self.stage, [0.0, 0.0, time.monotonic(), 0.0])
        peak[:2] = [max(pair) for pair in zip(peak, now)]
        peak[3] = time.monotonic()

    def during(self, name: str, work):
        """Wrap a function so that what it takes counts for its stage."""
        def watched(*args, **options):
            before, self.stage = self.stage, name
            print(f'{name} ...', flush=True)
            try:
                return work(*args, **options)
            finally:
                self.look()
                peak = self.peaks[name]
                print(f'{name:<26}{peak[0]:8.0f} MB resident {peak[1]:8.0f} MB own '
                      f'{peak[3] - peak[2]:8.1f} s', flush=True)
                self.stage = before
        return watched

    def end(self) -> None:
        """Stop looking."""
        self._ended.set()
        self._thread.join()


def write_photographs(
    folder: Path, count: int, width: int, height: int, drawn: int = 60,
) -> list[PosedImage]:
    """Write pictures with texture; a few are drawn and repeated with noise, which takes less."""
    random, room = np.random.default_rng(0), SyntheticRoom()
    base = [image.rgb() for image in synthetic_images(
        'train', min(drawn, count), default_camera(width // 2, height // 2), room=room,
        supersample=1)]
    images = []
    for k, pose in enumerate(map_trajectory(count)):
        picture = cv2.resize(base[k * len(base) // count], (width, height))
        noise = random.integers(-12, 13, picture.shape, np.int16)
        picture = (picture + noise).clip(0, 255).astype(np.uint8)
        path = folder / f'{k:04d}.jpg'
        cv2.imwrite(str(path), picture[..., ::-1])
        # Each photograph has a lens of its own, as after a structure from motion.
        camera = replace(default_camera(width, height), fx=0.8 * width + 0.01 * k,
                         fy=0.8 * width + 0.01 * k)
        images.append(PosedImage(path.name, camera, pose, path=path))
    return images


def shortened(config: BuildConfig, steps: int, matcher_steps: int, *, whole_matcher: bool,
              ) -> BuildConfig:
    """Leave the sizes of the data, and make the rest small and quick."""
    matcher = replace(config.matcher, pretrained=False)
    if matcher.kind == 'paper' and not whole_matcher:
        matcher = replace(matcher, backbone='convformer_s18',
                          self_attention=min(matcher.self_attention, 1))
    mip = replace(config.field.mip, width=256, depth=4, skip=1, coarse_samples=2, fine_samples=2)
    grid = replace(config.field.grid, samples=8, guide_samples=32)
    return replace(
        config, minutes=None, field=replace(config.field, mip=mip, grid=grid),
        depth=replace(config.depth, depths=min(config.depth.depths, 8)),
        field_training=replace(config.field_training, steps=steps),
        matcher=matcher, held_out=min(config.held_out, 3),
        matcher_training=replace(
            config.matcher_training, steps=matcher_steps,
            batch=min(config.matcher_training.batch, 3 * config.matcher_training.pairs_at_once)),
        calibration=replace(config.calibration, trials=2, refine=False))


def random_reference(field, frame, image, view, *, feature_layer) -> ReferenceView:
    """Stand in for a rendered view: a wall two metres ahead, with as many features."""
    camera, depth = view.camera, 2.0
    rays = camera.rays(camera.pixel_grid(COARSE_STRIDE))
    pose = torch.from_numpy(np.ascontiguousarray(image.map_from_camera))
    points = (depth * rays / rays[:, 2:]).double() @ pose[:3, :3].T + pose[:3, 3]
    features = None if feature_layer is None else torch.rand(
        len(points), field.feature_channels).half()
    rows, columns = (2 * side // COARSE_STRIDE for side in (camera.height, camera.width))
    return ReferenceView(image.name, view, pose, points.float(), features,
                         torch.full((rows, columns), depth))


def random_tokens(matcher: PaperMatcher, image: torch.Tensor) -> ImageTokens:
    """Stand in for the encoding of an image, of which an assembly makes one at a time."""
    rows, columns = (side // COARSE_STRIDE for side in image.shape[1:])
    fine = None if not matcher.config.fine else torch.rand(
        1, matcher.backbone.fine_channels, image.shape[1] // 2, image.shape[2] // 2)
    return ImageTokens(torch.rand(rows * columns, matcher.token_channels), fine, rows, columns)


def main() -> None:
    """Build and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--config', type=Path, help='YAML file; else the default configuration')
    parser.add_argument('--images', type=int, default=900)
    parser.add_argument('--size', default='640x480', help='of the photographs, WIDTHxHEIGHT')
    parser.add_argument('--steps', type=int, default=3, help='of the training of the field')
    parser.add_argument('--matcher-steps', type=int, default=1)
    parser.add_argument('--render', action='store_true', help='render the reference views')
    parser.add_argument('--whole-matcher', action='store_true',
                        help='train the configured matcher, not a small one')
    parser.add_argument('--output', type=Path, help='file for the figures, JSON')
    options = parser.parse_args()
    width, height = (int(side) for side in options.size.split('x'))
    config = shortened(load_config(BuildConfig, options.config), options.steps,
                       options.matcher_steps, whole_matcher=options.whole_matcher)
    watch = MemoryWatch()
    for name in STAGES:
        setattr(building, name, watch.during(name, getattr(building, name)))
    SceneMap.save = watch.during('save', SceneMap.save)
    if not options.render:
        reference_store.render_reference = random_reference
    PaperMatcher.encode_image = random_tokens
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        (folder / 'images').mkdir()
        images = watch.during('photographs', write_photographs)(
            folder / 'images', options.images, width, height)
        building.build_map(images, folder / 'map', config)
    watch.end()
    peaks = {name: {'resident_mb': round(peak[0]), 'own_mb': round(peak[1]),
                    'seconds': round(peak[3] - peak[2], 1)} for name, peak in watch.peaks.items()}
    for name, what in (('resident_mb', 'resident'), ('own_mb', 'own')):
        print(f'peak of all stages: {max(peak[name] for peak in peaks.values())} MB {what}')
    if options.output is not None:
        options.output.write_text(json.dumps(peaks, indent=1) + '\n')


if __name__ == '__main__':
    main()
