"""A recipe file that the runs of :mod:`tests.foundation.wan_parts` come from, so that their folders can be opened."""

from tests.foundation.wan_parts import Prompted, ZeroNull

__all__ = ["Prompted", "ZeroNull"]
