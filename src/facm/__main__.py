"""python -m facm, and torchrun -m facm."""

import os

from facm.cli import main

if __name__ == "__main__":
    if "TORCHELASTIC_RUN_ID" in os.environ:  # only then: it imports torch, for which facm --help must not wait
        from facm.distributed.torchrun import recorded

        recorded(main)
    else:
        main()
