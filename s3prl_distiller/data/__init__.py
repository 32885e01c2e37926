"""From a folder, a manifest or lhotse data to batches of speech: ``prepare(DataConfig(...), ...)`` gives a Corpus."""

from .config import DataConfig
from .corpus import Corpus, prepare
from .loader import Batch

__all__ = ["Batch", "Corpus", "DataConfig", "prepare"]
