"""What a training step of our matcher minimises."""

from nerfmatch_ros.mapping.match_dataset import FEWEST_SEEN, MatchBatch
from nerfmatch_ros.matching.coarse_matching import dual_softmax_loss
from nerfmatch_ros.matching.fine_matching import (
    fine_logits,
    fine_loss,
    FINE_STRIDE,
    window_features,
)
from nerfmatch_ros.matching.matcher import cell_centres, COARSE_STRIDE, NeRFMatcher
from nerfmatch_ros.matching.supervision import cells_of_pixels
import torch
from torch import nn, Tensor
import torch.nn.functional as F


class MatchingLoss(nn.Module):
    """Coarse and fine loss of a batch (paper, Eq. 3 and 4), means over its images that count."""

    def __init__(self, matcher: NeRFMatcher, *, jitter: float, fine_matches: int,
                 bfloat16: bool = True):
        super().__init__()
        self.matcher, self.jitter, self.fine_matches = matcher, jitter, fine_matches
        self.bfloat16 = bfloat16

    def forward(self, batch: MatchBatch) -> Tensor:
        """Give both losses (2,).

        Images are encoded in bfloat16. Similarities are not: scaled by the temperature they would
        be rounded to steps of a quarter, which blurs what tells neighbouring points apart.
        """
        matcher = self.matcher
        device = next(matcher.parameters()).device
        rows, columns = (side // COARSE_STRIDE for side in batch.images.shape[-2:])
        with torch.autocast(device.type, torch.bfloat16, enabled=self.bfloat16):
            tokens, fine = matcher.encode_images(
                batch.images.to(device).contiguous(memory_format=torch.channels_last))
        noise = torch.randn(batch.points.shape,
                            generator=torch.Generator().manual_seed(batch.seed))
        features = None if batch.features is None else batch.features.to(device)
        points = matcher.encode_points((batch.points + self.jitter * noise).to(device), features)
        # Reaches what a matching image would: processes whose images match and those whose do not
        # must go through the same backward pass, with the same sums over all of them.
        nothing = tokens.sum() + sum(parameter.sum() for parameter in self.parameters())
        if matcher.config.fine:
            nothing = nothing + fine.sum()
        # Unbound once: the gradient of an indexed image would be a whole batch of zeros each time.
        tokens = tokens.unbind(0)
        fine = fine.split(1) if matcher.config.fine else None
        losses = []
        for k, (seen, pixels, seed) in enumerate(zip(batch.seen, batch.pixels, batch.seeds)):
            if len(seen) < FEWEST_SEEN:
                continue
            cells = F.normalize(tokens[k].float(), dim=-1)
            cell = cells_of_pixels(pixels, rows, columns, COARSE_STRIDE)
            coarse_loss = dual_softmax_loss(
                cells, points.coarse, cell.to(device), seen.to(device), matcher.scale)
            if not matcher.config.fine:
                losses.append(torch.stack([coarse_loss, torch.zeros_like(coarse_loss)]))
                continue
            generator = torch.Generator().manual_seed(seed)
            chosen = torch.randperm(len(seen), generator=generator)[:self.fine_matches]
            # The window of a wrong neighbouring cell must lead to the point as well.
            shift = torch.randint(-1, 2, (len(chosen), 2), generator=generator) * FINE_STRIDE
            centres = cell_centres(cell[chosen], columns) + shift
            window, positions, inside = window_features(
                fine[k], torch.zeros_like(chosen).to(device), centres.to(device),
                matcher.config.window)
            logits = fine_logits(window.float(), points.fine[seen[chosen].to(device)].float(),
                                 inside, matcher.fine_scale)
            losses.append(torch.stack([
                coarse_loss, fine_loss(logits, positions, inside, pixels[chosen].to(device))]))
        if losses:
            return torch.stack(losses).mean(0)
        return nothing * torch.zeros(2, device=device)
