"""How large a network can claim to be: bounds that no published one exceeds, held before anything is allocated."""

from __future__ import annotations

from typing import Annotated, Any

from facm.core.component import ComponentError, Range

Size = Annotated[int, Range("[1, 65536]")]
"""A width, a number of channels, a height: 65,536 is four times as wide as the widest language models."""
Depth = Annotated[int, Range("[1, 512]")]
"""A number of blocks; published transformers of images have fewer than 100."""
LARGEST = 10**12
"""Numbers in all weights and tables of a network: the largest published ones of images have 10^11."""


def check_numbers(config: Any, numbers: float) -> None:
    """Raise ComponentError for a configuration whose weights and tables have so many ``numbers`` that none can be."""
    if numbers > LARGEST:
        raise ComponentError(
            f"{type(config).__name__}: its sizes together make about {numbers:.0e} weights, expected at most "
            f"{LARGEST:.0e}"
        )
