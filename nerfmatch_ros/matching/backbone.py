"""Image features at 1/8 and 1/2 resolution from networks of timm, which is imported nowhere else.

`ConvFormerBackbone` and `TimmPyramidBackbone` take images (B, 3, H, W), RGB with ImageNet's mean
and deviation taken out, H and W multiples of `COARSE_STRIDE`, and give a coarse map
(B, C, H/8, W/8) and a fine map (B, Cf, H/2, W/2). `make_context_backbone` makes what regresses
scene geometry: one map at 1/8 that sees most of the picture.
"""

from nerfmatch_ros.errors import ConfigError, DataError
from nerfmatch_ros.matching.compact_backbone import CompactContextBackbone
import torch
from torch import nn, Tensor
import torch.nn.functional as F

COARSE_STRIDE = 8
FINE_STRIDE = 2
IMAGENET_MEAN = (0.485, 0.456, 0.406)  # of R, G, B in [0, 1]
IMAGENET_DEVIATION = (0.229, 0.224, 0.225)


def _create(
    name: str, *, pretrained: bool, out_indices: tuple[int, ...] | None,
) -> nn.Module:
    """Let timm build a network that gives feature maps, all of them where none are named.

    The only place where timm is called.
    """
    try:
        import timm  # late: a second of import time that most commands do not need
    except ImportError as error:
        raise ConfigError(f'the image backbone {name!r} needs the package timm, which does not '
                          f'import ({error}); install timm and torchvision') from error
    if not timm.is_model(name):
        raise ConfigError(f'timm {timm.__version__} has no network {name!r}; '
                          'timm.list_models() lists the names')
    try:
        chosen = {} if out_indices is None else {'out_indices': out_indices}
        return timm.create_model(name, pretrained=pretrained, features_only=True, **chosen)
    except (AttributeError, IndexError, RuntimeError, OSError, AssertionError) as error:
        cause = str(error).splitlines()[0] if str(error) else type(error).__name__
        if pretrained:
            raise ConfigError(
                f'the pretrained weights of {name!r} could not be fetched or loaded ({cause}); '
                'check the connection to the Hugging Face hub, or start from random weights with '
                'pretrained=False') from error
        raise ConfigError(f'the network {name!r} gives no feature maps {out_indices} ({cause}); '
                          'choose a convolutional one such as resnet18') from error


def _check_size(image: Tensor) -> None:
    height, width = image.shape[-2:]
    if height % COARSE_STRIDE or width % COARSE_STRIDE:
        raise DataError(f'an image of {width}x{height} pixels went into the backbone; scale it to '
                        f'multiples of {COARSE_STRIDE} first')


class ConvFormerBackbone(nn.Module):
    """The first two stages of a ConvFormer (MetaFormer baselines), as in NeRFMatch.

    Without the fine map (NeRFMatch-Mini) the strides are the network's own, 4 and 8. With it the
    stem is slowed down to stride 2, so that the first stage is the fine map, and the second
    stage's downsampling is quickened to 4.
    """

    def __init__(
        self, name: str = 'convformer_b36', fine: bool = True, pretrained: bool = False,
    ):
        super().__init__()
        if not name.startswith('convformer_'):
            raise ConfigError(f'{name!r} is not a ConvFormer; use convformer_s18 or '
                              'convformer_b36, or TimmPyramidBackbone for other networks')
        if pretrained and '.' not in name:
            name += '.sail_in1k_384'  # the weights that the paper starts from
        self.fine = fine
        self.stages = _create(name, pretrained=pretrained, out_indices=(0, 1))
        self.fine_channels, self.coarse_channels = self.stages.feature_info.channels()
        if fine:
            self.stages.stem.conv.stride = (FINE_STRIDE, FINE_STRIDE)
            self.stages.stem.conv.padding = (3, 3)
            step = COARSE_STRIDE // FINE_STRIDE
            self.stages.stages_1.downsample.conv.stride = (step, step)

    def recompute(self, enabled: bool) -> None:
        """Compute inner maps once more in the backward pass of a training, not keep them.

        A third more time for a third of the memory; the result is the same.
        """
        for stage in (self.stages.stages_0, self.stages.stages_1):
            stage.grad_checkpointing = enabled

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor | None]:
        """Give the coarse map and, if the backbone was built with it, the fine one."""
        _check_size(image)
        first, second = self.stages(image)
        return second, first if self.fine else None


