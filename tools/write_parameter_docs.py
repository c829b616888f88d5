"""
Writes the parameters of the nodes into config/localize.yaml and into the README.

    python tools/write_parameter_docs.py

Run it after a change of nerfmatch_ros/ros/parameters.py.
"""

from collections.abc import Iterable
from pathlib import Path
import textwrap

from nerfmatch_ros.errors import ConfigError
from nerfmatch_ros.files import write_text
from nerfmatch_ros.ros.parameter_field import Specification, specifications
from nerfmatch_ros.ros.parameters import (
    LocalizerParameters,
    RefinerParameters,
    SharedParameters,
)

ROOT = Path(__file__).resolve().parents[1]
NODES = {'nerfmatch_localizer': LocalizerParameters, 'nerfmatch_refiner': RefinerParameters}
BEGIN, END = '<!-- parameters -->', '<!-- end of parameters -->'
WIDTH = 99

HEAD = """\
# Every parameter of the localizer and the refiner with its default, for nodes of these names in
# any namespace. Used by launch/localize.launch.py unless params_file names another file; launch
# arguments that are given override it. Written by tools/write_parameter_docs.py.
"""
AT_RUN_TIME = 'May be changed while the node runs.'


def parameter_file() -> str:
    """Give the text of config/localize.yaml."""
    parts = [HEAD]
    for node, kind in NODES.items():
        parts.append(f'/**/{node}:\n  ros__parameters:\n')
        parts += [_yaml_entry(item) for item in specifications(kind).values()]
    return ''.join(parts)


def parameter_tables() -> str:
    """Give the tables of the README."""
    shared = specifications(SharedParameters)
    parts = ['Of both nodes:\n\n', _table(shared.values())]
    for node, kind in NODES.items():
        own = [item for name, item in specifications(kind).items() if name not in shared]
        parts += [f'\nOf the {node.removeprefix("nerfmatch_")}:\n\n', _table(own)]
    return ''.join(parts)


def with_tables(readme: str) -> str:
    """Give the README with the tables as they are now between the two marks."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ConfigError(f'the README has no lines {BEGIN} and {END}; put them where the tables '
                          'of parameters belong')
    return f'{before}{BEGIN}\n{parameter_tables()}{END}{after}'


def _yaml_entry(item: Specification) -> str:
    words = [item.description]
    if item.constraint:
        words.append(f'Allowed: {item.constraint}.')
    if item.runtime:
        words.append(AT_RUN_TIME)
    comment = textwrap.fill(
        ' '.join(words), WIDTH, initial_indent='    # ', subsequent_indent='    # ',
        break_long_words=False, break_on_hyphens=False)
    return f'{comment}\n    {item.name}: {_literal(item)}\n'


def _table(items: Iterable[Specification]) -> str:
    lines = ['| parameter | default | allowed | changes at run time | |',
             '|---|---|---|---|---|']
    for item in items:
        cells = (f'`{item.name}`', f'`{_literal(item)}`', item.constraint.removeprefix('one of '),
                 'yes' if item.runtime else '', item.description.replace('|', '\\|'))
        lines.append('| ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines) + '\n'


def _literal(item: Specification) -> str:
    """Write the default so that YAML and ROS read it with the right type."""
    if item.kind is bool:
        return str(item.default).lower()
    if item.kind is tuple:
        return repr(list(item.default) or [''])  # ROS finds no type in an empty list
    return repr(item.default)


if __name__ == '__main__':
    write_text(ROOT / 'config' / 'localize.yaml', parameter_file())
    readme = ROOT / 'README.md'
    write_text(readme, with_tables(readme.read_text(encoding='utf-8')))
