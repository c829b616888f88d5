"""The launch files: what they start, first on stand-ins for launch, then on launch itself."""

import json
import os
from pathlib import Path
import runpy
import subprocess
import sys
from types import ModuleType, SimpleNamespace

from nerfmatch_ros.ros.parameter_field import specifications
from nerfmatch_ros.ros.parameters import LocalizerParameters
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
LOCALIZE, REPLAY = ROOT / 'launch' / 'localize.launch.py', ROOT / 'launch' / 'replay.launch.py'
PROFILES = 'FASTDDS_DEFAULT_PROFILES_FILE', 'FASTRTPS_DEFAULT_PROFILES_FILE'
TIMEOUT = 120.0  # seconds; the machine may be busy


class Recorder(SimpleNamespace):
    """Stands for a class of launch: keeps what it is made with."""

    def __init__(self, *values, **options):
        super().__init__(kind=type(self).__name__, values=values, **options)


class Configuration(Recorder):
    def perform(self, context):
        return context[self.values[0]]


class PackageNotFoundError(Exception):
    pass


def recorders(*names):
    return {name: type(name, (Recorder,), {}) for name in names}


def prefix_where_installed(installed):
    def get_package_prefix(name):
        if name not in installed:
            raise PackageNotFoundError(name)
    return get_package_prefix


@pytest.fixture
def launch_file(monkeypatch, tmp_path):
    """Give the launch file run on recorders, with the arguments that it declares."""
    share = tmp_path / 'share'
    (share / 'config').mkdir(parents=True)
    (share / 'config' / 'localize.yaml').touch()
    installed = set()
    modules = {
        'ament_index_python.packages': {
            'get_package_share_directory': lambda name: str(share),
            'get_package_prefix': prefix_where_installed(installed),
            'PackageNotFoundError': PackageNotFoundError},
        'launch': recorders('LaunchDescription'),
        'launch.actions': recorders(
            'DeclareLaunchArgument', 'ExecuteProcess', 'LogInfo', 'OpaqueFunction',
            'RegisterEventHandler', 'Shutdown', 'TimerAction', 'IncludeLaunchDescription'),
        'launch.event_handlers': recorders('OnProcessExit'),
        'launch.launch_description_sources': recorders('PythonLaunchDescriptionSource'),
        'launch.substitutions': {'LaunchConfiguration': Configuration},
        'launch_ros.actions': recorders('LifecycleNode', 'Node'),
        'launch_ros.parameter_descriptions': recorders('ParameterFile', 'ParameterValue'),
        'launch_ros.ros_adapters': {'get_ros_node': lambda context: context.ros_node},
        'lifecycle_msgs.msg': {'State': SimpleNamespace(PRIMARY_STATE_ACTIVE=3)},
        'lifecycle_msgs.srv': {'GetState': SimpleNamespace(Request=Recorder)},
    }
    for name, content in modules.items():
        for part in (name.split('.')[0], name):
            monkeypatch.setitem(sys.modules, part, ModuleType(part))
    for name, content in modules.items():
        vars(sys.modules[name]).update(content)
    for name in (*PROFILES, 'ROS_DISTRO'):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / 'map').mkdir()
    (tmp_path / 'map' / 'map.yaml').touch()
    run = runpy.run_path(str(LOCALIZE))
    entities = run['generate_launch_description']().values[0]
    declared = {entity.values[0]: entity for entity in entities[:-1]}
    defaults = {name: getattr(entity, 'default_value', None) for name, entity in declared.items()}
    make_actions = entities[-1].function

    def actions(**given):
        unknown = set(given) - set(declared)
        assert not unknown
        return make_actions({**defaults, 'map': str(tmp_path / 'map'), **given})

    def nodes(**given):
        return {action.name: action for action in actions(**given)
                if action.kind in ('LifecycleNode', 'Node')}

    return SimpleNamespace(declared=declared, run=run, share=share, map=str(tmp_path / 'map'),
                           actions=actions, nodes=nodes, installed=installed)


def plain(parameters):
    """Give parameters as what they come to."""
    return {name: value.values[0] if isinstance(value, Recorder) else value
            for name, value in parameters.items()}


