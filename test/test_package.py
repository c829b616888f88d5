"""What pip, colcon, rosdep and ros2 launch read agrees with the code and with each other."""

import ast
import os
from pathlib import Path
import re
import runpy
import stat
import sys
from types import ModuleType, SimpleNamespace
import xml.etree.ElementTree as ElementTree

import nerfmatch_ros
import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = 'nerfmatch_ros'
LAUNCH_FILE = ROOT / 'launch' / 'localize.launch.py'
# name on PyPI, where it differs from the name to import
IMPORT_NAMES = {'opencv-python-headless': 'cv2', 'pyyaml': 'yaml'}
# in ROS: of the wheels, or of a ROS installation only
ROS_PACKAGES = {'rclpy', 'launch', 'launch_ros', 'cv_bridge', 'ament_index_python'}


@pytest.fixture(scope='module')
def arguments():
    """Give what setup.py hands to setuptools."""
    given = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr('setuptools.setup', lambda **arguments: given.update(arguments))
        runpy.run_path(str(ROOT / 'setup.py'))
    return given


@pytest.fixture(scope='module')
def manifest():
    return ElementTree.parse(ROOT / 'package.xml').getroot()


def imported_modules(*paths: Path) -> set[str]:
    """Give the top-level names that files import, at the top or inside functions."""
    names = set().union(*(re.findall(r'^ *(?:import|from) (\w+)', path.read_text(), re.MULTILINE)
                          for path in paths))
    return names - set(sys.stdlib_module_names) - {PACKAGE}


def is_of_ros(name: str) -> bool:
    return name in ROS_PACKAGES or name.endswith(('_msgs', '_interfaces'))


def names_of(requirements) -> set[str]:
    return {re.match(r'[\w.-]+', line).group().lower() for line in requirements}


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / 'requirements' / name).read_text().splitlines()
    return dict(line.split(';')[0].strip().split('==') for line in lines if '==' in line)


def test_version_name_and_licence_are_the_same_everywhere(arguments, manifest):
    assert arguments['name'] == manifest.findtext('name') == PACKAGE
    assert arguments['version'] == manifest.findtext('version') == nerfmatch_ros.__version__
    assert arguments['license'] == manifest.findtext('license') == 'Apache-2.0'
    assert 'Apache License' in (ROOT / 'LICENSE').read_text()[:200]


def test_colcon_takes_the_package_for_one_of_ament(manifest):
    assert manifest.findtext('export/build_type') == 'ament_python'
    # An invalid address silently makes it a plain Python package.
    email = manifest.find('maintainer').get('email')
    assert re.fullmatch(r'[a-zA-Z0-9._%+-]+@[a-zA-Z0-9._%+-]+\.[a-zA-Z]{2,}', email)


def test_every_ros_package_that_is_imported_is_a_dependency(manifest):
    imported = imported_modules(*(ROOT / PACKAGE / 'ros').glob('*.py'), LAUNCH_FILE)
    needed = {name for name in imported if is_of_ros(name)}
    declared = {element.text for element in manifest.iter('exec_depend')}
    assert needed <= declared
    assert needed >= {'rclpy', 'sensor_msgs', 'geometry_msgs', 'tf2_msgs', 'launch_ros'}


def test_every_library_that_is_imported_is_required(arguments):
    imported = {name for name in imported_modules(*(ROOT / PACKAGE).rglob('*.py'))
                if not is_of_ros(name)}
    extras = arguments['extras_require']
    listed = {IMPORT_NAMES.get(name, name)
              for name in names_of([*arguments['install_requires'], *extras['sfm']])}
    assert imported <= listed


def test_the_pinned_environment_fits_the_requirements(arguments):
    packaging = pytest.importorskip('packaging.requirements')
    extras = arguments['extras_require']
    for files, requirements in (
            (('torch.txt', 'base.txt', 'no-deps.txt'), arguments['install_requires']),
            (('ros-wheels.txt',), extras['ros-wheels']),
            (('dev.txt',), [*extras['sfm'], *extras['dev']])):
        pinned = {packaging.Requirement(name).name.lower(): version
                  for file in files for name, version in pins(file).items()}
        for line in requirements:
            requirement = packaging.Requirement(line)
            assert pinned[requirement.name.lower()] in requirement.specifier, line


