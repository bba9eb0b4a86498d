"""Training objectives, one file each, in the symbols of their papers."""

from facm.objectives.discrete_schedules import DoublingSteps, OverStep, ShrinkingGap, SignalToNoise

__all__ = ["DoublingSteps", "OverStep", "ShrinkingGap", "SignalToNoise"]