def test_launch_arguments_are_described_and_only_the_map_is_required(launch_file):
    required = {name for name, argument in launch_file.declared.items()
                if not hasattr(argument, 'default_value')}
    assert required == {'map'}
    for argument in launch_file.declared.values():
        assert len(argument.description) > 15
        assert argument.kind == 'DeclareLaunchArgument'
        choices = getattr(argument, 'choices', None)
        assert choices is None or argument.default_value in choices
    assert set(launch_file.declared) == {
        'map', 'image_topic', 'camera_info_topic', 'image_transport', 'namespace', 'params_file',
        'device', 'localizer', 'tf_mode', 'global_frame', 'odom_frame', 'base_frame', 'refine',
        'autostart', 'use_lifecycle_manager', 'use_respawn', 'use_sim_time', 'rviz', 'bag',
        'bag_rate', 'bag_loop', 'record', 'log_level'}


def test_launch_starts_localizer_and_refiner_on_the_same_topics(launch_file):
    nodes = launch_file.nodes(image_topic='/camera/color/image_raw')
    assert {name: node.executable for name, node in nodes.items()} == {
        'nerfmatch_localizer': 'localizer', 'nerfmatch_refiner': 'refiner'}
    for node in nodes.values():
        assert (node.kind, node.package) == ('LifecycleNode', 'nerfmatch_ros')
        assert dict(node.remappings) == {
            'image': '/camera/color/image_raw',
            'image/compressed': '/camera/color/image_raw/compressed',
            'camera_info': '/camera/color/camera_info'}
        assert node.respawn is False
        assert (ROOT / 'scripts' / node.executable).is_file()
    assert set(launch_file.nodes(refine='false')) == {'nerfmatch_localizer'}


def test_launch_overrides_the_file_only_with_what_is_given(launch_file):
    for node in launch_file.nodes().values():
        file, own = node.parameters
        assert file.values == (str(launch_file.share / 'config' / 'localize.yaml'),)
        assert plain(own) == {'map_path': launch_file.map, 'use_sim_time': False}
        assert own['map_path'].value_type is str
    nodes = launch_file.nodes(
        device='cpu', global_frame='world', odom_frame='drift', base_frame='body',
        tf_mode='none', image_transport='compressed', autostart='False', use_sim_time='True',
        localizer='hybrid')
    both = {'map_path': launch_file.map, 'device': 'cpu', 'global_frame_id': 'world',
            'base_frame_id': 'body', 'tf_mode': 'none', 'image_transport': 'compressed',
            'autostart': False, 'use_sim_time': True}
    assert plain(nodes['nerfmatch_refiner'].parameters[1]) == both
    assert plain(nodes['nerfmatch_localizer'].parameters[1]) == {
        **both, 'odom_frame_id': 'drift', 'localizer': 'hybrid'}


def test_launch_gives_each_node_only_parameters_that_it_has(launch_file):
    known = yaml.safe_load((ROOT / 'config' / 'localize.yaml').read_text())
    given = {name: 'something' for name in ('device', 'tf_mode', 'global_frame', 'odom_frame',
                                            'base_frame', 'image_transport', 'localizer')}
    for name, node in launch_file.nodes(autostart='true', **given).items():
        section = next(value for key, value in known.items() if key.endswith(name))
        assert set(node.parameters[1]) <= {*section['ros__parameters'], 'use_sim_time'}


def test_launch_offers_the_localizers_that_there_are(launch_file):
    choices = specifications(LocalizerParameters)['localizer'].choices
    assert launch_file.declared['localizer'].choices == ['', *choices]


def test_a_namespace_moves_the_nodes_and_the_transforms(launch_file):
    for name, node in launch_file.nodes(namespace='/robots/one', log_level='debug').items():
        assert node.namespace == '/robots/one'
        assert {'/tf': 'tf', '/tf_static': 'tf_static'}.items() <= dict(node.remappings).items()
        assert node.ros_arguments == ['--log-level', f'robots.one.{name}:=debug']
    for name, node in launch_file.nodes().items():
        assert node.ros_arguments == ['--log-level', f'{name}:=info']


def test_a_lifecycle_manager_takes_the_transitions_over(launch_file):
    launch_file.installed.add('nav2_lifecycle_manager')
    nodes = launch_file.nodes(use_lifecycle_manager='true', namespace='robot')
    manager = nodes.pop('lifecycle_manager_nerfmatch')
    assert manager.namespace == 'robot' and manager.package == 'nav2_lifecycle_manager'
    assert manager.parameters == [{
        'use_sim_time': False, 'autostart': True, 'bond_timeout': 0.0,
        'node_names': ['nerfmatch_localizer', 'nerfmatch_refiner']}]
    assert [node.parameters[1]['autostart'] for node in nodes.values()] == [False, False]
    # Still, the user may want to bring them up by hand.
    nodes = launch_file.nodes(use_lifecycle_manager='true', autostart='false', refine='false')
    parameters = nodes['lifecycle_manager_nerfmatch'].parameters[0]
    assert parameters['autostart'] is False
    assert parameters['node_names'] == ['nerfmatch_localizer']


