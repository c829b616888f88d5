"""Trust in scene geometry, learned with a network that knows its pictures and guesses others."""

from dataclasses import replace

from nerfmatch_ros.data.synthetic import default_camera, synthetic_images
from nerfmatch_ros.errors import ConfigError, DataError
from nerfmatch_ros.localization.geometry_trust import GeometryCalibration, GeometryTrust
from nerfmatch_ros.localization.scene_geometry_localizer import GeometryReader
from nerfmatch_ros.mapping.calibrate_scene_geometry import (
    calibrate_scene_geometry,
    GeometryCalibrationConfig,
    NO_PLACE,
    no_place,
)
import numpy as np
import pytest
from remembering_network import Remembering

CAMERA = default_camera(96, 64)


@pytest.fixture(scope='module')
def images(room):
    return synthetic_images('train', 8, CAMERA, room=room, supersample=1)


@pytest.fixture(scope='module')
def network(images):
    return Remembering(images)


@pytest.fixture(scope='module')
def calibration(network, images):
    return calibrate_scene_geometry(network, images[:4])


def test_photographs_are_trusted_and_pictures_of_no_place_are_not(network, images, calibration):
    reader, trust = GeometryReader(network), GeometryTrust(calibration)
    here = [trust.probability(reader.look(image).evidence) for image in images[4:]]
    random = np.random.default_rng(0)
    elsewhere = []
    for image in images[4:]:
        for kind in NO_PLACE:
            picture = no_place(image.rgb(), kind, [image.rgb()], random)
            found = reader.look(replace(image, pixels=picture, path=None))
            elsewhere.append(trust.probability(found.evidence))
    assert min(here) > 0.5
    assert np.mean(np.array(elsewhere) < 0.5) > 0.9


def test_the_limit_is_a_share_of_the_extent(network, images, calibration):
    assert calibration.limit_m == pytest.approx(0.6)
    assert calibration.limit_rad == pytest.approx(np.radians(10))
    tighter = calibrate_scene_geometry(
        network, images[:2], GeometryCalibrationConfig(limit_share=0.05, variations=1))
    assert tighter.limit_m == pytest.approx(0.3)


def test_errors_of_independent_cells_need_no_larger_covariance(calibration):
    assert 1 <= calibration.covariance_scale < 3


def test_what_new_places_show_gives_the_covariance(network, images):
    """Seen from places that it does not know, the network errs by 20 cm."""
    def misplaced(number, image):
        pose = image.map_from_camera.copy()
        pose[:3, 3] += np.random.default_rng(number).normal(size=3) * 0.2
        return replace(image, map_from_camera=pose)

    new = [misplaced(number, image) for number, image in enumerate(images[:4] * 5)]
    alone = calibrate_scene_geometry(network, images[:4])
    config = GeometryCalibrationConfig(limit_share=0.2)
    told = calibrate_scene_geometry(network, images[:4], config, new_views=new)
    assert alone.common_m < 0.05
    assert 0.15 < told.common_m < 0.25


def test_a_calibration_survives_its_file(calibration):
    assert GeometryCalibration.from_dict(calibration.to_dict()) == calibration


@pytest.mark.parametrize('kind', NO_PLACE)
def test_pictures_of_no_place_keep_their_size_and_are_no_copies(kind, images):
    picture = images[0].rgb()
    made = no_place(picture, kind, [image.rgb() for image in images[1:4]],
                    np.random.default_rng(1))
    assert made.shape == picture.shape and made.dtype == np.uint8
    assert np.abs(made.astype(int) - picture).mean() > 5


def test_a_network_cannot_be_measured_without_posed_photographs(network, images):
    with pytest.raises(DataError, match='keep at least one'):
        calibrate_scene_geometry(network, [])
    with pytest.raises(DataError, match='has no pose'):
        calibrate_scene_geometry(network, [replace(images[0], map_from_camera=None)])
    with pytest.raises(ConfigError, match='limit_share'):
        GeometryCalibrationConfig(limit_share=0)
    with pytest.raises(ConfigError, match='new_views'):
        GeometryCalibrationConfig(new_views=-1)
