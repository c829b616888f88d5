"""`nerfmatch import official`: small checkpoints in the published format become a map."""

from argparse import Namespace
from dataclasses import replace
import json
from pathlib import Path, PosixPath
import pickle

import cv2
from nerfmatch_ros import cli
from nerfmatch_ros.errors import ConfigError, DataError
from nerfmatch_ros.importers import official
from nerfmatch_ros.importers.official import import_official, OfficialFiles, OfficialImportConfig
from nerfmatch_ros.localization.localizer import Localizer
from nerfmatch_ros.matching.make_matcher import make_matcher
from nerfmatch_ros.matching.matcher import MatcherConfig
from nerfmatch_ros.radiance_field.mip_field import MipField, MipFieldConfig
from nerfmatch_ros.scene_map import SceneMap
import numpy as np
import pytest
from sphere_scene import sphere_images
import torch

SIZE = 64  # pixels, the side of the squeezed picture
FIELD = MipFieldConfig(depth=6, coarse_samples=6, fine_samples=7, appearance_channels=16)
NERF_PARTS = {'encoder.': 'pts_linears.', 'density_head.': 'alpha_linear.',
              'bottleneck.': 'feature_linear.', 'view_layer.': 'views_linears.0.',
              'colour_head.': 'rgb_linear.'}


def save(path, weights, options):
    torch.save({'epoch': 1, 'state_dict': weights, 'callbacks': {}, 'hyper_parameters': {
        **{name: Namespace(**values) for name, values in options.items()},
        'exp_dir': PosixPath('outputs/x')}}, path)
    return path


def save_nerf(path, **data):
    torch.manual_seed(0)
    weights = {}
    for name, value in MipField(FIELD, images=3).state_dict().items():
        network, _, rest = name.partition('.')
        for ours, theirs in NERF_PARTS.items():
            if rest.startswith(ours):
                weights[f'model.nerf_{network}.{theirs}{rest[len(ours):]}'] = value
    weights['model.embedding_a.weight'] = torch.randn(3, 16)
    weights['model.xyz_encoder.scales'] = 2 ** torch.arange(15)
    network = {'layer_num': 6, 'hid_dim': 256, 'skips': [4]}
    return save(path, weights, {
        'data': {'normalize_scene': True, 'snorm_type': 'fst', 'max_frustum_depth': 2,
                 'scene': 'Sphere', **data},
        'coarse_nerf': {**network, 'num_pts': 6}, 'fine_nerf': {**network, 'num_pts': 7},
        'embedding': {'xyz_num_freqs': 15, 'dirs_num_freqs': 4, 'type': 'mip'},
        'render': {'white_bg': True}})


def save_mini(path):
    torch.manual_seed(1)
    matcher = make_matcher(MatcherConfig(
        kind='paper', backbone='convformer_b36', fine=False, point_encoding=False, point_hidden=0,
        threshold=0.0, official=True), 256)
    weights = {'model.' + name.replace('backbone.backbone.stages.', 'backbone.'): value
               for name, value in matcher.state_dict().items()}
    return save(path, weights, {
        'data': {'img_wh': [SIZE, SIZE], 'model_ds': 8, 'imagenet_norm': True,
                 'scene_dir': 'outputs/inter_layer3/x'},
        'model': {'pt_ftype': 'nerf', 'temp_type': 'mul', 'pt_feat_norm': False}})


