"""The bond of a node with its lifecycle manager: signs of life, without which it is taken down."""

from typing import Any

TOPIC = 'bond'  # of nav2_lifecycle_manager; relative, as the manager has it
MANAGER_SILENCE = 4.0  # seconds; what the nodes of nav2 bear of their manager


def form_bond(node: Any, period: float) -> Any:
    """
    Start to send signs of life every `period` seconds; give the bond, for `break_bond`.

    None: period is 0, or bondpy is not installed, which is warned of.
    """
    if not period:
        return None
    try:
        from bondpy import bondpy
    except ImportError as error:
        node.get_logger().warning(
            f'bond_heartbeat_period is {period:g}, but there is no bond: {error}; install bondpy, '
            'or set bond_heartbeat_period to 0 here and bond_timeout to 0.0 in the lifecycle '
            'manager, which otherwise takes this node down')
        return None
    bond = bondpy.Bond(node, TOPIC, node.get_name())
    bond.set_heartbeat_period(period)
    bond.set_heartbeat_timeout(MANAGER_SILENCE)
    bond.start()
    return bond


def break_bond(node: Any, bond: Any):
    """Tell the manager that no more signs of life will come; bond: of `form_bond`, or None."""
    if bond is None:
        return
    bond.shutdown()
    # bondpy invalidates these, but leaves them with the node, one more with each activation.
    node.destroy_subscription(bond.sub)
    node.destroy_publisher(bond.pub)
