"""Writes what nerfstudio renders of small random models, for test/test_nerfstudio_import.py.

Run it where nerfstudio 1.1.5 is installed (its models are made by its own code; only the metric
that would download weights is left out):

    python tools/make_nerfstudio_fixture.py test/data/nerfstudio

Each model gets a folder as `ns-train` leaves it (config.yml, dataparser_transforms.json,
nerfstudio_models/step-*.ckpt) and rendered.npz: rays of the data set's cameras and what the model
in evaluation mode finds along them. The mip-NeRF, whose size nerfstudio fixes, has no checkpoint:
its weights are drawn from names by `seeded_weights`, which the test repeats.
"""

import argparse
import copy
import json
from pathlib import Path
import zlib

import numpy as np
import torch
import torchmetrics.image.lpip
import yaml

PIXELS = 6  # rays a camera


class NoMetric(torch.nn.Module):
    """Stands for the perceptual metric, whose weights are not needed."""

    def __init__(self, normalize: bool):
        super().__init__()


def seeded_weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Draw weights that depend on their names and shapes only, of the size of trained ones."""
    weights = {}
    for name, shape in shapes.items():
        draw = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
        # So that space is neither empty nor opaque everywhere.
        size = 2 if 'hash_table' in name else -4 if 'density' in name else 1
        if name.endswith('density.net.bias'):
            draw = np.full(shape, 7.5 / 4 / np.sqrt(2))
        weights[name] = (size * draw / np.sqrt(max(np.prod(shape[1:]), 1) / 2)).astype(np.float32)
    return weights


def write_transforms(folder: Path) -> None:
    """Write a data set of eight cameras that look at the origin; no picture is needed."""
    draw = np.random.RandomState(0)
    frames = []
    for index in range(8):
        backward = draw.standard_normal(3) + [0, 0, 0.5]
        centre = 3 * backward / np.linalg.norm(backward)
        backward = centre / np.linalg.norm(centre)
        right = np.cross([0.1, 0.2, 1.0], backward)
        right /= np.linalg.norm(right)
        pose = np.eye(4)
        pose[:3, :3] = np.stack([right, np.cross(backward, right), backward], axis=1)
        pose[:3, 3] = centre + [4, -2, 1]
        frames.append({'file_path': f'images/{index}.png', 'transform_matrix': pose.tolist()})
    (folder / 'transforms.json').write_text(json.dumps({
        'camera_model': 'OPENCV', 'w': 32, 'h': 24, 'fl_x': 30.0, 'fl_y': 31.0, 'cx': 16.5,
        'cy': 11.0, 'k1': 0.02, 'k2': -0.01, 'p1': 0.001, 'p2': 0.002,
        'applied_transform': [[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, -1, 0.25]], 'frames': frames}))


def configurations() -> dict:
    """Make nerfstudio's own configurations, with small networks."""
    from nerfstudio.configs.method_configs import method_configs
    nerfacto = copy.deepcopy(method_configs['nerfacto'])
    model = nerfacto.pipeline.model
    model.implementation = 'torch'
    model.hidden_dim, model.hidden_dim_color, model.appearance_embed_dim = 12, 10, 6
    model.num_levels, model.max_res, model.log2_hashmap_size = 4, 60, 8
    model.average_init_density = 1.5
    model.num_proposal_samples_per_ray, model.num_nerf_samples_per_ray = (20, 14), 12
    model.proposal_net_args_list = [
        {'hidden_dim': 8, 'log2_hashmap_size': 7, 'num_levels': 2, 'max_res': 24,
         'use_linear': False},
        {'hidden_dim': 6, 'log2_hashmap_size': 7, 'num_levels': 3, 'max_res': 30,
         'use_linear': False}]
    bounded = copy.deepcopy(nerfacto)
    model = bounded.pipeline.model
    model.disable_scene_contraction = True
    model.use_same_proposal_network = True
    model.proposal_net_args_list = [
        {'log2_hashmap_size': 7, 'num_levels': 2, 'max_res': 24, 'use_linear': True}]
    model.proposal_initial_sampler, model.far_plane = 'uniform', 4.0
    model.use_average_appearance_embedding = False
    model.background_color, model.average_init_density = 'white', 0.5
    mip = copy.deepcopy(method_configs['mipnerf'])
    mip.pipeline.model.num_coarse_samples = 24
    mip.pipeline.model.num_importance_samples = 16
    from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
    mip.pipeline.datamanager.dataparser = NerfstudioDataParserConfig()
    return {'nerfacto': nerfacto, 'bounded': bounded, 'mipnerf': mip}


def rays_of(cameras):
    """Cast a few rays of each training camera, without those that distortion spoils."""
    draw = np.random.RandomState(1)
    indices = torch.arange(len(cameras)).repeat_interleave(PIXELS)[:, None]
    pixels = torch.from_numpy(np.stack([
        draw.randint(0, 24, len(indices)), draw.randint(0, 32, len(indices))], axis=1))
    return indices, pixels, cameras.generate_rays(indices, coords=pixels + 0.5)


