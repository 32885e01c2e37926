"""Which layers of a teacher to predict: a short probe of this teacher on this data, and what it proposes.

What differs from layer to layer depends on the teacher and the data (Pasad et al. 2021, arXiv 2107.04734);
DistilHuBERT (arXiv 2110.01900) took layers 4, 8 and 12 by hand.
"""

from .run import with_targets

__all__ = ["with_targets"]
