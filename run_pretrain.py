"""Distil a speech model: ``python run_pretrain.py -u distiller`` (``-h`` lists the options)."""

import sys

from s3prl_distiller.cli.pretrain import main

if __name__ == "__main__":
    sys.exit(main())
