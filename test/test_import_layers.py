"""The folders build on one another in one direction only; see docs/architecture.md."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / 'nerfmatch_ros'

# A module imports only from levels below that of its own folder, or from its own folder.
LEVELS = {
    'errors': 0, 'files': 0, 'memory': 0, 'stage_clock': 0, 'tensor_file': 0, 'work_note': 0,
    'config': 1, 'geometry': 1, 'precision': 1, 'weights_file': 1,
    'data': 2, 'matching': 2, 'radiance_field': 2, 'references': 2, 'retrieval': 2,
    'scene_geometry': 3,
    'scene_map': 4,
    'field_file': 5, 'localization': 5,
    'evaluation': 6, 'mapping': 6,
    'importers': 7, 'registration_bench': 7, 'ros': 7, 'scene_geometry_bench': 7,
    'demo': 8, 'verb_options': 8,
    'bench_verbs': 9, 'build_verbs': 9, 'import_verbs': 9, 'map_life_verbs': 9, 'train_verbs': 9,
    'cli': 10,
}

# Each of these libraries is imported in these places and nowhere else.
DOORS = {
    'poselib': {'localization/absolute_pose.py', 'mapping/relative_pose.py'},
    'timm': {'matching/backbone.py', 'retrieval.py'},
    'faiss': {'retrieval.py'},
    'matplotlib': {'evaluation/pictures.py'},
    'tyro': {'bench_verbs.py', 'build_verbs.py', 'cli.py', 'import_verbs.py',
             'map_life_verbs.py', 'train_verbs.py', 'verb_options.py'},
    'pycolmap': {'data/colmap.py', 'mapping/structure_from_motion.py'},
    'lightning_fabric': {'mapping/'},
    'rosbags': {'ros/bag'},
    'rclpy': {'ros/'},
    'sensor_msgs': {'ros/'},
    'geometry_msgs': {'ros/'},
    'tf2_msgs': {'ros/'},
    'tf2_ros': {'ros/'},
    'cv_bridge': {'ros/'},
}

MODULES = sorted(PACKAGE.rglob('*.py'))


def imports(path):
    """Every module named by an import statement, those inside functions included."""
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'{path}: write imports in full, not relative'
            if node.module == 'nerfmatch_ros':
                for alias in node.names:
                    yield f'nerfmatch_ros.{alias.name}'
            else:
                yield node.module


def folder_of(module):
    parts = module.split('.')
    return parts[1] if len(parts) > 1 else None


def name_of(path):
    relative = path.relative_to(PACKAGE)
    return relative.parts[0].removesuffix('.py')


def own_modules(path):
    for module in imports(path):
        folder = folder_of(module) if module.split('.')[0] == 'nerfmatch_ros' else None
        if folder in LEVELS or (folder and (PACKAGE / folder).exists()):
            yield folder


@pytest.mark.parametrize('path', MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_downwards(path):
    name = name_of(path)
    if name == '__init__':
        return
    assert name in LEVELS, f'give {name} a level in {Path(__file__).name}'
    for folder in own_modules(path):
        assert folder == name or LEVELS[folder] < LEVELS[name], (
            f'{path.relative_to(PACKAGE)} (level {LEVELS[name]}) must not import {folder} '
            f'(level {LEVELS[folder]})')


@pytest.mark.parametrize('library', sorted(DOORS))
def test_library_enters_by_its_door(library):
    for path in MODULES:
        if library in {module.split('.')[0] for module in imports(path)}:
            relative = path.relative_to(PACKAGE).as_posix()
            assert relative.startswith(tuple(DOORS[library])), f'{relative} imports {library}'


def test_nothing_imports_the_tests_or_the_tools():
    for path in MODULES:
        assert not {'test', 'tests', 'tools'} & {m.split('.')[0] for m in imports(path)}, path
