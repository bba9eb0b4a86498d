"""Trained networks, out of a run's folder or out of a file."""

from facm.published import FromFile

__all__ = ["FromFile"]
