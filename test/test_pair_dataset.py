"""Training pairs: which they are, what truly belongs together in them, and who holds which."""

from dataclasses import replace

from nerfmatch_ros.errors import DataError
from nerfmatch_ros.mapping.augmentation import AugmentationConfig
from nerfmatch_ros.mapping.pair_dataset import covisible_pairs, PairDataset
from nerfmatch_ros.mapping.picture_cache import PictureCache
import numpy as np
import pytest
from sphere_scene import POSES, sphere_images, sphere_references
import torch
import torch.nn.functional as F

OVERLAP = torch.tensor([[1.0, 0.9, 0.3, 0.0], [0.5, 1.0, 0.6, 0.26], [0.2, 0.8, 1.0, 0.0],
                        [0.0, 0.0, 0.0, 0.0]])


@pytest.fixture(scope='module')
def images():
    return sphere_images(poses=POSES[:3])


@pytest.fixture(scope='module')
def references(images):
    return sphere_references(images)


def test_pairs_are_the_best_partners_and_each_image_with_itself():
    assert covisible_pairs(OVERLAP, least=0.25, partners=1, self_pairs=2).tolist() == [
        [0, 1], [0, 0], [0, 0], [1, 2], [1, 1], [1, 1], [2, 1], [2, 2], [2, 2]]
    every = covisible_pairs(OVERLAP, least=0.25, partners=0, self_pairs=0)
    assert every.tolist() == [[0, 1], [0, 2], [1, 2], [1, 0], [1, 3], [2, 1]]


@pytest.mark.parametrize('augmentation', [None, AugmentationConfig(
    exposure=0, tint=0, blur=0, noise=0)])
def test_visible_points_lie_on_their_colour(images, references, augmentation):
    dataset = PairDataset(images, references, self_pairs=1, augmentation=augmentation)
    groups = dataset.draw(4, 2, [0])
    assert [group.size for group in groups] == [2, 2]
    for pair in (pair for group in groups for pair in group.pairs):
        assert pair.image.shape == (3, 64, 80) and 0 <= pair.image.min() <= pair.image.max() <= 1
        assert len(pair.points) == len(pair.features) == len(pair.pixels) == len(pair.visible)
        assert pair.visible.sum() > 20
        place = (pair.pixels[pair.visible] + 0.5) / torch.tensor([80.0, 64.0]) * 2 - 1
        found = F.grid_sample(pair.image[None], place[None, None], align_corners=False,
                              padding_mode='border')[0, :, 0].T
        scene = 0.5 * pair.points[pair.visible]
        assert (found - (scene + 2) / 4).abs().mean() < 0.01


def test_points_behind_a_surface_or_the_camera_are_not_visible(references, images):
    away = POSES[0].copy()
    away[:3, :3] = away[:3, :3] @ np.diag([-1.0, 1, -1])
    turned = sphere_images(poses=[POSES[0], away])
    dataset = PairDataset(turned, sphere_references(turned), self_pairs=1)
    assert dataset.pairs.tolist() == [[0, 0], [1, 1]]
    pair = dataset._pair(0, 1, 0)
    assert not pair.visible.any() and len(pair.points) > 20


def test_processes_share_the_groups_that_one_would_have(images, references):
    dataset = PairDataset(images, references, augmentation=AugmentationConfig())
    whole = dataset.draw(5, 2, [3, 1])
    first, second = (dataset.draw(5, 2, [3, 1], rank=k, processes=2) for k in range(2))
    assert [group.size for group in whole] == [2, 2, 1]
    for ours, shared in zip(whole, (first[0], second[0], first[1])):
        assert ours.seed == shared.seed
        for a, b in zip(ours.pairs, shared.pairs):
            assert torch.equal(a.image, b.image) and torch.equal(a.pixels, b.pixels)
    assert not torch.equal(whole[0].pairs[0].image, dataset.draw(5, 2, [3, 2])[0].pairs[0].image)


def test_a_map_without_pairs_is_refused(images, references):
    blind = [replace(reference, depth=torch.full_like(reference.depth, 0.01))
             for reference in references]
    with pytest.raises(DataError, match='no surface'):
        PairDataset(images, blind)


def test_pictures_are_kept_up_to_a_number_of_bytes_and_else_read_anew(images, references):
    read = []

    class Counted:
        def __init__(self, image):
            self.image = image

        def rgb(self):
            read.append(self.image.name)
            return self.image.rgb()

    cache = PictureCache([Counted(image) for image in images], references,
                         kept_bytes=2 * 64 * 80 * 3)
    for _ in range(2):
        for k in range(3):
            np.testing.assert_array_equal(
                cache[k], references[k].view.picture(images[k].rgb()))
    assert read == ['0', '1', '2', '2'] and cache.size(0) == (64, 80) and len(cache) == 3
