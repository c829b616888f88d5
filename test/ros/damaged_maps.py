"""Maps with one fault each, made of the map of the demo."""

import hashlib
from pathlib import Path
import shutil

import nerfmatch_ros
from nerfmatch_ros.scene_map import FILES
from safetensors.torch import load_file, save_file
import torch
import yaml

DEMO_MAP = Path(nerfmatch_ros.__file__).parent / 'demo_map'
FIELD, MATCHER, REFERENCES, SURFACE = FILES


def describe(folder, **changes):
    path = folder / 'map.yaml'
    description = yaml.safe_load(path.read_text(encoding='utf-8'))
    path.write_text(yaml.safe_dump({**description, **changes}), encoding='utf-8')


def signed(folder):
    """Make the checksums right again, as a malicious or mistaken writer would."""
    describe(folder, sha256={
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES})


def truncate(path):
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])


def tensor(name, change):
    """Change the first large tensor of a file; its checksum is right afterwards."""
    def damage(folder):
        tensors = load_file(folder / name)
        key = max(tensors, key=lambda key: tensors[key].numel())
        tensors[key] = change(tensors[key]).contiguous()
        save_file(tensors, folder / name)
        signed(folder)
    return damage


def cut_short(folder):
    """Keep what is still valid YAML: the first lines, without the checksums."""
    path = folder / 'map.yaml'
    lines = path.read_text(encoding='utf-8').splitlines(keepends=True)
    end = next(k for k, line in enumerate(lines) if line.startswith('sha256'))
    path.write_text(''.join(lines[:end]), encoding='utf-8')


def with_nan(values):
    values = values.float().clone()
    values.view(-1)[0] = torch.nan
    return values


def claim_a_huge_tensor(folder):
    """State a size in the header that no memory could hold."""
    header = (b'{"points":{"dtype":"F32","shape":[1099511627776,3],'
              b'"data_offsets":[0,13194139533312]}}')
    (folder / SURFACE).write_bytes(len(header).to_bytes(8, 'little') + header)
    signed(folder)


def link(folder):
    outside = folder.parent / 'outside.safetensors'
    shutil.move(folder / FIELD, outside)
    (folder / FIELD).symlink_to(outside)


def empty_folder(folder):
    shutil.rmtree(folder)
    folder.mkdir()


# name: what is done to a copy of a map, which part of it is at fault, what is said of it
DAMAGES = {
    'missing folder': (shutil.rmtree, 'folder', 'there is no map folder'),
    'empty folder': (empty_folder, 'folder', 'holds no map.yaml'),
    'truncated description': (cut_short, 'description', 'states no sha256'),
    'broken description': (lambda folder: (folder / 'map.yaml').write_text('a: [1, {'),
                           'description', 'map.yaml'),
    'other version': (lambda folder: describe(folder, version=99), 'description', 'version 99'),
    'other format': (lambda folder: describe(folder, format='a song'), 'description',
                     'does not describe a map'),
    'missing file': (lambda folder: (folder / MATCHER).unlink(), 'data', 'is missing'),
    'empty file': (lambda folder: (folder / MATCHER).write_bytes(b''), 'data', 'sha256'),
    'truncated file': (lambda folder: truncate(folder / MATCHER), 'data', 'sha256'),
    'link': (link, 'data', 'no plain file'),
    'wrong checksum': (lambda folder: describe(folder, sha256=dict.fromkeys(FILES, '0' * 64)),
                       'data', 'sha256'),
    'no checksums': (lambda folder: describe(folder, sha256=None), 'description',
                     'states no sha256'),
    'NaN weights': (tensor(MATCHER, with_nan), 'data', 'NaN'),
    'other shape': (tensor(SURFACE, lambda values: values[:, :2]), 'data', 'shape'),
    'references of another type': (tensor(REFERENCES, lambda values: values.to(torch.int64)),
                                   'data', 'is of type torch.int64'),
    'weights of another type': (tensor(FIELD, lambda values: values.to(torch.int32)), 'data',
                                'is of type torch.int32'),
    'huge tensor': (claim_a_huge_tensor, 'data', 'cannot be read as a map'),
}
