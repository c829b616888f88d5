from dataclasses import asdict, replace
import math
import os
from pathlib import Path
import runpy
import threading

from hypothesis import given, HealthCheck, settings, strategies
from nerfmatch_ros.errors import ConfigError
from nerfmatch_ros.ros.parameter_field import specifications
import pytest
import yaml

pytest.importorskip('rclpy', reason='needs rclpy (a sourced ROS 2, or the extra ros-wheels)')

from nerfmatch_ros.ros.managed_node import FAILURE, ManagedNode, SUCCESS  # noqa: E402
from nerfmatch_ros.ros.parameter_set import ParameterSet  # noqa: E402
from nerfmatch_ros.ros.parameters import LocalizerParameters, RefinerParameters  # noqa: E402
from rcl_interfaces.srv import SetParameters, SetParametersAtomically  # noqa: E402
import rclpy  # noqa: E402
from rclpy.exceptions import ParameterNotDeclaredException  # noqa: E402
from rclpy.executors import SingleThreadedExecutor  # noqa: E402
from rclpy.node import Node  # noqa: E402
from rclpy.parameter import Parameter  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
DOMAIN = 60 + os.getpid() % 40
LOCALIZER, REFINER = specifications(LocalizerParameters), specifications(RefinerParameters)
RANGED = [item for item in LOCALIZER.values() if item.limits]
MAP = {'map_path': 'maps/kitchen'}
KINDS = {'nerfmatch_localizer': LocalizerParameters, 'nerfmatch_refiner': RefinerParameters}


class Recorder:
    """Stands for a logger."""

    def __init__(self):
        self.warnings, self.errors = [], []
        self.warning, self.error = self.warnings.append, self.errors.append


class Configured(ManagedNode):
    """A node that does nothing but check its parameters when it is configured."""

    def __init__(self, kind=LocalizerParameters, name='nerfmatch_localizer', **options):
        super().__init__(name, **options)
        self.recorder = Recorder()
        self.get_logger = lambda: self.recorder
        self.parameters = ParameterSet(self, kind)

    def start_up(self):
        self.parameters.checked()


@pytest.fixture(scope='module')
def context():
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=DOMAIN)
    yield context
    rclpy.shutdown(context=context)


@pytest.fixture
def make(context):
    """Give a maker of nodes that takes the values given at the start by name."""
    nodes = []

    def make(values=MAP, base=Configured, **options):
        overrides = [Parameter(name, value=value) for name, value in values.items()]
        nodes.append(base(context=context, parameter_overrides=overrides, **options))
        return nodes[-1]

    yield make
    for node in nodes:
        node.destroy_node()


def refused(specification, value):
    with pytest.raises(ConfigError) as error:
        specification.checked(value)
    assert specification.name in str(error.value)
    return str(error.value)


def set_one(node, name, value):
    return node.set_parameters([Parameter(name, value=value)])[0]


# Declarations


@pytest.mark.parametrize('kind', KINDS.values())
def test_every_default_is_allowed_and_every_number_has_limits(kind):
    for item in specifications(kind).values():
        assert item.checked(item.default) == item.default
        assert item.description.endswith('.')
        if item.kind in (int, float):
            assert [type(limit) for limit in item.limits] == [item.kind] * 2
    assert replace(kind(), map_path='map').faults() == []


def test_a_field_that_is_no_parameter_is_an_error():
    from dataclasses import make_dataclass
    with pytest.raises(TypeError, match='speed'):
        specifications(make_dataclass('Wrong', [('speed', float, 1.0)]))


def test_a_dotted_name_is_the_one_that_ros_knows():
    assert REFINER['refine.max_age'].attribute == 'refine_max_age'
    assert LOCALIZER['initial_pose.yaw'].attribute == 'initial_pose_yaw'


