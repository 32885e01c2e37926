"""The encoder's fast path: the numbers of the plain definition beside it, with no work on padding and less to move.

``packing`` lays the frames of all utterances of a batch end to end, so that the rest of the model sees one long
utterance and only attention and positions know their bounds; ``front_end``, ``strided``, ``first_layer`` and
``positions`` compute convolutions as matrix products. ``step`` is distillation on it, ``replay`` the same from CUDA
graphs. ``inference`` runs a student in a precision, from ``products`` and ``int8``, on a CPU in ``blocks``; ``chunks``
takes recordings of any length.
"""

from .front_end import packed_features
from .packing import Packing, pack, room_for

__all__ = ["Packing", "pack", "packed_features", "room_for"]
