"""Files that others published: recognised, loaded strictly, and never executed."""

from facm.pretrained.convert import export_reference, import_file
from facm.pretrained.from_file import FromFile, built
from facm.pretrained.given import GivenWeights, given_weights
from facm.pretrained.reader import Published, open_published

__all__ = [
    "FromFile",
    "GivenWeights",
    "Published",
    "built",
    "export_reference",
    "given_weights",
    "import_file",
    "open_published",
]
