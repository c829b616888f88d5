"""Training batches: the points an image sees lie on their texture in the augmented picture."""

from dataclasses import replace

from analytic_field import SphereField
from nerfmatch_ros.errors import DataError
from nerfmatch_ros.geometry.camera import Camera
from nerfmatch_ros.mapping.augmentation import AugmentationConfig
from nerfmatch_ros.mapping.match_dataset import MatchDataset
import numpy as np
import pytest
from sphere_scene import CAMERA, FRAME, POSES, sphere_images, sphere_references
import torch
import torch.nn.functional as F

NO_LIGHT = AugmentationConfig(exposure=0, tint=0, blur=0, noise=0)


@pytest.fixture(scope='module')
def dataset():
    images = sphere_images()
    return MatchDataset(images, sphere_references(images), FRAME, NO_LIGHT)


def test_seen_points_lie_on_their_colour(dataset):
    for step in range(4):
        batch = dataset.draw(3, 100, [0, step])
        assert batch.images.shape == (3, 3, 64, 80) and batch.points.shape == (300, 3)
        assert batch.images.min() >= 0 and batch.images.max() <= 1
        torch.testing.assert_close(batch.points.norm(dim=-1), torch.ones(300), atol=0.02, rtol=0)
        for image, seen, pixels in zip(batch.images, batch.seen, batch.pixels):
            assert len(seen) == len(pixels) > 20
            # (0, 0) is the centre of the first pixel.
            place = (pixels + 0.5) / torch.tensor([80.0, 64.0]) * 2 - 1
            found = F.grid_sample(image[None], place[None, None], align_corners=False,
                                  padding_mode='border')[0, :, 0].T
            expected = (batch.points[seen] + 2) / 4
            assert (found - expected).abs().mean() < 0.01
            # Some lie between the picture's last pixels and what is beyond its border.
            assert (found - expected).abs().amax(-1).quantile(0.9) < 0.02


def test_features_belong_to_their_points(dataset):
    batch = dataset.draw(2, 50, [1])
    torch.testing.assert_close(batch.features[:, :3].float(), batch.points, atol=1e-3, rtol=0)


def test_the_same_random_numbers_give_the_same_batch(dataset):
    first, second = (dataset.draw(2, 30, [3]) for _ in range(2))
    assert torch.equal(first.images, second.images) and torch.equal(first.points, second.points)
    assert all(torch.equal(a, b) for a, b in zip(first.pixels, second.pixels))


def test_partners_see_enough_of_a_view(dataset):
    assert all(k in partners for k, partners in enumerate(dataset.partners))
    away = sphere_images(poses=[POSES[0], turned_about(POSES[0])])
    lonely = MatchDataset(away, sphere_references(away), FRAME, NO_LIGHT)
    assert [partners.tolist() for partners in lonely.partners] == [[0], [1]]


def turned_about(pose):
    turned = pose.copy()
    turned[:3, :3] = pose[:3, :3] @ np.diag([-1.0, 1, -1])
    return turned


def test_pictures_of_several_sizes_are_not_mixed():
    small = Camera('PINHOLE', 64, 48, 64.0, 64.0, 31.5, 23.5)
    images = sphere_images() + sphere_images(poses=POSES[:1], camera=small)
    dataset = MatchDataset(images, sphere_references(images), FRAME, NO_LIGHT)
    sizes = {tuple(dataset.draw(2, 10, [0, step]).images.shape[-2:]) for step in range(30)}
    assert sizes == {(64, 80), (48, 64)}


def test_a_batch_may_be_larger_than_the_map(dataset):
    assert len(dataset.draw(9, 10, [0]).images) == 9


def test_a_field_without_surfaces_is_refused():
    images = sphere_images()
    empty = sphere_references(images, SphereField(density=0.01))
    with pytest.raises(DataError, match='no surface'):
        MatchDataset(images, empty, FRAME, NO_LIGHT)


def test_maps_without_inner_features_give_none():
    images = sphere_images(poses=POSES[:2], camera=replace(CAMERA))
    dataset = MatchDataset(images, sphere_references(images, feature_layer=None), FRAME, NO_LIGHT)
    assert dataset.draw(2, 10, [0]).features is None
