"""Train, evaluate or use a SUPERB task: ``python run_downstream.py -u NAME -d TASK`` (``-h`` lists the options)."""

import sys

from s3prl_distiller.cli.downstream import main

if __name__ == "__main__":
    sys.exit(main())