def test_installed_files_exist_and_are_where_ros_looks(arguments):
    files = dict(arguments['data_files'])
    for path in [path for paths in files.values() for path in paths]:
        assert (ROOT / path).is_file()
    index = 'share/ament_index/resource_index/packages'
    assert [Path(path).name for path in files[index]] == [PACKAGE]
    assert files[f'share/{PACKAGE}'] == ['package.xml']
    assert 'launch/localize.launch.py' in files[f'share/{PACKAGE}/launch']
    assert {'config/localize.yaml', 'config/fastdds_large_images.xml'} <= set(
        files[f'share/{PACKAGE}/config'])
    assert 'scripts/localizer' in files[f'lib/{PACKAGE}']
    packages = {str(path.parent.relative_to(ROOT)).replace(os.sep, '.')
                for path in (ROOT / PACKAGE).rglob('__init__.py')}
    assert packages == set(arguments['packages'])


def test_the_demo_map_is_part_of_the_package(arguments):
    files = {path.relative_to(ROOT / PACKAGE)
             for path in (ROOT / PACKAGE / 'demo_map').rglob('*') if path.is_file()}
    assert {Path(path) for path in arguments['package_data'][PACKAGE]} == files


def test_executables_can_be_run_and_name_functions_that_exist(arguments):
    for path in (ROOT / 'scripts').iterdir():
        assert stat.S_IMODE(path.stat().st_mode) & 0o555 == 0o555
        assert path.read_text().startswith('#!/bin/sh\n')
        module = re.search(r'-m (\S+)', path.read_text()).group(1)
        assert (ROOT / (module.replace('.', '/') + '.py')).is_file()
    scripts = dict(line.split(' = ') for line in arguments['entry_points']['console_scripts'])
    assert set(scripts) == {'nerfmatch', 'localizer'}
    for target in scripts.values():
        module, function = target.split(':')
        tree = ast.parse((ROOT / (module.replace('.', '/') + '.py')).read_text())
        assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_the_transport_profile_applies_to_every_process():
    name = '{http://www.eprosima.com}'
    root = ElementTree.parse(ROOT / 'config' / 'fastdds_large_images.xml').getroot()
    made = {element.text for element in root.findall(
        f'{name}profiles/{name}transport_descriptors//{name}transport_id')}
    participant = root.find(f'{name}profiles/{name}participant')
    used = {element.text for element in participant.iter(f'{name}transport_id')}
    assert participant.get('is_default_profile') == 'true' and made == used


class Recorder(SimpleNamespace):
    """Stands for a class of launch: keeps what it is made with."""

    def __init__(self, *values, **options):
        super().__init__(values=values, **options)


class Configuration(Recorder):
    def perform(self, context):
        return context[self.values[0]]


@pytest.fixture
def launch_file(monkeypatch, tmp_path):
    """Give the launch file run on recorders, with the arguments that it declares."""
    share = tmp_path / 'share'
    (share / 'config').mkdir(parents=True)
    (share / 'config' / 'localize.yaml').touch()
    modules = {
        'ament_index_python.packages': {'get_package_share_directory': lambda name: str(share)},
        'launch': {'LaunchDescription': Recorder},
        'launch.actions': {'DeclareLaunchArgument': Recorder, 'OpaqueFunction': Recorder},
        'launch.substitutions': {'LaunchConfiguration': Configuration},
        'launch_ros.actions': {'Node': Recorder},
        'launch_ros.parameter_descriptions': {
            'ParameterFile': Recorder, 'ParameterValue': Recorder},
    }
    for name, content in modules.items():
        for part in (name.split('.')[0], name):
            monkeypatch.setitem(sys.modules, part, ModuleType(part))
    for name, content in modules.items():
        vars(sys.modules[name]).update(content)
    for name in ('FASTDDS_DEFAULT_PROFILES_FILE', 'FASTRTPS_DEFAULT_PROFILES_FILE', 'ROS_DISTRO'):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / 'map').mkdir()
    (tmp_path / 'map' / 'map.yaml').touch()
    run = runpy.run_path(str(LAUNCH_FILE))
    entities = run['generate_launch_description']().values[0]
    declared = {entity.values[0]: entity for entity in entities[:-1]}
    defaults = {name: getattr(entity, 'default_value', None) for name, entity in declared.items()}
    return SimpleNamespace(
        declared=declared, run=run, share=share, map=str(tmp_path / 'map'),
        node=lambda **given: run['make_node']({**defaults, **given})[0])