def test_without_nav2_the_nodes_wait_for_another_manager(launch_file):
    actions = launch_file.actions(use_lifecycle_manager='true')
    assert [action.kind for action in actions] == ['LifecycleNode', 'LifecycleNode', 'LogInfo']
    assert 'nav2_lifecycle_manager is not installed' in actions[-1].msg
    assert all(action.parameters[1]['autostart'] is False for action in actions[:-1])


def test_rviz_sees_what_the_nodes_see(launch_file):
    nodes = launch_file.nodes(rviz='true', namespace='robot', image_topic='/camera/image')
    rviz = nodes['rviz2']
    assert rviz.remappings == nodes['nerfmatch_localizer'].remappings
    assert rviz.namespace == 'robot' and rviz.parameters == [{'use_sim_time': False}]
    assert rviz.arguments == ['-d', str(launch_file.share / 'config' / 'nerfmatch.rviz')]


def test_respawn_is_an_option(launch_file):
    for node in launch_file.nodes(use_respawn='true').values():
        assert node.respawn is True and node.respawn_delay > 0


class RosNode:
    """Stands for the node of launch: the one that is asked has the states given, in turn."""

    def __init__(self, *states):
        self.states, self.asked = list(states), []

    def create_client(self, kind, name):
        self.asked.append(name)
        return self

    def service_is_ready(self):
        return self.states[0] is not None or bool(self.states.pop(0))

    def call_async(self, request):
        state = SimpleNamespace(current_state=SimpleNamespace(id=self.states.pop(0)))
        return SimpleNamespace(done=lambda: True, result=lambda: state)


def test_a_bag_is_played_once_the_localizer_is_active_and_its_end_ends_all(launch_file, tmp_path):
    actions = launch_file.actions(bag=str(tmp_path), bag_rate='4', namespace='robot')
    assert all(action.parameters[1]['use_sim_time'] is True for action in actions
               if action.kind == 'LifecycleNode')
    robot = RosNode(None, 1, 2, 3)  # not there yet, unconfigured, inactive, active
    context = SimpleNamespace(is_shutdown=False, ros_node=robot)
    waiting = actions[0]
    pauses = 0
    while waiting.kind == 'OpaqueFunction':
        waiting, = waiting.function(context)
        if waiting.kind == 'TimerAction':
            waiting, = waiting.actions
            pauses += 1
    assert pauses == 4 and robot.asked == ['/robot/nerfmatch_localizer/get_state']
    player = waiting
    assert player.cmd[:4] == ['ros2', 'bag', 'play', str(tmp_path)]
    assert {'--clock', '--rate', '4'} <= set(player.cmd) and '--loop' not in player.cmd
    # At 100 Hz it would run 40 ms behind the images.
    assert float(player.cmd[player.cmd.index('--clock') + 1]) >= 400
    timer, = player.on_exit
    end, = timer.actions
    shutdown, = end.function(context)
    assert shutdown.kind == 'Shutdown' and 'bag' in shutdown.reason
    context.is_shutdown = True  # such as by Ctrl-C: a second shutdown confuses launch
    assert end.function(context) == []


def test_a_localizer_that_ends_ends_a_replay_unless_it_is_respawned(launch_file, tmp_path):
    actions = launch_file.actions(bag=str(tmp_path))
    handler, = [a.values[0] for a in actions if a.kind == 'RegisterEventHandler']
    assert handler.target_action.name == 'nerfmatch_localizer'
    shutdown, = handler.on_exit[0].function(SimpleNamespace(is_shutdown=False))
    assert 'localizer' in shutdown.reason
    actions = launch_file.actions(bag=str(tmp_path), use_respawn='true', bag_loop='true')
    assert not [action for action in actions if action.kind == 'RegisterEventHandler']


def test_poses_are_recorded_under_their_full_names(launch_file, tmp_path):
    def command(**given):
        actions = launch_file.actions(record=str(tmp_path / 'new'), **given)
        return next(action.cmd for action in actions if action.kind == 'ExecuteProcess')

    assert command()[:5] == ['ros2', 'bag', 'record', '--output', str(tmp_path / 'new')]
    pattern = command()[6]
    assert pattern.startswith('^(/pose|/pose_with_covariance|/refined_pose|')
    assert pattern.endswith('|/tf|/tf_static)$') and '--use-sim-time' not in command()
    assert '(/robot/pose|/robot/pose_with_covariance|/robot/refined_pose|' in command(
        namespace='/robot/', use_sim_time='true')[6]
    assert '--use-sim-time' in command(use_sim_time='true')


