"""``python -m s3prl_distiller``: the same as ``s3prl-distiller``."""

import sys

from .cli.main import main

if __name__ == "__main__":
    sys.exit(main())