def test_descriptors_carry_description_range_choices_and_read_only(make):
    node = make()
    tolerance = node.describe_parameter('transform_tolerance')
    assert (tolerance.floating_point_range[0].from_value,
            tolerance.floating_point_range[0].to_value) == (0.0, 2.0)
    assert not tolerance.read_only and 'dated ahead' in tolerance.description
    fixes = node.describe_parameter('init_consistent_fixes').integer_range[0]
    assert (fixes.from_value, fixes.to_value, fixes.step) == (1, 20, 1)
    mode = node.describe_parameter('tf_mode')
    assert mode.read_only and 'map_to_base' in mode.additional_constraints


def test_the_values_are_a_snapshot_with_the_types_of_the_fields(make):
    values = make({**MAP, 'camera_names': ['left', 'right']}).parameters.values
    assert values == replace(
        LocalizerParameters(), map_path='maps/kitchen', camera_names=('left', 'right'))
    with pytest.raises(AttributeError):
        values.min_inliers = 3


@pytest.mark.parametrize('value, taken', [(True, 'true'), (False, 'false'), ('auto', 'auto')])
def test_rectified_may_be_given_without_quotes(make, value, taken):
    assert make({**MAP, 'rectified': value}).parameters.checked().rectified == taken


@pytest.mark.parametrize('given_names', [[''], []])
def test_no_camera_names_are_an_empty_tuple(make, given_names):
    node = make({**MAP, 'camera_names': given_names})
    assert node.parameters.checked().camera_names == ()
    assert node.get_parameter('camera_names').value == ['']


# Fault row 30, at the start


@pytest.mark.parametrize('name, value', [
    ('transform_tolerance', 2.5), ('transform_tolerance', -0.1), ('init_consistent_fixes', 0),
    ('tf_mode', 'odom_to_map'), ('gate_chi2', math.inf),
])
def test_row_30_configure_fails_with_the_name_of_a_parameter_out_of_range(make, name, value):
    node = make({**MAP, name: value})
    assert node.trigger_configure() == FAILURE
    assert name in node.failure and repr(value) in node.failure
    allowed = LOCALIZER[name].constraint
    assert allowed in node.failure
    assert not any('Traceback' in line for line in node.recorder.errors)


def test_row_30_configure_fails_with_the_name_of_a_parameter_that_is_nan(make):
    node = make({**MAP, 'max_speed': math.nan})
    assert node.trigger_configure() == FAILURE
    assert 'max_speed is nan' in node.failure


@pytest.mark.parametrize('name, value', [
    ('max_speed', 'fast'), ('max_speed', True), ('max_speed', [1.0]), ('min_inliers', 30.0),
    ('min_inliers', False), ('tf_broadcast', 1), ('map_sha256', 12), ('mode', True),
    ('camera_names', 'left'), ('camera_names', [1, 2]),
])
def test_row_30_configure_fails_with_the_name_of_a_parameter_of_wrong_type(make, name, value):
    node = make({**MAP, name: value})
    assert node.trigger_configure() == FAILURE
    assert f'parameter {name} is' in node.failure


def test_row_30_a_whole_number_is_taken_for_a_number_at_the_start(make):
    node = make({**MAP, 'transform_tolerance': 1})
    value = node.parameters.checked().transform_tolerance
    assert value == 1.0 and type(value) is float
    assert node.get_parameter('transform_tolerance').type_ == Parameter.Type.DOUBLE


def test_row_30_a_whole_number_out_of_range_is_refused_at_the_start(make):
    assert make({**MAP, 'transform_tolerance': 5}).trigger_configure() == FAILURE


def test_row_30_an_unknown_name_at_the_start_is_warned_of_with_the_nearest(make):
    node = make({**MAP, 'tansform_tolerance': 0.2, 'use_sim_time': False,
                 'qos_overrides./tf.publisher.depth': 5})
    [warning] = node.recorder.warnings
    assert "'tansform_tolerance'" in warning and 'mean transform_tolerance?' in warning
    assert node.trigger_configure() == SUCCESS


def test_row_30_all_wrong_parameters_are_named_at_once(make):
    node = make({'min_inliers': -1, 'max_speed': 'fast'})
    with pytest.raises(ConfigError) as error:
        node.parameters.checked()
    for name in ('min_inliers', 'max_speed', 'map_path'):
        assert name in str(error.value)


