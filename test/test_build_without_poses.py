"""`nerfmatch build --poses none`: pictures in, posed photographs to the build."""

import json

import cv2
from nerfmatch_ros.build_verbs import build
from nerfmatch_ros.errors import ConfigError
from nerfmatch_ros.mapping import build_map as build_module
import numpy as np
import pytest
from test_sparse_points import CAMERAS, photograph


@pytest.fixture
def built(monkeypatch):
    """Give the calls of build_map, which makes nothing but the folder."""
    calls = []

    def stand_in(images, output, config, **options):
        output.mkdir()
        calls.append(images)

    monkeypatch.setattr(build_module, 'build_map', stand_in)
    return calls


def test_a_folder_of_pictures_becomes_posed_photographs(tmp_path, built):
    pytest.importorskip('pycolmap', reason='pycolmap is not installed ([sfm])')
    folder = tmp_path / 'pictures'
    folder.mkdir()
    for k in range(6):
        picture = photograph(k, CAMERAS['pinhole'], step=0.35).pixels
        cv2.imwrite(str(folder / f'{k}.png'), picture[..., ::-1])
    camera = tmp_path / 'camera.yaml'
    camera.write_text('model: PINHOLE\nwidth: 240\nheight: 180\nfx: 200\nfy: 205\ncx: 121\n'
                      'cy: 88\n')
    build(images=folder, output=tmp_path / 'map', poses='none', split='all', camera=camera,
          scale=('0.png', '5.png', 2.0))
    (images,) = built
    assert [image.name for image in images] == [f'{k}.png' for k in range(6)]
    places = [images[k].map_from_camera[:3, 3] for k in (0, 5)]
    assert np.linalg.norm(places[0] - places[1]) == pytest.approx(2.0)
    report = json.loads((tmp_path / 'map' / 'poses_from_motion.json').read_text())
    assert report['placed'] == 6 and report['scale_from'] == 'a known distance'


@pytest.mark.parametrize('options, message', [
    ({'scale': ('a', 'b', 1.0)}, 'without poses'),
    ({'poses': 'none', 'masks': 'm'}, 'belong to given poses'),
    ({'camera': 'c.yaml'}, 'those of a bag')])
def test_options_that_do_not_go_together_are_refused(tmp_path, built, options, message):
    with pytest.raises(ConfigError, match=message):
        build(images=tmp_path, output=tmp_path / 'map', **options)
    assert not built
