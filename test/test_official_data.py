"""What is read of the published data: poses, pictures, pairs, cached views, true matches."""

from nerfmatch_ros.data.cached_view import cached_view_name, read_cached_view
from nerfmatch_ros.data.image_pairs import read_pairs
from nerfmatch_ros.data.release_annotations import read_annotations, scene_and_split
from nerfmatch_ros.data.working_image import as_tensor, working_view
from nerfmatch_ros.evaluation.metrics import pose_errors
from nerfmatch_ros.geometry.pose import inverse, transform_points
import numpy as np
from official_parity import Fixture, FOLDER, needs_fixtures
import pytest
import torch

pytestmark = needs_fixtures

DATA = FOLDER / 'dataset'
IMAGENET = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]
STRIDE = 8  # pixels of a cell


def images_of(split):
    """Read the annotations of a split; there is one scene."""
    file, = (DATA / 'annotations').glob(f'transforms_*_{split}.json')
    return read_annotations(file, DATA / 'data' / scene_and_split(file)[0])


def pairs_of(kind):
    file, = (DATA / 'pairs').glob(f'*/pairs-{kind}*.txt')
    return read_pairs(file)


def network_input(image, size):
    """Squeeze a photograph and normalise it as the backbone was pretrained: (3, size, size)."""
    picture = working_view(image.camera, image.camera.fx, size, size=(size, size)).picture(
        image.rgb())
    return (as_tensor(picture) - IMAGENET[0]) / IMAGENET[1]


def from_corner(camera):
    """Give the intrinsic matrix whose principal point counts from the corner of a pixel."""
    matrix = camera.matrix()
    matrix[:2, 2] += 0.5
    return matrix


@pytest.fixture(scope='module')
def data():
    return Fixture('data')


@pytest.fixture(scope='module')
def train():
    return images_of('train')


@pytest.fixture(scope='module')
def sample(data, train):
    """Query, reference view and the side of the picture of the sample of the dataset class."""
    query, reference = data['pair_ids'][data['sample_index'].item()].tolist()
    return train[query], train[reference], data['sample_image'].shape[-1]


def test_resized_and_normalised_picture(data, train):
    """The fixture is of one of the photographs, thinned."""
    expected = data['img480']
    size = round(data['sK'][0, 0].item() * train[0].camera.width)
    step = size // expected.shape[-1]
    picture = min((network_input(image, size) for image in train),
                  key=lambda picture: (picture[:, ::step, ::step] - expected).abs().mean())
    torch.testing.assert_close(picture[:, ::step, ::step], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        picture.double().mean(dim=(1, 2)), data['img480_mean'], rtol=1e-4, atol=1e-4)


def test_intrinsics_of_the_squeezed_picture(data, train):
    scale = data['sK'].numpy()
    for image in train:
        camera = image.camera
        size = np.round(scale[[0, 1], [0, 1]] * (camera.width, camera.height)).astype(int)
        np.testing.assert_allclose(
            from_corner(camera.scaled_to(*size)), scale @ from_corner(camera), rtol=1e-6)
    geometry = Fixture('geom')
    matching = [image for image in train
                if np.allclose(image.map_from_camera, geometry['c2w'], atol=1e-5)]
    size = round(data['sK'][0, 0].item() * matching[0].camera.width)
    np.testing.assert_allclose(
        from_corner(matching[0].camera.scaled_to(size, size)), geometry['K480'], rtol=1e-6)


@pytest.mark.parametrize('split, kind, key', [
    ('train', 'db', 'pair_ids'), ('test', 'query', 'test_pair_ids')])
def test_pair_lists(data, train, split, kind, key):
    """Without the pairs of an image with itself and those set apart for validation."""
    queries, pairs = images_of(split), pairs_of(kind)
    expected = [pair for pair in data[key].tolist() if split == 'test' or pair[0] != pair[1]]
    top = 1 + max(pairs[queries[i].name].index(train[j].name) for i, j in expected)
    places = {image.name: index for index, image in enumerate(train)}
    listed = [[index, places[name]] for index, query in enumerate(queries)
              for name in pairs.get(query.name, ())[:top]]
    kept = [pair for pair in listed if pair in expected]
    assert kept == expected
    assert split == 'train' or listed == expected


def test_sample_of_a_pair(data, sample):
    query, reference, size = sample
    torch.testing.assert_close(
        network_input(query, size), data['sample_image'], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        from_corner(query.camera.scaled_to(size, size)), data['sample_K'], rtol=1e-6)
    np.testing.assert_allclose(query.map_from_camera, data['sample_c2w'], atol=1e-5)
    np.testing.assert_allclose(reference.map_from_camera, data['sample_rc2w'], atol=1e-5)


def test_cached_view_of_the_reference(data, sample):
    file, = DATA.glob(f'scene_dirs/*/{cached_view_name(sample[1].name)}')
    view = read_cached_view(file)
    for ours, key in ((view.points, 'sample_pt3d'), (view.features, 'sample_pt_feat'),
                      (view.map_from_scene, 'sample_unnorm_scene')):
        np.testing.assert_array_equal(ours, data[key])
    assert view.colour.shape == view.points.shape


def test_every_cached_view_is_of_a_training_image(train):
    files = {path.name for path in DATA.glob('scene_dirs/*/*.npy')}
    assert files == {cached_view_name(image.name) for image in train}


def test_cells_projections_and_true_pairs(data, sample):
    query, _, size = sample
    camera = query.camera.scaled_to(size, size)
    torch.testing.assert_close(camera.pixel_grid(STRIDE) + 0.5, data['sample_pt2d'])
    camera_from_map = inverse(torch.from_numpy(query.map_from_camera))
    points = transform_points(camera_from_map, data['sample_pt3d'].double())
    projected = camera.project(points) + 0.5
    precise = points[:, 2].abs() > 0.05 * points.norm(dim=1)  # not beside the camera
    torch.testing.assert_close(
        projected.float()[precise], data['sample_pt2d_proj'][precise], rtol=1e-4, atol=2e-3)
    # The release leaves the first row and the first column of cells out.
    side = size // STRIDE
    cells = torch.floor(projected / STRIDE).long()
    inside = ((cells > 0) & (cells < side)).all(dim=1)
    true = torch.zeros_like(data['sample_conf_gt'])
    true[cells[inside, 1] * side + cells[inside, 0], inside.nonzero()[:, 0]] = 1
    near_edge = ((projected / STRIDE) % 1 - 0.5).abs().amax(dim=1) > 0.5 - 1e-3
    if not inside.any():  # then the release marks one pair at random
        assert data['sample_conf_gt'].sum() == 1
    else:
        assert torch.equal(true[:, ~near_edge], data['sample_conf_gt'][:, ~near_edge])
        assert not near_edge.all()


def test_pose_errors():
    geometry = Fixture('geom')
    errors = pose_errors([geometry['pose_a'].numpy()], [geometry['pose_b'].numpy()])
    ours = (errors.rotation[0], errors.translation[0])  # degrees, metres
    np.testing.assert_allclose(ours, geometry['pose_err_R_t'], rtol=1e-4)