@pytest.mark.parametrize('values, names', [
    ({'global_frame_id': 'odom'}, ('global_frame_id', 'odom_frame_id')),
    ({'base_frame_id': 'odom'}, ('base_frame_id', 'odom_frame_id')),
    ({'base_frame_id': 'map'}, ('base_frame_id', 'global_frame_id')),
    ({'camera_frame_id': 'map'}, ('camera_frame_id', 'global_frame_id')),
    ({'odom_frame_id': ''}, ('odom_frame_id',)),
    ({'global_frame_id': '/map'}, ('global_frame_id',)),
    ({'initialize_at_saved_pose': True}, ('initialize_at_saved_pose', 'save_pose_path')),
    ({'two_d_mode': True, 'tf_mode': 'map_to_camera'}, ('two_d_mode', 'tf_mode')),
    ({'wait_for_transform': 4.0, 'tf_buffer_duration': 3.0},
     ('wait_for_transform', 'tf_buffer_duration')),
    ({'map_sha256': 'abc'}, ('map_sha256',)),
    ({'camera_names': ['left', 'left']}, ('camera_names',)),
    ({'camera_names': ['left camera']}, ('camera_names',)),
    ({'camera_names': ['left', 'right'], 'tf_mode': 'map_to_camera'},
     ('camera_names', 'tf_mode')),
    ({'camera_names': ['left', 'right'], 'pose_frame': 'camera'},
     ('camera_names', 'pose_frame')),
    ({'camera_names': ['left', 'right'], 'camera_frame_id': 'camera'},
     ('camera_names', 'camera_frame_id')),
    ({'map_path': ''}, ('map_path',)),
])
def test_row_30_configure_fails_with_the_names_of_what_contradicts(make, values, names):
    node = make({**MAP, **values})
    assert node.trigger_configure() == FAILURE
    assert all(name in node.failure for name in names)


@pytest.mark.parametrize('values', [
    {'base_frame_id': 'camera', 'camera_frame_id': 'camera'},
    {'base_frame_id': '', 'tf_mode': 'map_to_camera'},
    {'global_frame_id': 'odom', 'tf_mode': 'map_to_base'},
    {'camera_names': ['front/left', 'rear']},
    {'camera_names': ['front'], 'tf_mode': 'map_to_camera', 'camera_frame_id': 'camera'},
    {'initialize_at_saved_pose': True, 'save_pose_path': 'pose.json'},
])
def test_what_only_looks_contradictory_is_taken(make, values):
    assert make({**MAP, **values}).trigger_configure() == SUCCESS


def test_row_30_a_refused_configure_succeeds_once_the_value_is_right(make):
    node = make({**MAP, 'max_speed': -1.0, 'initialize_at_saved_pose': True})
    assert node.trigger_configure() == FAILURE
    assert set_one(node, 'max_speed', 2.0).successful
    assert set_one(node, 'save_pose_path', 'pose.json').successful
    assert node.trigger_configure() == SUCCESS


# Fault row 30, at run time


@pytest.mark.parametrize('name, value', [
    ('transform_tolerance', 2.5), ('transform_tolerance', math.nan), ('gate_chi2', math.inf),
    ('transform_tolerance', 2.0 + 1e-9),  # rclpy itself would take it for the limit
    ('min_inliers', -1), ('mode', 'everywhere'), ('max_speed', 'fast'), ('max_speed', True),
    ('min_inliers', 30.0), ('transform_tolerance', 5), ('map_path', ''), ('max_speed', None),
])
def test_row_30_a_wrong_value_at_run_time_is_refused_with_a_reason(make, name, value):
    node = make()
    before, old = node.parameters.values, node.get_parameter(name).value
    result = set_one(node, name, value)
    assert not result.successful and result.reason
    assert node.parameters.values is before and node.get_parameter(name).value == old


def test_row_30_a_whole_number_is_taken_for_a_number_at_run_time(make):
    node = make()
    assert set_one(node, 'transform_tolerance', 1).successful
    value = node.parameters.values.transform_tolerance
    assert value == 1.0 and type(value) is float
    assert node.get_parameter('transform_tolerance').type_ == Parameter.Type.DOUBLE


