"""Transitions as a lifecycle manager asks for them: order, refusal, repetition, what is left."""

import gc
import logging
import os
import sys
import threading
from types import SimpleNamespace

import pytest

pytest.importorskip('rclpy', reason='needs rclpy (a sourced ROS 2, or the extra ros-wheels)')
pytest.importorskip('tf2_msgs.msg', reason='needs tf2_msgs (python tools/generate_tf2_msgs.py)')

from fake_backend import Behaviour  # noqa: E402
from lifecycle_msgs.msg import State, Transition  # noqa: E402
from lifecycle_msgs.srv import ChangeState, GetState  # noqa: E402
from nerfmatch_ros.ros import localizer_node  # noqa: E402
from node_world import World  # noqa: E402
from rcl_interfaces.msg import Parameter, ParameterValue  # noqa: E402
from rcl_interfaces.srv import SetParameters  # noqa: E402
from std_msgs.msg import String  # noqa: E402

CONFIGURE, CLEANUP = Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_CLEANUP
ACTIVATE, DEACTIVATE = Transition.TRANSITION_ACTIVATE, Transition.TRANSITION_DEACTIVATE
SHUTDOWN = {'unconfigured': Transition.TRANSITION_UNCONFIGURED_SHUTDOWN,
            'inactive': Transition.TRANSITION_INACTIVE_SHUTDOWN,
            'active': Transition.TRANSITION_ACTIVE_SHUTDOWN}
NODES = 'nerfmatch_localizer', 'nerfmatch_refiner'


def state(world, node='nerfmatch_localizer'):
    return world.call(GetState, f'{node}/get_state').current_state


def set_text(world, name, value):
    response = world.call(SetParameters, 'nerfmatch_localizer/set_parameters', parameters=[
        Parameter(name=name, value=ParameterValue(type=4, string_value=value))])
    assert response.results[0].successful, response.results[0].reason


def test_a_manager_takes_both_nodes_up_and_down():
    """The calls of nav2_lifecycle_manager, which checks the state after each."""
    with World(autostart=False, refiner=True, refiner_parameters={'autostart': False},
               tf_mode='map_to_camera') as world:
        for up, expected in ((CONFIGURE, State.PRIMARY_STATE_INACTIVE),
                             (ACTIVATE, State.PRIMARY_STATE_ACTIVE)):
            for node in NODES:
                assert world.change(up, node)
                assert state(world, node).id == expected
        world.connect(static=False)
        world.localize()
        for down, expected in ((DEACTIVATE, State.PRIMARY_STATE_INACTIVE),
                               (CLEANUP, State.PRIMARY_STATE_UNCONFIGURED),
                               (SHUTDOWN['unconfigured'], State.PRIMARY_STATE_FINALIZED)):
            for node in reversed(NODES):
                assert world.change(down, node)
                assert state(world, node).id == expected


def test_transitions_may_be_named_and_impossible_ones_change_nothing():
    with World(autostart=False) as world:
        def change(label):
            return world.call(ChangeState, 'nerfmatch_localizer/change_state',
                              transition=Transition(label=label)).success
        for impossible in ('activate', 'deactivate', 'cleanup', 'nonsense'):
            assert not change(impossible)
            assert state(world).label == 'unconfigured'
        assert change('configure')
        assert not change('configure')
        assert change('activate')
        assert not change('cleanup')
        assert state(world).label == 'active'


@pytest.mark.parametrize('autostart', [True, False])
def test_autostart_decides_who_activates(autostart):
    with World(autostart=autostart) as world:
        if autostart:
            world.wait_for(lambda: world.state == 'active', 'an active node')
            assert not world.node.fatal
        else:
            # Each answer took a turn of the executor that would have started it.
            assert {state(world).label for _ in range(5)} == {'unconfigured'}


def test_a_start_that_fails_by_itself_ends_the_process_and_says_why():
    with World(map_path='/maps/broken') as world:
        world.wait_for(lambda: world.node.fatal, 'the node to give up')
        assert 'sha256 differs' in world.node.fatal
        assert world.state == 'unconfigured'


