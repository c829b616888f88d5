"""Reference views in a file: they come back as they were, and a cut file is gone on with."""

from analytic_field import SphereField
from nerfmatch_ros.errors import DataError
from nerfmatch_ros.mapping import reference_store
from nerfmatch_ros.mapping.reference_store import open_references, render_into_store
import pytest
from sphere_scene import FRAME, sphere_images, sphere_references
import torch


@pytest.fixture(scope='module')
def images():
    return sphere_images()


def render(path, images, layer=2, **options):
    render_into_store(path, SphereField(), FRAME, images, feature_layer=layer, longest_side=80,
                      **options)
    return open_references(path, images, longest_side=80)


def assert_same(stored, references):
    assert len(stored) == len(references)
    for one, other in zip(stored, references):
        assert one.name == other.name and one.view == other.view
        for name in ('map_from_camera', 'points', 'depth', 'features'):
            given, expected = getattr(one, name), getattr(other, name)
            if expected is None:
                assert given is None
            else:
                assert given.dtype == expected.dtype and torch.equal(given, expected), name


@pytest.mark.parametrize('layer', [None, 2])
def test_stored_views_are_those_kept_in_memory(images, tmp_path, layer):
    assert_same(render(tmp_path / 'references', images, layer),
                sphere_references(images, feature_layer=layer))


def test_what_is_read_is_not_kept_and_cannot_change_the_file(images, tmp_path):
    view = render(tmp_path / 'references', images)[1]
    first = view.points
    before = first.clone()
    first += 1
    assert torch.equal(view.points, before)


def test_a_view_without_any_surface_is_stored(images, tmp_path):
    render_into_store(tmp_path / 'references', SphereField(density=0.1), FRAME, images[:2],
                      feature_layer=1, longest_side=80)
    views = open_references(tmp_path / 'references', images[:2], longest_side=80)
    assert [tuple(view.points.shape) for view in views] == [(0, 3)] * 2
    assert views[0].features.shape[0] == 0 and views[0].depth.numel()


@pytest.mark.parametrize('cut', [0, 1, 60])
def test_a_killed_rendering_goes_on_after_the_last_whole_view(
        images, tmp_path, monkeypatch, cut):
    path, rendered = tmp_path / 'references', []
    render(path, images[:3])
    index = path.with_name('references.index')
    index.write_bytes(index.read_bytes()[:-cut or None])
    with open(path, 'ab') as file:
        file.write(b'half a view')
    original = reference_store.render_reference

    def counting(field, frame, image, *args, **options):
        rendered.append(image.name)
        return original(field, frame, image, *args, **options)

    monkeypatch.setattr(reference_store, 'render_reference', counting)
    assert_same(render(path, images), sphere_references(images))
    assert rendered == [image.name for image in images][2 if cut else 3:]


def test_views_of_other_photographs_are_refused(images, tmp_path):
    render(tmp_path / 'references', images[:3])
    with pytest.raises(DataError, match='other photographs'):
        open_references(tmp_path / 'references', images[1:4], longest_side=80)
