"""Turn any flow-matching network into a 1-4 step image generator (Flow-Anchored Consistency Models)."""

__version__ = "0.1.0"
