"""Generates the Python package tf2_msgs, the messages of /tf, into this virtual environment.

A ROS 2 installation has tf2_msgs; the ROS wheels of PyPI do not. They bring the code generators of
ROS though, and with catkin-pkg and a C/C++ compiler these suffice: no CMake, no colcon. The result
is laid out as the packages of the wheels are, with the standard type hash, so nodes of any ROS 2
installation understand the messages.

Does nothing where tf2_msgs imports already (a ROS installation is sourced, or this ran before).

    python tools/generate_tf2_msgs.py
"""

from dataclasses import dataclass
import os
from pathlib import Path
import shutil
import subprocess
import sys
import sysconfig
import tempfile

PACKAGE = 'tf2_msgs'
DEFINITIONS = Path(__file__).resolve().parent / PACKAGE
DEPENDENCIES = ('geometry_msgs', 'std_msgs', 'builtin_interfaces')
FAST_RTPS = 'rosidl_typesupport_fastrtps_c'
INTROSPECTION = 'rosidl_typesupport_introspection_c'
GENERATED_KINDS = (
    'rosidl_generator_c', FAST_RTPS, INTROSPECTION, 'rosidl_typesupport_c', 'rosidl_generator_py'
)
RUNTIME_LIBRARIES = (
    'rosidl_runtime_c', 'rosidl_typesupport_fastrtps_c', 'rosidl_typesupport_fastrtps_cpp',
    'rosidl_typesupport_introspection_c', 'rosidl_typesupport_c', 'rcutils', 'fastcdr', 'rmw',
)
REMEDY = 'Install the ROS wheels (extra ros-wheels) and catkin-pkg here, or source a ROS 2.'


@dataclass(frozen=True)
class Sources:
    """What the generators wrote, below one folder that is also the root for #include."""

    root: Path
    package: Path  # root / PACKAGE: headers, C sources and the Python package
    introspection: Path  # its files bear names that the C generator uses too, so: a tree apart
    definitions: tuple[str, ...]  # 'msg/TFMessage.msg', ...
    idl: tuple[str, ...]  # 'msg/TFMessage.idl', ...


def imports(module: str) -> bool:
    """Whether a fresh interpreter can import the module."""
    command = [sys.executable, '-c', f'import {module}']
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def generate(root: Path, prefix: Path) -> Sources:
    """Runs the generators of ROS on the definitions; `prefix` holds the dependencies."""
    # Imported here: on a ROS installation nothing is generated and they may not be there.
    from rosidl_adapter.cli import TranslateMsgToIDL
    from rosidl_generator_c.cli import GenerateC
    from rosidl_generator_py.cli import GeneratePython
    from rosidl_generator_type_description.cli import HashTypeDescription
    from rosidl_typesupport_c.cli import GenerateCTypesupport
    from rosidl_typesupport_fastrtps_c.cli import GenerateFastRTPSCTypesupport
    from rosidl_typesupport_introspection_c.cli import GenerateIntrospectionCTypesupport

    package, introspection = root / PACKAGE, root / 'introspection' / PACKAGE
    package.mkdir()
    definitions = tuple(
        str(path.relative_to(DEFINITIONS)) for path in sorted(DEFINITIONS.glob('msg/*.msg'))
    )
    shares = [str(prefix / 'share' / name) for name in DEPENDENCIES]
    idl = TranslateMsgToIDL('').translate(
        PACKAGE, [f'{DEFINITIONS}:{name}' for name in definitions], shares, root / 'idl'
    )
    hashes = HashTypeDescription('').generate_type_hashes(PACKAGE, idl, shares, package)
    GenerateC('').generate(
        PACKAGE, idl, shares, package, type_description_files=[str(path) for path in hashes]
    )
    GeneratePython('', typesupport_implementations=['rosidl_typesupport_c']).generate(
        PACKAGE, idl, shares, package
    )
    GenerateCTypesupport('', typesupport_implementations=[FAST_RTPS, INTROSPECTION]).generate(
        PACKAGE, idl, shares, package
    )
    GenerateFastRTPSCTypesupport('').generate(PACKAGE, idl, shares, package)
    GenerateIntrospectionCTypesupport('').generate(PACKAGE, idl, shares, introspection)
    (package / '__init__.py').touch()
    names = tuple(str(path).rsplit(':', maxsplit=1)[-1] for path in idl)
    return Sources(root, package, introspection, definitions, names)


def compile_sources(files: list[Path], root: Path, prefix: Path) -> list[str]:
    """Compiles C and C++ files; returns the object files."""
    import numpy

    folders = [root, root / 'introspection', Path(sysconfig.get_paths()['include'])]
    folders += [Path(numpy.get_include()), prefix / 'include']
    folders += [
        folder for folder in (prefix / 'include').iterdir()
        if folder.is_dir() and not folder.name.startswith('python')
    ]
    flags = ['-O2', '-fPIC', '-w', *(f'-I{folder}' for folder in folders)]
    objects = []
    for file in files:
        target = root / (str(file.relative_to(root)).replace(os.sep, '_') + '.o')
        compiler = ['gcc'] if file.suffix == '.c' else ['g++', '-std=c++17']
        subprocess.check_call([*compiler, *flags, '-c', str(file), '-o', str(target)])
        objects.append(str(target))
    return objects


