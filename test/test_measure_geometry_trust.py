"""The tool that measures trust: counts as trusted and right what is."""

from dataclasses import replace
import importlib.util
from pathlib import Path

from nerfmatch_ros.data.synthetic import default_camera, synthetic_images
from nerfmatch_ros.mapping.calibrate_scene_geometry import calibrate_scene_geometry
import numpy as np
import pytest
from remembering_network import Remembering

PATH = Path(__file__).resolve().parents[1] / 'tools' / 'measure_geometry_trust.py'


@pytest.fixture(scope='module')
def tool():
    specification = importlib.util.spec_from_file_location('measure_geometry_trust', PATH)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope='module')
def images(room):
    return synthetic_images('train', 8, default_camera(96, 64), room=room, supersample=1)


@pytest.fixture(scope='module')
def network(images):
    return Remembering(images)


@pytest.fixture(scope='module')
def calibration(network, images):
    return calibrate_scene_geometry(network, images[:4])


def test_photographs_of_the_place_are_trusted_and_right(tool, network, calibration, images):
    found = tool.trust_here(network, calibration, images[4:])
    assert found == {'images': 4, 'trusted': 1.0, 'right': 1.0, 'trusted_but_wrong': 0.0}


def test_a_wrong_pose_that_is_trusted_is_counted(tool, network, calibration, images):
    moved = images[4].map_from_camera.copy()
    moved[:3, 3] += 3
    found = tool.trust_here(network, calibration, [
        *images[5:], replace(images[4], map_from_camera=moved)])
    assert found['right'] == 0.75 and found['trusted_but_wrong'] == 0.25


def test_pictures_of_elsewhere_are_not_trusted(tool, network, calibration, images):
    random = np.random.default_rng(0)
    others = [replace(image, pixels=random.integers(256, size=image.rgb().shape, dtype=np.uint8))
              for image in images[:3]]
    found = tool.trust_elsewhere(network, calibration, others)
    assert found['images'] == 3 and found['trusted'] == 0 and found['highest'] < 0.5