def test_row_30_an_unknown_name_at_run_time_is_refused_with_the_nearest(make):
    node = make()
    with pytest.raises(ParameterNotDeclaredException, match='mean transform_tolerance?'):
        node.set_parameters_atomically([Parameter('min_inliers', value=7),
                                        Parameter('tansform_tolerance', value=0.2)])
    assert node.parameters.values.min_inliers == 0


def test_row_30_a_read_only_parameter_at_run_time_is_refused(make):
    node = make()
    fixed = {name for name, item in LOCALIZER.items() if not item.runtime}
    assert {'global_frame_id', 'tf_mode', 'device', 'two_d_mode', 'camera_names'} <= fixed
    before = node.parameters.values
    for name in fixed:
        result = node.set_parameters([node.get_parameter(name)])[0]
        assert not result.successful and name in result.reason
    assert node.parameters.values is before


def test_row_30_a_contradictory_pair_at_run_time_is_refused_with_both_names(make):
    node = make()
    result = set_one(node, 'initialize_at_saved_pose', True)
    assert not result.successful
    assert 'initialize_at_saved_pose' in result.reason and 'save_pose_path' in result.reason
    assert not node.parameters.values.initialize_at_saved_pose
    both = [Parameter('initialize_at_saved_pose', value=True),
            Parameter('save_pose_path', value='pose.json')]
    assert node.set_parameters_atomically(both).successful
    assert not set_one(node, 'save_pose_path', '').successful


def test_row_30_a_contradiction_from_the_start_keeps_nothing_else_from_being_set(make):
    node = make({**MAP, 'initialize_at_saved_pose': True})
    assert set_one(node, 'min_inliers', 50).successful


@pytest.mark.parametrize('wrong', [
    ('transform_tolerance', 2.5), ('max_speed', math.nan), ('max_speed', 'fast'),
    ('tf_mode', 'none'), ('initialize_at_saved_pose', True),
])
def test_row_30_one_wrong_member_refuses_the_whole_atomic_set(make, wrong):
    node = make()
    before = node.parameters.values
    changed = []
    node.parameters.on_change(changed.append)
    for place in range(3):
        members = [Parameter('min_inliers', value=50), Parameter('snap_distance', value=2.0)]
        members.insert(place, Parameter(wrong[0], value=wrong[1]))
        result = node.set_parameters_atomically(members)
        assert not result.successful and result.reason
    assert node.parameters.values is before and not changed
    assert node.get_parameter('min_inliers').value == 0


def test_an_atomic_set_reaches_a_reader_as_a_whole(make):
    node, torn, done = make(), [], threading.Event()

    def read():
        while not done.is_set():
            values = node.parameters.values
            if values.min_inliers != values.retrieval_top_k:
                torn.append(values)

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(100):
        assert node.set_parameters_atomically([
            Parameter('min_inliers', value=number),
            Parameter('retrieval_top_k', value=number)]).successful
    done.set()
    reader.join(10)
    assert not reader.is_alive() and not torn


def test_listeners_get_the_new_values_once_for_each_change(make):
    node, heard = make(), []
    node.parameters.on_change(heard.append)
    node.set_parameters_atomically([Parameter('min_inliers', value=50),
                                    Parameter('snap_distance', value=2)])
    set_one(node, 'min_inliers', 50)  # is so already
    assert heard == [replace(node.parameters.values, min_inliers=50, snap_distance=2.0)]


def test_a_listener_that_fails_is_logged_and_the_next_one_is_called(make):
    node, heard = make(), []
    node.parameters.on_change(lambda values: 1 / 0)
    node.parameters.on_change(heard.append)
    assert set_one(node, 'min_inliers', 50).successful
    assert len(heard) == 1 and 'ZeroDivisionError' in node.recorder.errors[0]


def test_parameters_of_others_are_none_of_our_business(make):
    node = make()
    node.declare_parameter('theirs', 1)
    assert set_one(node, 'theirs', 2).successful
    assert set_one(node, 'use_sim_time', False).successful


