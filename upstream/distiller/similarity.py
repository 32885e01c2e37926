"""How alike two models hear: the cosine of frames of the same width, linear CKA of layers of any widths.

Centred kernel alignment is that of Kornblith et al. 2019 (arXiv 1905.00414). Tensors in, tensors out, in the precision
they come in.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

FEWEST = 4
"""Frames that :func:`cka_matrix` needs: with fewer the unbiased estimate is not defined."""


def frame_cosine(predicted: Tensor, true: Tensor) -> Tensor:
    """Cosine similarity of each frame: (..., T, D) twice to (..., T). Frames that are all zero have 0."""
    return F.cosine_similarity(predicted, true, dim=-1)


def linear_cka(x: Tensor, y: Tensor, debiased: bool = False) -> float:
    """Linear CKA of two representations of the same frames, (T, D) and (T, E); as :func:`cka_matrix`."""
    return float(cka_matrix([x], [y], debiased)[0, 0])


def cka_matrix(xs: Sequence[Tensor], ys: Sequence[Tensor], debiased: bool = False) -> Tensor:
    """Linear CKA of each of some layers with each of others, all of the same frames.

    1 where frames lie to each other as they do in the other layer, up to rotation, reflection and one factor; 0 where
    they lie independently.

    Args:
        xs: layers (T, D), of any widths D.
        ys: layers (T, E), of any widths E.
        debiased: estimate each product without bias (Song et al. 2012, JMLR 13). The plain estimate tends to 1 as
            widths exceed frames, whatever the layers are; this one stays about 0 for unrelated layers, and can fall
            a little below it.

    Returns:
        (len(xs), len(ys)); NaN where a layer does not vary.

    Raises:
        ValueError: frames differ in number, or are fewer than :data:`FEWEST`.
    """
    counts = {len(layer) for layer in (*xs, *ys)}
    if len(counts) != 1:
        raise ValueError(f"layers of {', '.join(map(str, sorted(counts)))} frames cannot be compared: align them")
    if min(counts) < FEWEST:
        raise ValueError(f"{min(counts)} frames are too few to compare layers by: {FEWEST} are needed")
    ours, theirs = (torch.stack([_unit_gram(layer, debiased) for layer in layers]) for layers in (xs, ys))
    return ours @ theirs.T


def _unit_gram(x: Tensor, debiased: bool) -> Tensor:
    """Centred Gram matrix of (T, D), flattened and of norm 1, so that CKA is a dot product: (T * T,)."""
    centred = x - x.mean(0)
    # Less than this is what rounding leaves of a layer that says the same of every frame.
    varies = centred.norm() > 4 * torch.finfo(x.dtype).eps * x.norm()
    # CKA does not depend on the scale, and squares of squares may overflow.
    centred = centred / centred.norm()
    gram = centred @ centred.T
    if debiased:
        # Centred so that products without the diagonal are unbiased (U-centring, arXiv 1310.2926).
        frames = len(gram)
        gram.fill_diagonal_(0)
        sums = gram.sum(0)
        gram = gram - (sums[:, None] + sums) / (frames - 2) + sums.sum() / ((frames - 1) * (frames - 2))
        gram.fill_diagonal_(0)
    flat = gram.flatten()
    return flat / flat.norm() if varies else torch.full_like(flat, torch.nan)