def test_a_configuration_that_failed_is_tried_again_with_a_better_parameter():
    with World(autostart=False, map_path='/maps/broken') as world:
        for name in ('broken', 'missing', 'bug'):
            set_text(world, 'map_path', f'/maps/{name}')
            assert not world.change(CONFIGURE)
            assert state(world).label == 'unconfigured'
        assert not world.node.fatal, 'a manager may try again'
        world.wait_for(lambda: world.logged('injected failure of loading'), 'the traceback')
        set_text(world, 'map_path', '/maps/fake')
        assert world.change(CONFIGURE) and world.change(ACTIVATE)
        assert state(world).label == 'active'


@pytest.mark.parametrize('before', list(SHUTDOWN))
def test_shutdown_is_possible_in_every_state(before):
    with World(autostart=False, tf_mode='map_to_odom') as world:
        for wanted, transition in (('inactive', CONFIGURE), ('active', ACTIVATE)):
            if world.state != before:
                assert world.change(transition)
                assert world.state == wanted
        assert world.change(SHUTDOWN[before])
        assert state(world).id == State.PRIMARY_STATE_FINALIZED
        assert world.node.pipeline is None and world.node.worker is None


def test_a_deactivation_that_fails_leaves_a_node_that_can_be_configured_again(monkeypatch):
    with World(tf_mode='map_to_camera') as world:
        world.connect(static=False)
        real = world.node.input.close

        def fail():
            real()
            raise RuntimeError('injected failure of closing')
        monkeypatch.setattr(world.node.input, 'close', fail)
        assert not world.change(DEACTIVATE)
        assert state(world).label == 'unconfigured', 'not active: it no longer listens'
        world.wait_for(lambda: world.logged('injected failure of closing'), 'the traceback')
        assert world.node.worker is None and world.node.pipeline is None
        assert world.change(CONFIGURE) and world.change(ACTIVATE)
        world.connect(static=False)
        world.localize()


def test_an_activation_that_fails_leaves_the_node_inactive(monkeypatch):
    with World(autostart=False) as world:
        assert world.change(CONFIGURE)
        before = counts(world.node)
        with monkeypatch.context() as patch:
            patch.setattr(localizer_node, 'ImageInput', lambda *_, **__: 1 / 0)
            assert not world.change(ACTIVATE)
        assert state(world).label == 'inactive'
        assert counts(world.node) == before
        assert world.change(ACTIVATE)


def counts(node):
    """Count what a node could leave behind."""
    gc.collect()
    return {
        **{kind: len(list(getattr(node, kind))) for kind in (
            'publishers', 'subscriptions', 'services', 'clients', 'timers', 'guards',
            'waitables')},
        'managed': len(node._managed_entities),
        'threads': sorted(thread.name for thread in threading.enumerate()),
        'log handlers': len(logging.getLogger('nerfmatch_ros').handlers),
    }


@pytest.mark.parametrize('activate', [False, True])
@pytest.mark.parametrize('tf_mode', ['map_to_odom', 'map_to_camera'])
def test_row_35_twenty_cycles_leave_nothing_behind(tf_mode, activate):
    cycle = [CONFIGURE, *([ACTIVATE, DEACTIVATE] if activate else []), CLEANUP]
    with World(autostart=False, tf_mode=tf_mode, refiner=True,
               refiner_parameters={'autostart': False}) as world:
        def run(times):
            for _ in range(times):
                for transition in cycle:
                    for node in NODES:
                        assert world.change(transition, node)
            nodes = world.node, world.refiner
            # Descriptors of files, shared memory and sockets; names that others see.
            return [counts(node) for node in nodes], len(os.listdir('/proc/self/fd'))

        before, files = run(2)
        after, files_after = run(18)
        assert after == before
        assert files_after <= files + 5, 'files'
        world.wait_for(lambda: {*world.client.get_node_names()} == {
            'test_client', *NODES}, 'helper nodes to vanish')


