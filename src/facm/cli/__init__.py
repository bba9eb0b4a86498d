"""The command line. Heavy imports wait until a command runs."""

from facm.cli.main import main

__all__ = ["main"]
