"""The recipe file of runs that tests make: other processes find their networks through its copy in the run folder."""

from tests.distributed.parallel_parts import Awake

__all__ = ["Awake"]