def test_row_35_deactivating_breaks_off_the_wait_for_a_transform(monkeypatch):
    with World(tf_mode='map_to_odom', wait_for_transform=5.0) as world:
        world.connect()
        stamp = world.send()
        listener, thread = world.node.listener, world.node.worker.thread
        slot, interrupt, closed = world.node.worker.slot, world.node.listener.interrupt, []
        monkeypatch.setattr(listener, 'interrupt', lambda: closed.append(
            slot.closed) or interrupt())
        world.wait_for(lambda: listener._waiting, 'a frame that waits for odometry')
        assert world.change(DEACTIVATE)
        # The wait is longer than the patience: without the break the thread would still be there.
        assert not thread.is_alive()
        assert closed == [True], 'else the next frame might have begun to wait'
        assert not world.node.drops.total, 'nothing is wrong with the frame'
        assert world.change(ACTIVATE)
        world.connect()
        stamps = world.localize(odometry=True)
        assert stamp not in world.raw and stamp not in world.poses
        assert set(world.raw) <= set(stamps)


def test_row_35_deactivating_during_inference_drops_its_result():
    with World(tf_mode='map_to_camera') as world:
        world.node.patience = 0.1
        world.connect(static=False)
        world.localize(frames=3)
        known, asked = set(world.poses), len(world.backend.asked)
        world.backend.hold.clear()
        stamp = world.send()
        world.wait_for(lambda: len(world.backend.asked) > asked, 'an inference')
        thread = world.node.worker.thread
        assert world.change(DEACTIVATE)
        assert state(world).label == 'inactive'
        # The localizer is called by one thread at a time.
        assert not world.change(ACTIVATE)
        assert 'not finished' in world.node.failure
        world.backend.hold.set()
        world.wait_for(lambda: not thread.is_alive(), 'the end of the inference')
        assert world.change(ACTIVATE)
        world.connect(static=False)
        world.localize()
        assert stamp not in world.raw and known < set(world.poses)
        assert stamp not in world.poses


def test_row_35_cleaning_up_during_inference_is_quiet():
    with World(tf_mode='map_to_camera') as world:
        world.node.patience = 0.1
        world.connect(static=False)
        world.backend.hold.clear()
        world.send()
        world.wait_for(lambda: world.backend.asked, 'an inference')
        thread = world.node.worker.thread
        assert world.change(DEACTIVATE) and world.change(CLEANUP)
        world.backend.hold.set()
        world.wait_for(lambda: not thread.is_alive(), 'the end of the inference')
        assert world.change(CONFIGURE) and world.change(ACTIVATE)
        assert not world.node.unexpected.count
        assert not world.raw and not world.poses


def test_status_tells_of_every_frame_what_became_of_it():
    with World(tf_mode='map_to_camera', lost_after_failures=2) as world:
        world.connect(static=False)

        def status_after(behaviour):
            stamp, = world.drive(1, behaviour=behaviour)
            world.wait_for(lambda: world.status('stamp') == str(stamp), 'the status of the frame')
            if behaviour == Behaviour.GOOD:
                assert world.status('inliers') == '100' and world.status('matches') == '150'
            return world.status('verdict'), world.status('state')
        assert [status_after(behaviour) for behaviour in (
            Behaviour.GOOD, Behaviour.GOOD, Behaviour.NO_POSE, Behaviour.NO_POSE)] == [
                ('pending', 'UNLOCALIZED'), ('accepted', 'LOCALIZED'),
                ('no_fix', 'COASTING'), ('no_fix', 'LOST')]
        newest = world.statuses[-1]
        assert newest.name == 'nerfmatch_localizer: status' and newest.level == newest.ERROR
        assert 'lost' in newest.message and 'too few matches' in newest.message
        assert world.status('map_sha256') == world.backend.map_sha256
        assert float(world.status('seconds localize')) >= 0
        assert world.status('active') == 'yes'
        assert world.change(DEACTIVATE)
        world.wait_for(lambda: world.status('active') == 'no', 'the status of the transition')
        assert world.statuses[-1].message == 'inactive'


def test_status_of_a_localized_node_has_the_standard_deviations():
    with World(tf_mode='map_to_camera') as world:
        world.connect(static=False)
        world.localize(frames=3)
        world.wait_for(lambda: world.status('state') == 'LOCALIZED', 'the status')
        for key in ('sigma x [m]', 'sigma z [m]', 'sigma ry [rad]'):
            assert 0 < float(world.status(key)) < 0.1
        assert float(world.status('epoch')) >= 1
        assert world.statuses[-1].level == world.statuses[-1].OK


