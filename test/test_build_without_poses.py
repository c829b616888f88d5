"""`nerfmatch build --poses none`: pictures in, posed photographs to the build."""

from dataclasses import replace
import json
from types import SimpleNamespace

import cv2
from nerfmatch_ros import build_verbs
from nerfmatch_ros.data.transforms_json import frame_entry, write
from nerfmatch_ros.errors import ConfigError
from nerfmatch_ros.mapping import build_map as build_module
import numpy as np
import pytest
from test_sparse_points import CAMERAS, photograph


@pytest.fixture
def origins():
    """Give what maps are to note of their poses, in the order of the calls."""
    return []


@pytest.fixture
def built(monkeypatch, origins):
    """Give the calls of build_map, which makes nothing but the folder."""
    calls = []

    def stand_in(images, output, config, *, origin, beside, **options):
        output.mkdir()
        for name, content in beside.items():
            (output / name).write_bytes(content)
        calls.append(images)
        origins.append(origin)

    monkeypatch.setattr(build_module, 'build_map', stand_in)
    return calls


def test_a_folder_of_pictures_becomes_posed_photographs(tmp_path, built, origins):
    pytest.importorskip('pycolmap', reason='pycolmap is not installed ([sfm])')
    folder = tmp_path / 'pictures'
    folder.mkdir()
    for k in range(6):
        picture = photograph(k, CAMERAS['pinhole'], step=0.35).pixels
        cv2.imwrite(str(folder / f'{k}.png'), picture[..., ::-1])
    camera = tmp_path / 'camera.yaml'
    camera.write_text('model: PINHOLE\nwidth: 240\nheight: 180\nfx: 200\nfy: 205\ncx: 121\n'
                      'cy: 88\n')
    build_verbs.build(images=folder, output=tmp_path / 'map', poses='none',
                      camera=camera, scale=('0.png', '5.png', 2.0))
    (images,) = built
    assert [image.name for image in images] == [f'{k}.png' for k in range(6)]
    places = [images[k].map_from_camera[:3, 3] for k in (0, 5)]
    assert np.linalg.norm(places[0] - places[1]) == pytest.approx(2.0)
    report = json.loads((tmp_path / 'map' / 'poses_from_motion.json').read_text())
    assert report['placed'] == 6 and report['scale_from'] == 'a known distance'
    assert origins == [{'from': 'structure from motion', 'up': report['up_from'],
                        'metres': 'a known distance'}]


def test_a_bag_gives_scale_and_frame(tmp_path, built, monkeypatch):
    pytest.importorskip('pycolmap', reason='pycolmap is not installed ([sfm])')
    folder = tmp_path / 'frames'
    folder.mkdir()
    images = [replace(photograph(k, CAMERAS['pinhole'], step=0.35), name=f'{k}.png')
              for k in range(6)]
    for image in images:
        cv2.imwrite(str(folder / image.name), image.pixels[..., ::-1])
    write(folder / 'transforms.json', [frame_entry(image, folder) for image in images])
    extracted = SimpleNamespace(folder=folder, quality='rough', reports=dict,
                                origin=dict)
    monkeypatch.setattr(build_verbs, '_extract', lambda *arguments: extracted)
    build_verbs.build(bag=tmp_path / 'drive', output=tmp_path / 'map', poses='none')
    for image, truth in zip(built[0], images):
        np.testing.assert_allclose(image.map_from_camera, truth.map_from_camera, atol=0.03)


@pytest.mark.parametrize('options, message', [
    ({'scale': ('a', 'b', 1.0)}, 'without poses'),
    ({'poses': 'none', 'masks': 'm'}, 'belong to given poses'),
    ({'camera': 'c.yaml'}, 'bring their cameras'),
    ({'update': 'm', 'poses': 'rough'}, 'finds the places')])
def test_options_that_do_not_go_together_are_refused(tmp_path, built, options, message):
    with pytest.raises(ConfigError, match=message):
        build_verbs.build(images=tmp_path, output=tmp_path / 'map', **options)
    assert not built
