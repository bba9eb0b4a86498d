"""Files that others published: recognised, loaded strictly, and never executed."""

from facm.pretrained.convert import export_reference, import_file
from facm.pretrained.from_file import FromFile, built
from facm.pretrained.reader import Published, open_published

__all__ = ["FromFile", "Published", "built", "export_reference", "import_file", "open_published"]
