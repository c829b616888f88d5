import ast
from dataclasses import fields
import json
from pathlib import Path

from nerfmatch_ros.config import load_config
from nerfmatch_ros.mapping.build_config import BuildConfig, SceneFrameConfig
from nerfmatch_ros.mapping.changes import ChangeConfig
from nerfmatch_ros.mapping.placement import PlacementConfig
from nerfmatch_ros.mapping.rehearsal import RehearsalConfig
from nerfmatch_ros.mapping.update_config import UpdateConfig
from nerfmatch_ros.matching.matcher import MatcherConfig
from nerfmatch_ros.radiance_field.mip_field import MipFieldConfig
from nerfmatch_ros.scene_map import FieldConfig
import pytest
import yaml

CONFIG = Path(__file__).parents[1] / 'config'


def test_build_map_yaml_shows_every_option_with_its_default():
    shown = (CONFIG / 'build_map.yaml').read_text()
    assert load_config(BuildConfig, CONFIG / 'build_map.yaml') == BuildConfig()
    for section in ('registration', 'features', 'pairs', 'grid', 'mip', 'field_training',
                    'matcher', 'matcher_training', 'augmentation', 'localization'):
        assert f'{section}:' in shown
    assert len([line for line in shown.splitlines() if ':' in line]) > 80


def test_update_map_yaml_shows_the_options_of_an_update_with_their_defaults():
    assert load_config(UpdateConfig, CONFIG / 'update_map.yaml') == UpdateConfig()
    shown = (CONFIG / 'update_map.yaml').read_text()
    for section in (UpdateConfig, PlacementConfig, ChangeConfig, RehearsalConfig):
        assert all(f'{option.name}:' in shown for option in fields(section))


def test_demo_map_yaml_is_a_valid_configuration():
    assert load_config(BuildConfig, CONFIG / 'demo_map.yaml') != BuildConfig()


@pytest.mark.parametrize('scenes, depth, appearance, white, top_k, partners', [
    ('cambridge', 50.0, 16, True, 10, 20), ('7scenes', 1.0, 0, False, 1, 30)])
def test_recipes_train_the_models_of_the_paper(
        scenes, depth, appearance, white, top_k, partners):
    config = load_config(BuildConfig, CONFIG / f'paper_{scenes}.yaml')
    assert config.minutes is None and config.working_size == config.field_training.size
    assert config.working_size == (480, 480) and config.longest_side == 480
    assert config.scene_frame == SceneFrameConfig('frustums', depth)
    assert config.field == FieldConfig(kind='mip', mip=MipFieldConfig(
        appearance_channels=appearance, white_background=white))
    field, matching = config.field_training, config.matcher_training
    assert (field.loss, field.rays, field.network_rate) == ('paper', 8 * 9216, 1.6e-3)
    assert field.depth_rays == config.depth.images == 0 and field.distortion_weight == 0.01
    assert abs(field.steps * field.rays / (900 * 480 * 480) - 15) < 0.01  # epochs of 900 images
    assert config.matcher == MatcherConfig.published(fine=True, pretrained=True)
    assert (matching.loss, matching.rate, matching.weight_decay) == ('focal', 4e-4, 0.0)
    assert matching.steps * matching.batch == 50 * 10000
    assert (matching.partners, matching.self_pairs, matching.augment) == (partners, 10, False)
    assert config.localization.start == 'retrieval' and config.localization.top_k == top_k
    assert config.localization.rounds == (scenes == '7scenes')


def topics_of_the_nodes():
    """Give the topics that the nodes name in their sources, with ~ written out."""
    names = set()
    for path in (CONFIG.parent / 'nerfmatch_ros' / 'ros').glob('*.py'):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                names.add(node.value.replace('~/', 'nerfmatch_localizer/').lstrip('/'))
    return names


def test_rviz_shows_topics_that_exist_and_a_namespace_moves_them_all():
    root = yaml.safe_load((CONFIG / 'nerfmatch.rviz').read_text())['Visualization Manager']
    shown = {item['Name']: item['Topic'] for item in root['Displays'] if 'Topic' in item}
    assert set(shown) >= {'Pose', 'Refined pose', 'Path', 'Retrieval poses', 'Inlier points',
                          'Camera', 'Matches', 'Rendered'}
    tools = [tool['Topic'] for tool in root['Tools'] if 'Topic' in tool]
    for topic in (*shown.values(), *tools):
        assert not topic['Value'].startswith('/')
        assert topic['Value'] in topics_of_the_nodes()
    assert {'rviz_default_plugins/TF', 'rviz_default_plugins/Grid'} <= {
        item['Class'] for item in root['Displays']}
    # Most cameras offer their images as best effort, and a display that asks for more sees none.
    assert shown['Camera']['Reliability Policy'] == 'Best Effort'
    # The newest pose is there for a display that comes late.
    assert shown['Pose']['Durability Policy'] == 'Transient Local'


def test_what_costs_computing_time_is_switched_off_in_rviz():
    root = yaml.safe_load((CONFIG / 'nerfmatch.rviz').read_text())['Visualization Manager']
    enabled = {item['Name']: item['Enabled'] for item in root['Displays']}
    assert not enabled['Rendered'] and not enabled['Retrieval poses'] and enabled['Pose']


def test_the_foxglove_layout_shows_topics_that_exist_in_panels_that_exist():
    layout = json.loads((CONFIG / 'foxglove_layout.json').read_text())
    panels = layout['configById']

    def leaves(tree):
        return {tree} if isinstance(tree, str) else leaves(tree['first']) | leaves(tree['second'])

    assert leaves(layout['layout']) == set(panels)
    assert {name.partition('!')[0] for name in panels} == {
        '3D', 'Image', 'DiagnosticSummary', 'Plot', 'RawMessages'}
    topics = set(panels['3D!nerfmatch']['topics']) | {
        panels['3D!nerfmatch']['publish']['poseEstimateTopic'],
        panels['DiagnosticSummary!nerfmatch']['topicToRender'],
        panels['RawMessages!status']['topicPath']}
    for name, panel in panels.items():
        if name.startswith('Image'):
            topics.add(panel['imageMode']['imageTopic'])
        elif name.startswith('Plot'):
            topics |= {path['value'].partition('.')[0] for path in panel['paths']}
    assert all(topic.startswith('/') for topic in topics)
    assert {topic[1:] for topic in topics} <= topics_of_the_nodes()
