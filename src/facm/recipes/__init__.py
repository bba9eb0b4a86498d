"""Functions that return a Run: the experiments of the paper, and small ones that run on a laptop."""