class FakeBond:
    """What bondpy.Bond documents, as far as a node may use it; entities as the real one has."""

    made = []

    def __init__(self, node, topic, bond_id, on_broken=None, on_formed=None):
        self.node, self.topic, self.bond_id = node, topic, bond_id
        self.period = self.timeout = None
        self.started = self.is_shutdown = False
        self.pub = node.create_publisher(String, topic, 1)
        self.made.append(self)

    def set_heartbeat_period(self, period):
        assert not self.started
        self.period = period

    def set_heartbeat_timeout(self, timeout):
        assert not self.started
        self.timeout = timeout

    def start(self):
        self.sub = self.node.create_subscription(String, self.topic, lambda message: None, 1)
        self.started = True

    def shutdown(self):
        assert not self.is_shutdown
        self.is_shutdown = True
        self.sub.destroy()
        self.pub.destroy()


@pytest.fixture
def bonds(monkeypatch):
    """Bonds that are made; bondpy is there."""
    made = []
    monkeypatch.setattr(FakeBond, 'made', made)
    monkeypatch.setitem(sys.modules, 'bondpy',
                        SimpleNamespace(bondpy=SimpleNamespace(Bond=FakeBond)))
    return made


def test_a_bond_lives_from_activation_to_deactivation(bonds):
    with World(autostart=False, bond_heartbeat_period=0.25, namespace='robot_1') as world:
        def change(transition):
            return world.change(transition)
        assert change(CONFIGURE)
        assert not bonds
        assert change(ACTIVATE)
        bond, = bonds
        assert (bond.topic, bond.bond_id) == ('bond', 'nerfmatch_localizer')
        assert (bond.period, bond.timeout, bond.started) == (0.25, 4.0, True)
        assert world.client.count_publishers('/robot_1/bond') == 1
        active = counts(world.node)
        assert change(DEACTIVATE)
        assert bond.is_shutdown
        for _ in range(3):
            assert change(ACTIVATE)
            assert counts(world.node) == active, 'bondpy leaves its topics with the node'
            assert change(DEACTIVATE)
        assert len(bonds) == 4 and all(bond.is_shutdown for bond in bonds)


def test_a_bond_breaks_when_the_node_gives_up_or_ends(bonds):
    with World(bond_heartbeat_period=0.25, tf_mode='map_to_camera') as world:
        world.connect(static=False)
        for _ in range(3):
            world.drive(1, behaviour=Behaviour.OUT_OF_MEMORY)
        world.wait_for(lambda: world.state == 'inactive', 'the node to give up')
        assert bonds[0].is_shutdown
        assert world.change(ACTIVATE)
    assert len(bonds) == 2 and bonds[1].is_shutdown


def test_the_refiner_has_a_bond_as_well(bonds):
    with World(autostart=False, refiner=True,
               refiner_parameters={'autostart': False, 'bond_heartbeat_period': 1.0}) as world:
        assert world.change(CONFIGURE, NODES[1]) and world.change(ACTIVATE, NODES[1])
        assert [bond.bond_id for bond in bonds] == ['nerfmatch_refiner']


def test_without_a_period_there_is_no_bond(bonds):
    with World() as world:
        world.wait_for(lambda: world.state == 'active', 'an active node')
        assert not bonds


def test_without_bondpy_the_node_warns_and_works(monkeypatch):
    monkeypatch.setitem(sys.modules, 'bondpy', None)
    with World(autostart=False, bond_heartbeat_period=0.25, tf_mode='map_to_camera') as world:
        assert world.change(CONFIGURE) and world.change(ACTIVATE)
        world.wait_for(lambda: world.logged('bond_heartbeat_period is 0.25'), 'a warning')
        line, = [log.msg for log in world.logs if 'bond' in log.msg]
        assert 'install bondpy' in line and 'bond_timeout to 0.0' in line
        world.connect(static=False)
        world.localize()
