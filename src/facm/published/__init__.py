"""Files that others published: recognised, loaded strictly, and never executed."""

from facm.published.convert import export_reference, import_file
from facm.published.from_file import FromFile, built
from facm.published.opened import Published, open_published

__all__ = ["FromFile", "Published", "built", "export_reference", "import_file", "open_published"]