@pytest.fixture(scope='module')
def release(tmp_path_factory):
    """Write checkpoints, annotations and pictures as the release has them."""
    folder = tmp_path_factory.mktemp('release')
    frames = []
    for k, image in enumerate(sphere_images()[:5]):
        name = f'seq1/frame{k:05d}.png'
        (folder / 'images' / 'seq1').mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / 'images' / name), image.rgb()[..., ::-1])
        matrix = image.camera.matrix()
        matrix[:2, 2] += 0.5
        frames.append({'file_path': name, 'intrinsics': matrix.tolist(),
                       'height': image.camera.height, 'width': image.camera.width,
                       'transform_matrix': image.map_from_camera.tolist()})
    (folder / 'transforms_Sphere_train.json').write_text(json.dumps({'frames': frames}))
    (folder / 'pairs.txt').write_text(
        'seq2/frame00000.png seq1/frame00003.png\nseq2/frame00000.png seq1/frame00001.png\n')
    save_nerf(folder / 'nerf.ckpt')
    save_mini(folder / 'mini.ckpt')
    return folder


def files_of(release, **changes):
    given = {'nerf': release / 'nerf.ckpt', 'matcher': release / 'mini.ckpt',
             'annotations': release / 'transforms_Sphere_train.json', 'images': release / 'images'}
    return OfficialFiles(**{**given, **changes})


@pytest.fixture(scope='module')
def imported(release, tmp_path_factory):
    output = tmp_path_factory.mktemp('maps') / 'sphere'
    return output, import_official(files_of(release), output)


