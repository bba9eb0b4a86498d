"""Samples from a trained network."""

from facm.sampling.methods import Consistency, DPMSolverPP, EDMHeun, Euler, Heun, Jumps

__all__ = ["Consistency", "DPMSolverPP", "EDMHeun", "Euler", "Heun", "Jumps"]