class TimmPyramidBackbone(nn.Module):
    """Any convolutional network of timm, its maps of stride 2, 4 and 8 fused from the top down."""

    def __init__(
        self, name: str = 'resnet18', fine: bool = True, pretrained: bool = False, *,
        coarse_channels: int = 256, fine_channels: int = 128,
    ):
        super().__init__()
        self.coarse_channels, self.fine_channels = coarse_channels, fine_channels
        with torch.device('meta'):  # learns the strides without drawing a weight
            strides = _create(name, pretrained=False, out_indices=(0, 1, 2, 3)).feature_info
        levels = {stride: index for index, stride in enumerate(strides.reduction())}
        wanted = (FINE_STRIDE, 4, COARSE_STRIDE) if fine else (COARSE_STRIDE,)
        if any(stride not in levels for stride in wanted):
            raise ConfigError(
                f'{name!r} gives maps of stride {tuple(levels)}, and strides {wanted} are needed; '
                'choose a network such as resnet18, or fine=False')
        self.network = _create(
            name, pretrained=pretrained, out_indices=tuple(levels[stride] for stride in wanted))
        *lower, top = self.network.feature_info.channels()
        self.coarse_lateral = nn.Conv2d(top, coarse_channels, 1)
        self.fine = fine
        if fine:
            self.top_down = nn.Conv2d(coarse_channels, fine_channels, 1)
            self.laterals = nn.ModuleList(
                nn.Conv2d(channels, fine_channels, 1) for channels in reversed(lower))
            # Smooths the staircase that upsampling leaves.
            self.smooth = nn.Conv2d(fine_channels, fine_channels, 3, padding=1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor | None]:
        """Give the coarse map and, if the backbone was built with it, the fine one."""
        _check_size(image)
        *lower, top = self.network(image)
        coarse = self.coarse_lateral(top)
        if not self.fine:
            return coarse, None
        fused = self.top_down(coarse)
        for lateral, level in zip(self.laterals, reversed(lower), strict=True):
            fused = lateral(level) + F.interpolate(
                fused, size=level.shape[-2:], mode='bilinear', align_corners=False)
        return coarse, self.smooth(fused)


class UnitRangeBackbone(nn.Module):
    """A backbone of this module for images in [0, 1]: takes ImageNet's statistics out first."""

    def __init__(self, backbone: ConvFormerBackbone | TimmPyramidBackbone):
        super().__init__()
        self.backbone = backbone
        self.coarse_channels, self.fine_channels = backbone.coarse_channels, backbone.fine_channels
        for name, values in (('mean', IMAGENET_MEAN), ('deviation', IMAGENET_DEVIATION)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor | None]:
        """Give the coarse map and, if the backbone was built with it, the fine one."""
        return self.backbone((image - self.mean) / self.deviation)


def make_timm_backbone(name: str, *, fine: bool, pretrained: bool = False) -> UnitRangeBackbone:
    """Build the backbone for a name of timm: the paper's if it is a ConvFormer, else a pyramid."""
    kind = ConvFormerBackbone if name.startswith('convformer_') else TimmPyramidBackbone
    return UnitRangeBackbone(kind(name, fine=fine, pretrained=pretrained))


class TimmContextBackbone(nn.Module):
    """Any convolutional network of timm, its maps of stride 8, 16 and 32 fused to one of 8.

    Unlike the pyramid for matching it gives no finer map, but each cell sees more of the picture.
    """

    def __init__(self, name: str, *, channels: int, pretrained: bool = False):
        super().__init__()
        with torch.device('meta'):  # learns the strides without drawing a weight
            strides = _create(name, pretrained=False, out_indices=None).feature_info.reduction()
        levels = [strides.index(stride) for stride in (COARSE_STRIDE, 16, 32) if stride in strides]
        if COARSE_STRIDE not in strides:
            raise ConfigError(f'{name!r} gives maps of stride {tuple(strides)}, and '
                              f'{COARSE_STRIDE} is needed; choose a network such as resnet18')
        self.network = _create(name, pretrained=pretrained, out_indices=tuple(levels))
        self.laterals = nn.ModuleList(
            nn.Conv2d(width, channels, 1) for width in self.network.feature_info.channels())
        self.mix = nn.Sequential(
            nn.BatchNorm2d(channels), nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1))
        for statistic, values in (('mean', IMAGENET_MEAN), ('deviation', IMAGENET_DEVIATION)):
            self.register_buffer(statistic, torch.tensor(values).view(3, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Encode images (B, 3, H, W) in [0, 1] to features (B, channels, H/8, W/8)."""
        _check_size(image)
        maps = self.network((image - self.mean) / self.deviation)
        fused = None
        for lateral, level in zip(reversed(self.laterals), reversed(maps), strict=True):
            here = lateral(level)
            fused = here if fused is None else here + F.interpolate(
                fused, size=level.shape[-2:], mode='bilinear', align_corners=False)
        return self.mix(fused)


def make_context_backbone(name: str, *, channels: int, pretrained: bool = False) -> nn.Module:
    """Make images (B, 3, H, W) in [0, 1] -> features (B, channels, H/8, W/8).

    name: 'compact', our own, or one of timm.
    """
    if name == 'compact':
        if pretrained:
            raise ConfigError("the backbone 'compact' has no pretrained weights; choose one of "
                              'timm such as resnet18, or pretrained=False')
        return CompactContextBackbone(channels)
    return TimmContextBackbone(name, channels=channels, pretrained=pretrained)
