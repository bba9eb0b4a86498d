"""python -m facm, and torchrun -m facm."""

from facm.cli import main

if __name__ == "__main__":
    main()