class HumbleNode(Configured):
    """A node of an rclpy that has neither pre-set nor post-set callbacks."""

    @property
    def add_pre_set_parameters_callback(self):
        raise AttributeError('not in Humble')

    @property
    def add_post_set_parameters_callback(self):
        raise AttributeError('not in Humble')


def test_without_pre_and_post_set_callbacks_sets_are_converted_checked_and_applied(make):
    node, heard = make(base=HumbleNode), []
    node.parameters.on_change(heard.append)
    assert node.set_parameters_atomically([
        Parameter('transform_tolerance', value=1), Parameter('min_inliers', value=7)]).successful
    assert heard == [replace(
        LocalizerParameters(), map_path='maps/kitchen', transform_tolerance=1.0, min_inliers=7)]
    assert not node.set_parameters_atomically([
        Parameter('min_inliers', value=8), Parameter('max_speed', value=-1.0)]).successful
    assert node.parameters.values == heard[0]


# Fault row 30 over all ranges


def inside(item):
    low, high = item.limits
    ends = strategies.sampled_from([low, high])
    if item.kind is int:
        return ends | strategies.integers(low, high)
    return ends | strategies.floats(low, high)


def outside(item):
    low, high = item.limits
    if item.kind is int:
        return (strategies.integers(max_value=low - 1, min_value=-2**63)
                | strategies.integers(min_value=high + 1, max_value=2**63 - 1))
    return (strategies.floats(max_value=low, exclude_max=True, allow_nan=False)
            | strategies.floats(min_value=high, exclude_min=True, allow_nan=False)
            | strategies.just(math.nan))


MANY = settings(max_examples=300, deadline=None, derandomize=True,
                suppress_health_check=[HealthCheck.function_scoped_fixture])
FEW = settings(MANY, max_examples=15)


@MANY
@given(data=strategies.data())
def test_row_30_every_value_inside_is_taken_and_every_one_outside_refused(data):
    item = data.draw(strategies.sampled_from(RANGED + list(REFINER.values())[-2:]))
    value = data.draw(inside(item))
    assert item.checked(value) == value
    assert item.constraint in refused(item, data.draw(outside(item)))


@MANY
@given(data=strategies.data())
def test_row_30_at_run_time_inside_is_taken_and_outside_refused(make_once, data):
    node = make_once
    item = data.draw(strategies.sampled_from([item for item in RANGED if item.runtime]))
    value = data.draw(inside(item))
    assert set_one(node, item.name, value).successful
    assert getattr(node.parameters.values, item.attribute) == value
    assert node.get_parameter(item.name).value == value
    assert not set_one(node, item.name, data.draw(outside(item))).successful
    assert getattr(node.parameters.values, item.attribute) == value
    assert node.get_parameter(item.name).value == value


@pytest.fixture(scope='module')
def make_once(context):
    node = Configured(context=context, parameter_overrides=[Parameter('map_path', value='map')])
    yield node
    node.destroy_node()


@FEW
@given(data=strategies.data())
def test_row_30_at_the_start_inside_is_taken(make, data):
    values = {item.name: data.draw(inside(item)) for item in RANGED}
    node = make({**MAP, **values})
    for item in RANGED:
        assert getattr(node.parameters.values, item.attribute) == values[item.name]


@FEW
@given(data=strategies.data())
def test_row_30_at_the_start_every_value_outside_is_named(make, data):
    node = make({**MAP, **{item.name: data.draw(outside(item)) for item in RANGED}})
    assert node.trigger_configure() == FAILURE
    for item in RANGED:
        assert f'parameter {item.name} is ' in node.failure
        assert getattr(node.parameters.values, item.attribute) == item.default


# Over DDS


