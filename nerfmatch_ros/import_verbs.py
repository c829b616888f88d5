"""The verbs of `nerfmatch import`: what other programs trained becomes data of this one.

Each verb is one function that hands its files on to `importers/`, which is imported when it runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from tyro.conf import arg, subcommand, Suppress


def import_nerfstudio(
    *,
    config: Annotated[Path, arg(help='config.yml that nerfstudio wrote beside its checkpoints')],
    output: Annotated[Path, arg(help='folder of the field, for `nerfmatch build --field`')],
    checkpoint: Annotated[Path | None, arg(
        help='step-*.ckpt; else the last one in nerfstudio_models beside config.yml')] = None,
) -> None:
    """Take over a nerfacto or mip-nerf model that nerfstudio trained."""
    from nerfmatch_ros.importers.nerfstudio import import_field
    imported = import_field(config, output, checkpoint)
    print(f'{output}: {imported}')


def import_verb(
    done: Annotated[
        Annotated[Any, subcommand('nerfstudio', constructor=import_nerfstudio)]
        | Annotated[None, Suppress],  # a union of one would be no choice of a subcommand
        arg(name='')],
) -> int | None:
    """Take over what another program trained."""
    return done