@pytest.mark.parametrize('given, said', [
    ({'map': '/no/where'}, "map:='/no/where'.*is no folder.*nerfmatch build"),
    ({'params_file': '/no/where.yaml'}, 'params_file.*does not exist'),
    ({'bag': '/no/bag'}, "bag:='/no/bag' does not exist"),
    ({'bag_rate': 'fast'}, "bag_rate:='fast' is no positive number"),
    ({'bag_rate': '-1'}, "bag_rate:='-1' is no positive number"),
    ({'record': '/tmp'}, "record:='/tmp' exists already"),
])
def test_launch_says_what_is_wrong_with_an_argument(launch_file, given, said):
    with pytest.raises(RuntimeError, match=said):
        launch_file.actions(**given)


def test_launch_says_that_a_folder_is_no_map(launch_file, tmp_path):
    with pytest.raises(RuntimeError, match='has no map.yaml.*nerfmatch build'):
        launch_file.actions(map=str(tmp_path))


@pytest.mark.parametrize('distribution, variable', [
    ('humble', PROFILES[1]), ('jazzy', PROFILES[1]), ('kilted', PROFILES[0]), ('', PROFILES[0])])
def test_launch_sets_the_transport_profile_unless_the_user_has_one(
        launch_file, monkeypatch, tmp_path, distribution, variable):
    monkeypatch.setenv('ROS_DISTRO', distribution)
    profile = str(launch_file.share / 'config' / 'fastdds_large_images.xml')
    given = {'bag': str(tmp_path), 'rviz': 'true'}
    nodes = launch_file.nodes(**given).values()
    assert [node.additional_env for node in nodes] == [{variable: profile}] * 3
    monkeypatch.setenv('FASTRTPS_DEFAULT_PROFILES_FILE', 'mine.xml')
    assert [node.additional_env for node in launch_file.nodes(**given).values()] == [{}] * 3


def test_replay_hands_on_what_has_no_default(launch_file):
    entities = runpy.run_path(str(REPLAY))['generate_launch_description']().values[0]
    *declared, include = entities
    assert {argument.values[0] for argument in declared} == {'bag', 'map'}
    assert not any(hasattr(argument, 'default_value') for argument in declared)
    assert include.values[0].values == (str(LOCALIZE),)
    given = dict(include.launch_arguments)
    assert given['bag'].values == ('bag',) and given['map'].values == ('map',)
    assert given['use_sim_time'] == 'true'
    # A required argument that is not handed on by name is an error of launch.
    required = {name for name, argument in launch_file.declared.items()
                if not hasattr(argument, 'default_value')}
    assert required <= set(given)


# From here on with the launch of a ROS installation.

RUNNER = """
import sys
from launch import LaunchDescription, LaunchService
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import AnyLaunchDescriptionSource
source, *arguments = sys.argv[1:]
include = IncludeLaunchDescription(
    AnyLaunchDescriptionSource(source),
    launch_arguments=[argument.split(':=') for argument in arguments])
service = LaunchService()
service.include_launch_description(LaunchDescription([include]))
sys.exit(service.run())
"""
# Takes the place of a node or of ros2: notes its arguments and what its parameter files say.
STAND_IN = """#!{python}
import json, os, sys, time, yaml
arguments = sys.argv[1:]
files = [arguments[i + 1] for i, a in enumerate(arguments) if a == '--params-file']
with open(os.path.join('{folder}', '{name}-' + str(time.monotonic_ns()) + '.json'), 'w') as file:
    json.dump([arguments, [yaml.safe_load(open(path)) for path in files]], file)
time.sleep({seconds})
"""


