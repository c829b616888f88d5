from pathlib import Path

from nerfmatch_ros.config import load_config
from nerfmatch_ros.mapping.build_map import BuildConfig

CONFIG = Path(__file__).parents[1] / 'config'


def test_build_map_yaml_shows_every_option_with_its_default():
    shown = (CONFIG / 'build_map.yaml').read_text()
    assert load_config(BuildConfig, CONFIG / 'build_map.yaml') == BuildConfig()
    for section in ('grid', 'mip', 'field_training', 'matcher', 'matcher_training',
                    'augmentation', 'localization'):
        assert f'{section}:' in shown
    assert len([line for line in shown.splitlines() if ':' in line]) > 80


def test_demo_map_yaml_is_a_valid_configuration():
    assert load_config(BuildConfig, CONFIG / 'demo_map.yaml') != BuildConfig()


def test_paper_yaml_makes_the_full_model():
    config = load_config(BuildConfig, CONFIG / 'paper.yaml')
    assert config.field.kind == 'mip' and config.minutes is None
    assert (config.matcher.self_attention, config.matcher.cross_attention) == (3, 1)
    assert config.matcher.backbone == 'convformer_b36' and config.matcher.feature_layer == 3