def test_launch_arguments_are_described_and_only_the_map_is_required(launch_file):
    required = {name for name, argument in launch_file.declared.items()
                if not hasattr(argument, 'default_value')}
    assert required == {'map'}
    assert all(len(argument.description) > 15 for argument in launch_file.declared.values())
    assert set(launch_file.declared) == {
        'map', 'image_topic', 'camera_info_topic', 'device', 'global_frame', 'namespace',
        'use_sim_time', 'params_file', 'log_level'}


def test_launch_overrides_the_file_only_with_what_is_given(launch_file):
    node = launch_file.node(map=launch_file.map)
    assert (node.package, node.executable) == (PACKAGE, 'localizer')
    file, own = node.parameters
    assert file.values == (str(launch_file.share / 'config' / 'localize.yaml'),)
    assert set(own) == {'map_path', 'use_sim_time'} and own['use_sim_time'] is False
    assert own['map_path'].values == (launch_file.map,) and own['map_path'].value_type is str
    assert dict(node.remappings) == {'image': 'image', 'camera_info': 'camera_info'}
    node = launch_file.node(map=launch_file.map, device='cpu', global_frame='world',
                            use_sim_time='true', namespace='/robots/one', log_level='debug',
                            image_topic='/camera/color/image_raw')
    own = node.parameters[1]
    assert own['device'].values == ('cpu',) and own['global_frame_id'].values == ('world',)
    assert own['use_sim_time'] is True
    assert dict(node.remappings) == {
        'image': '/camera/color/image_raw', 'camera_info': '/camera/color/camera_info',
        '/tf': 'tf', '/tf_static': 'tf_static'}
    assert node.ros_arguments == ['--log-level', 'robots.one.nerfmatch_localizer:=debug']


def test_launch_says_what_is_wrong_with_the_map(launch_file, tmp_path):
    for folder, cause in (('/no/where', 'is no folder'), (str(tmp_path), 'has no map.yaml')):
        with pytest.raises(RuntimeError, match=f'{folder}.*{cause}.*nerfmatch build'):
            launch_file.node(map=folder)
    with pytest.raises(RuntimeError, match='params_file.*does not exist'):
        launch_file.node(map=launch_file.map, params_file='/no/where.yaml')


@pytest.mark.parametrize('distribution, variable', [
    ('humble', 'FASTRTPS_DEFAULT_PROFILES_FILE'), ('jazzy', 'FASTRTPS_DEFAULT_PROFILES_FILE'),
    ('kilted', 'FASTDDS_DEFAULT_PROFILES_FILE'), ('', 'FASTDDS_DEFAULT_PROFILES_FILE')])
def test_launch_sets_the_transport_profile_unless_the_user_has_one(
        launch_file, monkeypatch, distribution, variable):
    monkeypatch.setenv('ROS_DISTRO', distribution)
    profile = str(launch_file.share / 'config' / 'fastdds_large_images.xml')
    assert launch_file.node(map=launch_file.map).additional_env == {variable: profile}
    monkeypatch.setenv('FASTRTPS_DEFAULT_PROFILES_FILE', 'mine.xml')
    assert launch_file.node(map=launch_file.map).additional_env == {}


def test_the_launch_file_loads_where_launch_is_installed():
    # The folder launch/ is importable as an empty package of that name: ask for its content.
    for name in ('launch.actions', 'launch_ros.actions'):
        pytest.importorskip(name, reason='needs launch and launch_ros (a sourced ROS 2)')
    description = runpy.run_path(str(LAUNCH_FILE))['generate_launch_description']()
    assert {'map', 'device'} <= {a.name for a in description.get_launch_arguments()}
