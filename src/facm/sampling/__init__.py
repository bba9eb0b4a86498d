"""Samples from a trained network."""

from facm.sampling.methods import (
    Consistency,
    DPMSolverPP,
    EDMHeun,
    Euler,
    FlowThenJump,
    Heun,
    Jumps,
    Method,
    Moves,
    Phased,
    default_method,
)
from facm.sampling.source import Source, VelocityFields

__all__ = [
    "Consistency",
    "DPMSolverPP",
    "EDMHeun",
    "Euler",
    "FlowThenJump",
    "Heun",
    "Jumps",
    "Method",
    "Moves",
    "Phased",
    "Source",
    "VelocityFields",
    "default_method",
]