def test_a_remote_set_is_taken_whole_or_refused_with_a_reason(make, context, monkeypatch):
    node = make()
    client = Node('asks', context=context)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    executor.add_node(client)

    def ask(kind, service, **values):
        remote = client.create_client(kind, f'/nerfmatch_localizer/{service}')
        assert remote.wait_for_service(20)
        future = remote.call_async(kind.Request(parameters=[
            Parameter(name, value=value).to_parameter_msg() for name, value in values.items()]))
        executor.spin_until_future_complete(future, 20)
        client.destroy_client(remote)
        return future.result()

    try:
        [result] = ask(SetParameters, 'set_parameters', transform_tolerance=1).results
        assert result.successful and node.parameters.values.transform_tolerance == 1.0
        result = ask(SetParametersAtomically, 'set_parameters_atomically',
                     transform_tolerance=2, max_speed=-1.0).result
        assert not result.successful and 'max_speed' in result.reason
        assert node.parameters.values.transform_tolerance == 1.0
        [result] = ask(SetParameters, 'set_parameters', max_sped=1.0).results
        assert not result.successful and 'did you mean max_speed' in result.reason
    finally:
        executor.shutdown()
        client.destroy_node()


# config/localize.yaml and the README


@pytest.fixture(scope='module')
def docs():
    return runpy.run_path(str(ROOT / 'tools' / 'write_parameter_docs.py'))


def test_the_parameter_file_is_what_the_declarations_say(docs):
    written = (ROOT / 'config' / 'localize.yaml').read_text()
    assert written == docs['parameter_file'](), 'run python tools/write_parameter_docs.py'


def test_the_readme_shows_what_the_declarations_say(docs):
    readme = (ROOT / 'README.md').read_text(encoding='utf-8')
    assert readme == docs['with_tables'](readme), 'run python tools/write_parameter_docs.py'
    for name in {**LOCALIZER, **REFINER}:
        assert readme.count(f'\n| `{name}` |') == 1


def test_a_readme_without_the_marks_is_an_error(docs):
    with pytest.raises(ConfigError, match='parameters'):
        docs['with_tables']('# nerfmatch_ros\n')


def test_launch_substitutes_nothing_in_the_parameter_file():
    text = (ROOT / 'config' / 'localize.yaml').read_text()
    assert '$' not in text and max(map(len, text.splitlines())) <= 99


def test_launch_reads_the_parameter_file_as_it_is():
    launch = pytest.importorskip('launch', reason='needs a sourced ROS 2')
    descriptions = pytest.importorskip('launch_ros.parameter_descriptions')
    path = ROOT / 'config' / 'localize.yaml'
    file = descriptions.ParameterFile(str(path), allow_substs=True)
    assert Path(file.evaluate(launch.LaunchContext())).read_text() == path.read_text()
    file.cleanup()


def altered(item):
    """Give a value other than the default, where there is another one."""
    if item.kind is bool:
        return not item.default
    if item.choices:
        return item.choices[-1] if item.default != item.choices[-1] else item.choices[0]
    if item.limits:
        low, high = item.limits
        return low if item.default != low else high
    return ['left'] if item.kind is tuple else 'other_' + item.name


@pytest.mark.parametrize('namespace', ['', '/robot', '/fleet/robot_1'])
@pytest.mark.parametrize('name', KINDS)
def test_every_value_of_the_parameter_file_arrives(name, namespace, tmp_path):
    kind = KINDS[name]
    shown = yaml.safe_load((ROOT / 'config' / 'localize.yaml').read_text())
    for node, node_kind in KINDS.items():
        entries = shown[f'/**/{node}']['ros__parameters']
        assert set(entries) == set(specifications(node_kind))
        entries.update({item.name: altered(item)
                        for item in specifications(node_kind).values()})
    changed = tmp_path / 'changed.yaml'
    changed.write_text(yaml.safe_dump(shown))
    expected = {item.attribute: item.checked(altered(item))
                for item in specifications(kind).values()}
    for path, values in ((ROOT / 'config' / 'localize.yaml', asdict(kind())),
                         (changed, expected)):
        context = rclpy.Context()
        rclpy.init(context=context, domain_id=DOMAIN,
                   args=['--ros-args', '--params-file', str(path)])
        node = Configured(kind, name, namespace=namespace, context=context)
        try:
            assert asdict(node.parameters.values) == values
            assert not node.recorder.warnings
        finally:
            node.destroy_node()
            rclpy.shutdown(context=context)