def test_an_imported_map_holds_the_published_weights_to_the_last_bit(release, imported):
    output, scene_map = imported
    assert not output.with_name('sphere.import').exists()
    weights = torch.load(release / 'nerf.ckpt', weights_only=False)['state_dict']
    field = scene_map.field.state_dict()
    cache = scene_map.surface_cache  # all points, as there are few, with features of their rays
    assert len(cache) == 5 * 64 and cache.features.shape == (5 * 64, 256)
    assert not cache.normals.any()
    assert torch.equal(field['fine.encoder.2.weight'],
                       weights['model.nerf_fine.pts_linears.2.weight'])
    assert torch.equal(field['appearance.weight'], weights['model.embedding_a.weight'])
    assert scene_map.field.official and scene_map.field.random_rendering
    assert scene_map.field.white_background
    assert scene_map.working_size == (SIZE, SIZE) and scene_map.frame.ball
    assert scene_map.matcher_config.official and scene_map.matcher_config.feature_layer == 3
    assert 'CC BY-NC-SA 4.0' in scene_map.summary()['licence']
    assert len(scene_map.reference_names) == 5
    points, features = scene_map.references.view(2)
    assert points.shape == (SIZE * SIZE // 64, 3) and features.shape == (len(points), 256)
    assert scene_map.localization['start'] == 'retrieval' and scene_map.localization['top_k'] == 1


def test_the_same_import_gives_the_same_map(release, imported, tmp_path):
    _, first = imported
    second = import_official(files_of(release), tmp_path / 'map')
    for k in range(5):
        for ours, theirs in zip(first.references.view(k), second.references.view(k)):
            assert torch.equal(ours, theirs)
    assert torch.equal(first.references.descriptors, second.references.descriptors)


def test_even_sampling_gives_other_points_than_random(release, imported, tmp_path):
    _, random = imported
    even = import_official(files_of(release), tmp_path / 'map', OfficialImportConfig('even', 2))
    assert even.reference_names == ['seq1/frame00000.png', 'seq1/frame00004.png']
    assert not torch.equal(even.references.view(0)[0], random.references.view(0)[0])
    assert even.field.official and not even.field.random_rendering


def test_an_imported_map_localizes(imported):
    """The weights are random, so there is no pose, but matches and a reason."""
    output, _ = imported
    estimate = Localizer.load(output).localize_and_refine(sphere_images()[3])
    assert estimate.map_from_camera is None
    assert 'inliers' in estimate.reason or 'matches' in estimate.reason


def test_a_picture_is_known_again_by_its_descriptor(imported):
    output, _ = imported
    localizer = Localizer.load(output)
    for k, image in enumerate(sphere_images()[:5]):
        nearest = localizer.similar_views(image, 1)[0]
        np.testing.assert_allclose(nearest, image.map_from_camera, atol=1e-6, err_msg=str(k))


def test_pairs_choose_views_and_start_the_images_they_list(release, tmp_path, monkeypatch):
    scene_map = import_official(
        files_of(release, pairs=release / 'pairs.txt'), tmp_path / 'map')
    assert scene_map.reference_names == ['seq1/frame00001.png', 'seq1/frame00003.png']
    assert scene_map.neighbours == {'seq2/frame00000.png': [1, 0]}
    localizer = Localizer(scene_map)
    asked, references = [], localizer.views.references
    monkeypatch.setattr(localizer.views, 'references',
                        lambda numbers: asked.extend(numbers) or references(numbers))
    localizer.localize(replace(sphere_images()[0], name='seq2/frame00000.png'))
    assert asked == [1]


def test_cached_views_are_taken_instead_of_rendering(release, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    folder = tmp_path / 'views'
    folder.mkdir()
    stored = {'pt3d': rng.normal(size=(9, 3)).astype(np.float32),
              'pt_feat': rng.random((9, 256)).astype(np.float32),
              'pt_color': rng.random((9, 3)).astype(np.float32),
              'unnorm_scene': np.eye(4, dtype=np.float32)}
    for k in range(5):
        np.save(folder / f'seq1_frame{k:05d}.npy', stored, allow_pickle=True)
    monkeypatch.setattr(official, 'render_view', None)
    scene_map = import_official(files_of(release, cached_views=folder), tmp_path / 'map')
    points, features = scene_map.references.view(4)
    np.testing.assert_array_equal(points.numpy(), stored['pt3d'])
    np.testing.assert_allclose(features.float().numpy(), stored['pt_feat'], atol=1e-3)
    (folder / 'seq1_frame00002.npy').unlink()
    with pytest.raises(DataError, match='seq1_frame00002.npy does not exist'):
        import_official(files_of(release, cached_views=folder), tmp_path / 'other')


def test_a_matcher_whose_points_attend_finds_its_tokens_in_the_map(
        release, tmp_path, monkeypatch):
    torch.manual_seed(2)
    matcher = make_matcher(replace(
        MatcherConfig.published(fine=True, official=True), backbone='convformer_s18',
        self_attention=1), 256).eval().requires_grad_(False)
    monkeypatch.setattr(official, 'official_matcher', lambda *arguments: matcher)
    scene_map = import_official(
        files_of(release), tmp_path / 'map', OfficialImportConfig('even', 2))
    points, tokens = scene_map.references.view(1)
    assert scene_map.references.holds == 'tokens'
    assert tokens.shape == (len(points), matcher.token_channels)
    assert scene_map.surface.features.shape[1] == 256  # of the field, as those of any map
    assert tokens.dtype == torch.float32  # as the published network gives them
    image = sphere_images()[0]
    assert Localizer(scene_map).localize(image).matches == Localizer(
        SceneMap.load(tmp_path / 'map')).localize(image).matches > 0


def test_a_folder_of_somebody_else_is_left_alone(release, tmp_path):
    own = tmp_path / 'map.import'
    own.mkdir()
    (own / 'precious.txt').write_text('mine')
    with pytest.raises(DataError, match='map.import was not left by an import'):
        import_official(files_of(release), tmp_path / 'map')
    assert (own / 'precious.txt').read_text() == 'mine'


def test_files_of_different_scenes_are_warned_of(release, tmp_path, caplog):
    nerf = save_nerf(tmp_path / 'nerf.ckpt', scene='heads')
    import_official(files_of(release, nerf=nerf), tmp_path / 'map',
                    OfficialImportConfig(reference_views=1))
    assert 'different scenes (the NeRF: heads, the annotations: Sphere)' in caplog.text


def test_an_import_that_was_killed_goes_on(release, imported, tmp_path, monkeypatch):
    real, calls = official.render_view, []

    def rendering(*arguments, **options):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(official, 'render_view', rendering)
    with pytest.raises(KeyboardInterrupt):
        import_official(files_of(release), tmp_path / 'map')
    assert not (tmp_path / 'map').exists()
    scene_map = import_official(files_of(release), tmp_path / 'map')
    assert len(calls) == 3 + 3  # two views were kept
    assert torch.equal(scene_map.references.view(1)[0], imported[1].references.view(1)[0])


def test_the_command_makes_a_map(release, tmp_path, capsys):
    arguments = ['import', 'official', '--nerf', release / 'nerf.ckpt', '--matcher',
                 release / 'mini.ckpt', '--annotations', release / 'transforms_Sphere_train.json',
                 '--images', release / 'images', '--output', tmp_path / 'map',
                 '--reference-views', 2, '--device', 'cpu']
    assert cli.main([str(argument) for argument in arguments]) == 0
    assert len(SceneMap.load(tmp_path / 'map').reference_names) == 2


class Evil:
    """Unpickling it would create a file."""

    def __init__(self, victim):
        self.victim = victim

    def __reduce__(self):
        return Path.touch, (Path(self.victim),)


@pytest.mark.parametrize('which', ['nerf', 'matcher'])
def test_a_malicious_checkpoint_is_refused_and_nothing_is_left(release, tmp_path, which, capsys):
    victim = tmp_path / 'created'
    torch.save({'state_dict': {}, 'hyper_parameters': Evil(victim)}, tmp_path / 'evil.ckpt')
    pickle.loads(pickle.dumps(Evil(victim)))  # it does what it is said to do
    victim.unlink()
    given = {'--nerf': release / 'nerf.ckpt', '--matcher': release / 'mini.ckpt',
             '--annotations': release / 'transforms_Sphere_train.json',
             '--images': release / 'images', '--output': tmp_path / 'map',
             f'--{which}': tmp_path / 'evil.ckpt'}
    arguments = [str(word) for pair in given.items() for word in pair]
    assert cli.main(['import', 'official', *arguments]) == 2
    assert 'was refused: it asks to run code' in capsys.readouterr().err
    assert not victim.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ['evil.ckpt']


def test_what_does_not_fit_is_named(release, tmp_path):
    def refused(message, error=DataError, config=None, **changes):
        with pytest.raises(error, match=message):
            import_official(files_of(release, **changes), tmp_path / 'map', config)
        assert not (tmp_path / 'map').exists()

    refused('holds no NeRF', nerf=release / 'mini.ckpt')
    refused('holds no image backbone', matcher=release / 'nerf.ckpt')
    refused('frame00000.png.* does not exist', images=tmp_path)
    refused("data.snorm_type is 'other'", nerf=save_nerf(tmp_path / 'a.ckpt', snorm_type='other'))
    refused('max_frustum_depth is None',
            nerf=save_nerf(tmp_path / 'b.ckpt', max_frustum_depth=None))
    refused('either by their number or by pairs', ConfigError, OfficialImportConfig('even', 2),
            pairs=release / 'pairs.txt')
    text = (release / 'transforms_Sphere_train.json').read_text()
    (tmp_path / 'transforms_Sphere_test.json').write_text(text)
    refused('are test images', annotations=tmp_path / 'transforms_Sphere_test.json')
    frames = json.loads(text)['frames']
    (tmp_path / 'twice_train.json').write_text(json.dumps({'frames': frames + frames[:1]}))
    refused("'seq1/frame00000.png' more than once", annotations=tmp_path / 'twice_train.json')
    (tmp_path / 'none_train.json').write_text('{"frames": []}')
    refused('lists no frames', annotations=tmp_path / 'none_train.json')
    (tmp_path / 'pairs.txt').write_text('a.png nowhere.png\n')
    refused("names 'nowhere.png'", pairs=tmp_path / 'pairs.txt')
    with pytest.raises(ConfigError, match="sampling 'odd' is unknown"):
        OfficialImportConfig('odd')