@pytest.fixture
def installation(tmp_path, monkeypatch):
    """Give a folder where launch finds this package, with stand-ins for its nodes."""
    # The folder launch/ is importable as an empty package of that name: ask for its content.
    for name in ('launch.actions', 'launch_ros.actions'):
        pytest.importorskip(name, reason='needs launch and launch_ros (a sourced ROS 2)')
    prefix = tmp_path / 'install'
    share, lib = prefix / 'share', prefix / 'lib' / 'nerfmatch_ros'
    index = share / 'ament_index' / 'resource_index' / 'packages'
    for folder in (index, share / 'nerfmatch_ros', lib, prefix / 'bin', tmp_path / 'notes'):
        folder.mkdir(parents=True)
    (index / 'nerfmatch_ros').touch()
    for name in ('launch', 'config'):
        (share / 'nerfmatch_ros' / name).symlink_to(ROOT / name)
    (tmp_path / 'map').mkdir()
    (tmp_path / 'map' / 'map.yaml').touch()
    monkeypatch.setenv('PATH', str(prefix / 'bin'), prepend=os.pathsep)
    monkeypatch.setenv('AMENT_PREFIX_PATH', str(prefix), prepend=os.pathsep)
    monkeypatch.setenv('ROS_LOG_DIR', str(tmp_path / 'log'))
    monkeypatch.setenv('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
    monkeypatch.setenv('ROS_DOMAIN_ID', str(1 + (os.getpid() * 7 + 53) % 100))
    monkeypatch.delenv('OVERRIDE_LAUNCH_PROCESS_OUTPUT', raising=False)

    def put(path, text):
        path.write_text(text)
        path.chmod(0o755)

    def stand_in(path, seconds=0.0):
        put(path, STAND_IN.format(
            python=sys.executable, folder=tmp_path / 'notes', name=path.name, seconds=seconds))

    def notes(name):
        return [json.loads(path.read_text())
                for path in sorted((tmp_path / 'notes').glob(f'{name}-*'))]

    return SimpleNamespace(lib=lib, bin=prefix / 'bin', map=str(tmp_path / 'map'),
                           put=put, stand_in=stand_in, notes=notes, folder=tmp_path)


def run_launch(file, **arguments):
    """Run a launch file to its end as `ros2 launch` does; give what it printed."""
    done = subprocess.run(
        [sys.executable, '-c', RUNNER, str(file),
         *(f'{name}:={value}' for name, value in arguments.items())],
        text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=TIMEOUT, check=False)
    return done.returncode, done.stdout


def test_launch_itself_passes_the_arguments_on(installation):
    for name in ('localizer', 'refiner'):
        installation.stand_in(installation.lib / name)
    code, text = run_launch(LOCALIZE, map=installation.map, namespace='robot', device='cpu',
                            odom_frame='drift', image_topic='/front/image')
    assert code == 0, text
    for name in ('localizer', 'refiner'):
        (arguments, (file, own)), = installation.notes(name)
        node = f'nerfmatch_{name}'
        assert any(key.endswith(node) for key in file)
        expected = {'map_path': installation.map, 'device': 'cpu', 'use_sim_time': False}
        if name == 'localizer':
            expected['odom_frame_id'] = 'drift'
        assert own == {f'/robot/{node}': {'ros__parameters': expected}}
        assert {f'__node:={node}', '__ns:=/robot', 'image:=/front/image', '/tf:=tf',
                'camera_info:=/front/camera_info', f'robot.{node}:=info'} <= set(arguments)


def test_launch_itself_leaves_the_parameter_file_as_it_is(installation):
    """Substitutions are allowed in it, and its comments and quotes must survive them."""
    installation.stand_in(installation.lib / 'localizer')
    code, text = run_launch(LOCALIZE, map=installation.map, refine='false')
    assert code == 0, text
    (_, (file, _)), = installation.notes('localizer')
    assert file == yaml.safe_load((ROOT / 'config' / 'localize.yaml').read_text())


def test_launch_itself_reports_a_missing_map_in_one_line(installation):
    code, text = run_launch(LOCALIZE, map='/no/where')
    assert code == 1 and 'Traceback' not in text
    assert "map:='/no/where' (/no/where) is no folder" in text


def test_launch_itself_plays_a_bag_to_an_active_localizer_and_ends(installation):
    pytest.importorskip('tf2_msgs.msg', reason='needs tf2_msgs')
    # The real node; only what it localizes with is made up.
    installation.put(installation.lib / 'localizer', (
        f'#!/bin/sh\nPYTHONPATH="{ROOT}:{ROOT / "test" / "ros"}:$PYTHONPATH" '
        f'exec {sys.executable} {ROOT / "test" / "ros" / "replayed_localizer.py"} "$@"\n'))
    installation.stand_in(installation.bin / 'ros2')
    bag = installation.folder / 'bag'
    bag.mkdir()
    code, text = run_launch(REPLAY, map=installation.map, bag=bag, refine='false', device='cpu')
    assert code == 0, text
    (arguments, _), = installation.notes('ros2')
    assert arguments[:3] == ['bag', 'play', str(bag)]
    assert text.index('images from /image') < text.index('player')
    assert 'Traceback' not in text and 'nerfmatch_localizer' in text
