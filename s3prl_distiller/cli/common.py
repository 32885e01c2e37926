"""What every command shares: logging, and errors that a user can act on."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from tqdm import tqdm

log = logging.getLogger(__name__)

_FORMAT = logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S")


class _AboveTheBar(logging.Handler):
    """Writes log lines to stderr without tearing the progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


def run_command(command: Callable[[], int]) -> int:
    """Run a command with logging to stderr.

    Returns its exit status; 2 with one line on stderr where the user can mend what is wrong (ValueError); 130 after
    Ctrl-C.
    """
    handler = _AboveTheBar(logging.INFO)
    handler.setFormatter(_FORMAT)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("s3prl_distiller").setLevel(logging.DEBUG)
    _quiet_libraries()
    # Gradients that fade through hundreds of frames of an LSTM end up subnormal, which makes a CPU half as fast.
    # Threads take it over from the one that starts them, so it is set before there are any.
    torch.set_flush_denormal(True)
    try:
        return command()
    except torch.OutOfMemoryError as error:
        return _refuse(
            f"the GPU's memory is full ({str(error).splitlines()[0]}): lower data.batch_seconds or data.batch_size and "
            "raise runner.gradient_accumulate_steps, or set runner.gradient_checkpointing=true"
        )
    except (ValueError, OSError) as error:
        # OSError: a folder that cannot be written, say, which its message names.
        return _refuse(str(error))
    except KeyboardInterrupt:
        tqdm.write("stopped", file=sys.stderr)
        return 130
    finally:
        torch.set_flush_denormal(False)


def _refuse(message: str) -> int:
    """One line for the user; where it came from goes to the run's log file only."""
    tqdm.write(f"error: {message}", file=sys.stderr)
    log.debug("error: %s", message, exc_info=True)
    return 2


def log_to(path: Path) -> None:
    """Log to a file as well, after what it holds already."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(_FORMAT)
    logging.getLogger().addHandler(handler)


def _quiet_libraries() -> None:
    """Silence what libraries say about themselves and a user of ours can do nothing about."""
    logging.getLogger("s3prl").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module="s3prl")
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
