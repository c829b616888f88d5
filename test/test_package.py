"""What pip, colcon, rosdep and ros2 launch read agrees with the code and with each other."""

import ast
import os
from pathlib import Path
import re
import runpy
import stat
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import nerfmatch_ros
import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = 'nerfmatch_ros'
LAUNCH_FILES = sorted((ROOT / 'launch').glob('*.launch.py'))
# name on PyPI, where it differs from the name to import
IMPORT_NAMES = {'opencv-python-headless': 'cv2', 'pyyaml': 'yaml',
                'lightning-fabric': 'lightning_fabric', 'pillow': 'PIL', 'faiss-cpu': 'faiss'}
# in ROS: of the wheels, or of a ROS installation only
ROS_PACKAGES = {
    'rclpy', 'launch', 'launch_ros', 'cv_bridge', 'ament_index_python', 'tf2_ros', 'bondpy'}
EXECUTABLES = {'localizer', 'refiner', 'combined', 'doctor'}  # of ros2 run
OPTIONAL = {'bondpy'}  # used where it is installed


@pytest.fixture(scope='module')
def arguments():
    """Give what setup.py hands to setuptools."""
    given = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr('setuptools.setup', lambda **arguments: given.update(arguments))
        runpy.run_path(str(ROOT / 'setup.py'))
    return given


@pytest.mark.parametrize('given, expected', [
    ({}, '1000'), ({'GOMP_SPINCOUNT': '7'}, '7'), ({'OMP_WAIT_POLICY': 'ACTIVE'}, 'None')])
def test_threads_that_wait_soon_leave_the_cores_to_others_unless_told(given, expected):
    environment = {name: value for name, value in os.environ.items()
                   if name not in ('OMP_WAIT_POLICY', 'GOMP_SPINCOUNT')}
    shown = subprocess.run(
        [sys.executable, '-c',
         'import nerfmatch_ros, os, sys\n'
         'print(os.environ.get("GOMP_SPINCOUNT"), "torch" in sys.modules)'],
        env=environment | given, capture_output=True, text=True, check=True, cwd=ROOT)
    assert shown.stdout.split() == [expected, 'False']


@pytest.fixture(scope='module')
def manifest():
    return ElementTree.parse(ROOT / 'package.xml').getroot()


def imported_modules(*paths: Path) -> set[str]:
    """Give the top-level names that files import, at the top or inside functions."""
    names = set()
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split('.')[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add(node.module.split('.')[0])
    return names - set(sys.stdlib_module_names) - {PACKAGE}


def is_of_ros(name: str) -> bool:
    return name in ROS_PACKAGES or name.endswith(('_msgs', '_srvs', '_interfaces'))


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
    imported = imported_modules(*(ROOT / PACKAGE / 'ros').glob('*.py'), *LAUNCH_FILES)
    needed = {name for name in imported if is_of_ros(name)} - OPTIONAL
    declared = {element.text for element in manifest.iter('exec_depend')}
    assert needed <= declared
    assert needed >= {'rclpy', 'sensor_msgs', 'geometry_msgs', 'tf2_msgs', 'launch_ros'}


def test_every_library_that_is_imported_is_required(arguments):
    imported = {name for name in imported_modules(*(ROOT / PACKAGE).rglob('*.py'))
                if not is_of_ros(name)}
    extras = arguments['extras_require']
    listed = {IMPORT_NAMES.get(name, name)
              for name in names_of([*arguments['install_requires'], *extras['sfm'],
                                    *extras['scale']])}
    assert imported <= listed


def test_the_pinned_environment_fits_the_requirements(arguments):
    packaging = pytest.importorskip('packaging.requirements')
    extras = arguments['extras_require']
    for files, requirements in (
            (('torch.txt', 'base.txt', 'no-deps.txt'), arguments['install_requires']),
            (('ros-wheels.txt',), extras['ros-wheels']),
            (('dev.txt',), [*extras['sfm'], *extras['scale'], *extras['dev']])):
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
    assert {'launch/localize.launch.py', 'launch/replay.launch.py'} == set(
        files[f'share/{PACKAGE}/launch'])
    assert {f'config/{name}' for name in (
        'localize.yaml', 'fastdds_large_images.xml', 'nerfmatch.rviz', 'foxglove_layout.json')
    } <= set(files[f'share/{PACKAGE}/config'])
    assert {f'scripts/{name}' for name in EXECUTABLES} == set(files[f'lib/{PACKAGE}'])
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
    assert set(scripts) == {'nerfmatch', *EXECUTABLES}
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