def link(target: Path, objects: list[str], own: list[str], origin: str, prefix: Path):
    """Links a shared library; `own` are kinds of this package, `origin` is where libraries are."""
    libraries = [f'{PACKAGE}__{kind}' for kind in own]
    libraries += [f'{name}__{kind}' for name in DEPENDENCIES for kind in GENERATED_KINDS]
    subprocess.check_call([
        'g++', '-shared', '-o', str(target), *objects, f'-L{target.parent}', f'-L{prefix / "lib"}',
        f'-Wl,-rpath,{origin}', '-Wl,--as-needed',
        *(f'-l{name}' for name in (*libraries, *RUNTIME_LIBRARIES)),
    ])


def build(sources: Sources, prefix: Path) -> tuple[list[Path], Path]:
    """Compiles and links everything; returns the libraries and the extension module."""
    package, root = sources.package, sources.root
    python = sorted(p for p in package.rglob('*.c') if p.name.endswith('_s.c') or '.ep.' in p.name)
    module = [path for path in python if '.ep.' in path.name]
    fast_rtps = sorted(package.rglob('*__type_support_c.cpp'))
    groups = {
        'rosidl_generator_c': sorted(set(package.rglob('*.c')) - set(python)),
        FAST_RTPS: fast_rtps,
        INTROSPECTION: sorted(sources.introspection.rglob('*.c')),
        'rosidl_typesupport_c': sorted(set(package.rglob('*.cpp')) - set(fast_rtps)),
        'rosidl_generator_py': [path for path in python if path not in module],
    }
    needs = {kind: ['rosidl_generator_c'] for kind in GENERATED_KINDS[1:]}
    needs['rosidl_generator_py'] = ['rosidl_generator_c', 'rosidl_typesupport_c']
    libraries = []
    for kind in GENERATED_KINDS:
        library = root / f'lib{PACKAGE}__{kind}.so'
        objects = compile_sources(groups[kind], root, prefix)
        link(library, objects, needs.get(kind, []), '$ORIGIN', prefix)
        libraries.append(library)
    suffix = sysconfig.get_config_var('EXT_SUFFIX')
    extension = root / f'{PACKAGE}_s__rosidl_typesupport_c{suffix}'
    site_packages = Path(sysconfig.get_paths()['purelib']) / PACKAGE
    origin = '$ORIGIN/' + os.path.relpath(prefix / 'lib', site_packages)
    link(extension, compile_sources(module, root, prefix), list(groups), origin, prefix)
    return libraries, extension


def install(sources: Sources, libraries: list[Path], extension: Path, prefix: Path):
    """Copies the results to where the wheels have theirs; the Python package comes last."""
    for library in libraries:
        shutil.copy(library, prefix / 'lib')
    headers = prefix / 'include' / PACKAGE / PACKAGE
    for header in sources.package.rglob('*.h'):
        copy = headers / header.relative_to(sources.package)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(header, copy)
    share = prefix / 'share' / PACKAGE
    (share / 'msg').mkdir(parents=True, exist_ok=True)
    for name in sources.definitions:
        shutil.copy(DEFINITIONS / name, share / name)
    for name in sources.idl:
        shutil.copy(sources.root / 'idl' / name, share / name)
    for path in sources.package.rglob('*.json'):
        shutil.copy(path, share / path.relative_to(sources.package))
    index = prefix / 'share' / 'ament_index' / 'resource_index'
    markers = {'packages': '', 'rosidl_interfaces': '\n'.join(sources.definitions + sources.idl)}
    for kind, text in markers.items():
        (index / kind).mkdir(parents=True, exist_ok=True)
        (index / kind / PACKAGE).write_text(text)
    site_packages = Path(sysconfig.get_paths()['purelib'])
    target = site_packages / PACKAGE
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(
        sources.package, target,
        ignore=shutil.ignore_patterns('*.c', '*.cpp', '*.h', '*.hpp', '*.json', 'detail'),
    )
    shutil.copy(extension, target)


def main() -> int:
    """Generates the package if it is missing; returns the exit code."""
    if imports(f'{PACKAGE}.msg'):
        print(f'{PACKAGE} imports: nothing to generate')
        return 0
    missing = [name for name in ('geometry_msgs', 'rosidl_adapter', 'catkin_pkg', 'numpy')
               if not imports(name)]
    if missing:
        print(f'{PACKAGE} cannot be generated: {", ".join(missing)} not importable. {REMEDY}')
        return 1
    if not (shutil.which('gcc') and shutil.which('g++')):
        print(f'{PACKAGE} cannot be generated without gcc and g++ (Debian: build-essential).')
        return 1
    if sys.prefix == sys.base_prefix:
        print(f'Refusing to install into {sys.prefix}, which is not a virtual environment.')
        return 1
    prefix = Path(sys.prefix)
    # The generators look up their own packages in the ament index of the environment.
    os.environ.setdefault('AMENT_PREFIX_PATH', str(prefix))
    with tempfile.TemporaryDirectory() as folder:
        sources = generate(Path(folder), prefix)
        libraries, extension = build(sources, prefix)
        install(sources, libraries, extension, prefix)
    if not imports(f'{PACKAGE}.msg'):
        print(f'{PACKAGE} was generated into {prefix} but does not import.')
        return 1
    print(f'Generated {PACKAGE} into {prefix}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
