"""Samples from a trained network."""

from facm.sampling.generate import Consistency, DPMSolverPP, EDMHeun, Euler, Heun, Jumps

__all__ = ["Consistency", "DPMSolverPP", "EDMHeun", "Euler", "Heun", "Jumps"]
