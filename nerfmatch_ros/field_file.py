"""A radiance field on disk without a map: a field that was imported, for builds to start from.

A folder of `field.yaml` (version, frame, configuration, where it comes from, sha256) and
`field.safetensors`. It is data only, and `field.yaml` is written last.
"""

from dataclasses import dataclass
import hashlib
from pathlib import Path
from typing import Any

from nerfmatch_ros.config import from_dict, load_yaml, to_dict
from nerfmatch_ros.errors import DataError, NerfmatchError
from nerfmatch_ros.files import file_sha256, write_text, written_atomically
from nerfmatch_ros.geometry.similarity import Similarity
from nerfmatch_ros.radiance_field.field import RadianceField
from nerfmatch_ros.radiance_field.scene_frame import SceneFrame
from nerfmatch_ros.scene_map import FieldConfig
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
import yaml

FORMAT = 'nerfmatch_ros field'
VERSION = 1


@dataclass(frozen=True)
class FieldFile:
    """A field, its frame and its origin."""

    config: FieldConfig
    field: RadianceField
    frame: SceneFrame
    images: int  # that it was trained on, rows of its appearance table
    source: dict[str, Any]  # plain values: what trained it, and how far

    def save(self, folder: Path) -> None:
        """Write the folder; a field that lies there is replaced, anything else is an error."""
        folder = Path(folder)
        if folder.exists() and not folder.is_dir():
            raise DataError(f'{folder} is a file; give a folder for the field')
        if folder.exists() and any(folder.iterdir()) and not (folder / 'field.yaml').exists():
            raise DataError(f'{folder} is not empty and holds no field; choose another folder')
        (folder / 'field.yaml').unlink(missing_ok=True)
        weights = folder / 'field.safetensors'
        with written_atomically(weights) as temporary:
            save_file({name: value.contiguous().cpu()
                       for name, value in self.field.state_dict().items()}, temporary)
            temporary.chmod(0o644)  # safetensors makes files that only the owner can read
        write_text(folder / 'field.yaml', yaml.safe_dump({
            'format': FORMAT, 'version': VERSION, 'source': self.source, 'images': self.images,
            'scene_frame': {'scene_from_map': self.frame.scene_from_map.to_dict(),
                            'near': self.frame.near, 'far': self.frame.far,
                            'ball': self.frame.ball},
            'field': to_dict(self.config), 'sha256': file_sha256(weights)}, sort_keys=False))

    def mark(self) -> str:
        """Give a text that differs between fields of other weights or frames."""
        frame = [self.frame.scene_from_map.to_dict(), self.frame.near, self.frame.far]
        digest = hashlib.sha256(str(frame).encode())
        for name, value in sorted(self.field.state_dict().items()):
            digest.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    @staticmethod
    def load(folder: Path) -> 'FieldFile':
        """Read and check the folder; the field is in evaluation mode and frozen."""
        folder = Path(folder)
        if not (folder / 'field.yaml').is_file():
            raise DataError(f'{folder} holds no field.yaml, so it is no field; '
                            'make one with `nerfmatch import`')
        described = load_yaml(folder / 'field.yaml')
        if not isinstance(described, dict) or described.get('format') != FORMAT \
                or described.get('version') != VERSION:
            raise DataError(f"{folder / 'field.yaml'} does not describe a field ('format: {FORMAT}"
                            f"', 'version: {VERSION}'); import it again")
        weights = folder / 'field.safetensors'
        try:
            found = file_sha256(weights)
            if found != described['sha256']:
                raise DataError(f"{weights} is damaged: sha256 is {found}, field.yaml says "
                                f"{described['sha256']}; import it again")
            config = from_dict(FieldConfig, described['field'], 'field.yaml: field')
            scene = described['scene_frame']
            frame = SceneFrame(Similarity.from_dict(scene['scene_from_map']),
                               float(scene['near']), float(scene['far']), bool(scene['ball']))
            images = int(described['images'])
            field = config.make(images)
            field.load_state_dict(load_file(weights))
            source = dict(described['source'])
        except NerfmatchError:
            raise
        except (AttributeError, LookupError, OSError, RuntimeError, SafetensorError, TypeError,
                ValueError) as error:
            raise DataError(f'{folder} cannot be read as a field: {error!r}; '
                            'import it again') from error
        field.eval().requires_grad_(False)
        return FieldFile(config, field, frame, images, source)