def render(model, rays) -> dict[str, torch.Tensor]:
    """Render as nerfstudio evaluates a model, and keep the intervals it chose."""
    found = {}
    sampler = getattr(model, 'sampler_pdf', None) or model.proposal_sampler
    kept = sampler.register_forward_hook(
        lambda module, inputs, output: found.update(samples=output))
    with torch.no_grad():
        outputs = model(rays)
    kept.remove()
    samples = found['samples'][0] if isinstance(found['samples'], tuple) else found['samples']
    edges = torch.cat([samples.frustums.starts[..., 0], samples.frustums.ends[:, -1:, 0]], dim=-1)
    names = {'rgb': 'colour', 'rgb_fine': 'colour', 'accumulation': 'opacity',
             'accumulation_fine': 'opacity', 'depth': 'median', 'depth_fine': 'median',
             'expected_depth': 'mean'}
    return {'edges': edges,
            **{ours: outputs[theirs] for theirs, ours in names.items() if theirs in outputs}}


def trunk_features(model) -> dict[str, torch.Tensor]:
    """Evaluate the trunk's hidden layer at points in and far beyond the box."""
    from nerfstudio.data.scene_box import SceneBox
    points = torch.from_numpy(np.random.RandomState(2).standard_normal((40, 3)) * 1.5).float()
    if model.config.disable_scene_contraction:
        points = points.clamp(-1.4, 1.4)
        unit = SceneBox.get_normalized_positions(points, model.field.aabb)
    else:
        unit = (model.field.spatial_distortion(points) + 2) / 4
    encoder, network = model.field.mlp_base.model
    with torch.no_grad():
        features = torch.relu(network.layers[0](encoder(unit)))
        return {'points': points, 'features': features,
                'density': model.field.density_fn(points)[:, 0]}


def save_checkpoint(model, config, folder: Path) -> None:
    """Save the model and its optimizers after a step, as nerfstudio's trainer does."""
    from nerfstudio.engine.optimizers import Optimizers
    groups = {name: values for name, values in model.get_param_groups().items()
              if name in config.optimizers}
    optimizers = Optimizers({name: config.optimizers[name] for name in groups}, groups)
    optimizers.optimizer_step_all()
    optimizers.scheduler_step_all(0)
    pipeline = torch.nn.Module()
    pipeline._model = model
    (folder / 'nerfstudio_models').mkdir()
    torch.save(
        {'step': 9, 'pipeline': pipeline.state_dict(),
         'optimizers': {k: v.state_dict() for k, v in optimizers.optimizers.items()},
         'schedulers': {k: v.state_dict() for k, v in optimizers.schedulers.items()},
         'scalers': torch.amp.GradScaler('cpu', enabled=False).state_dict()},
        folder / 'nerfstudio_models' / 'step-000000009.ckpt')


def main() -> None:
    """Write the fixture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('output', type=Path)
    output = parser.parse_args().output
    torchmetrics.image.lpip.LearnedPerceptualImagePatchSimilarity = NoMetric
    output.mkdir(parents=True)
    write_transforms(output)
    for name, config in configurations().items():
        folder = output / name
        folder.mkdir()
        parser_config = config.pipeline.datamanager.dataparser
        parser_config.data, parser_config.downscale_factor = output.resolve(), 1
        parser_config.scene_scale = 1.5
        data = parser_config.setup().get_dataparser_outputs(split='train')
        parser_config.data = Path('data')  # as it was written where the model was trained
        data.save_dataparser_transform(folder / 'dataparser_transforms.json')
        model = config.pipeline.model.setup(
            scene_box=data.scene_box, num_train_data=len(data.cameras))
        shapes = {key: tuple(value.shape) for key, value in model.named_parameters()
                  if 'camera_optimizer' not in key}
        for key, value in seeded_weights(shapes).items():
            dict(model.named_parameters())[key].data.copy_(
                torch.from_numpy(value))
        if name != 'mipnerf':
            model.camera_optimizer.pose_adjustment.data[:] = torch.tensor(
                [0.03, -0.04, 0.0, 0.0, 0.1, 0.0])
        model.eval()
        indices, pixels, rays = rays_of(data.cameras)
        found = {'camera': indices[:, 0], 'pixel': pixels.flip(-1), 'origins': rays.origins,
                 'directions': rays.directions, 'pixel_area': rays.pixel_area[:, 0],
                 **render(model, rays)}
        if name == 'mipnerf':
            (folder / 'shapes.json').write_text(json.dumps(
                {f'_model.{key}': shape for key, shape in shapes.items()}))
        else:
            found |= trunk_features(model)
        np.savez_compressed(folder / 'rendered.npz', **{k: v.numpy() for k, v in found.items()})
        if name != 'mipnerf':
            save_checkpoint(model, config, folder)
        (folder / 'config.yml').write_text(yaml.dump(config))
        print(name, {key: (tuple(value.shape), value.float().mean().item())
                     for key, value in found.items()})


if __name__ == '__main__':
    main()
