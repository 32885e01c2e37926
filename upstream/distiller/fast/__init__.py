"""The encoder's fast path: the numbers of the plain definition beside it, with no work on padding and less to move.

``front_end`` and ``positions`` compute convolutions as matrix products; ``packing`` lays the frames of all utterances
of a batch end to end, so that the rest of the model sees one long utterance and only attention knows their bounds.
"""

from .front_end import packed_features
from .packing import Packing, pack

__all__ = ["Packing", "pack", "packed_features"]
