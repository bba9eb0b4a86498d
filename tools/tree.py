"""Writes the tree of src/facm into docs/architecture.md, one line a file: the first sentence of its docstring.

python tools/tree.py            writes it
python tools/tree.py --check    exits with 1 if it is not up to date
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- tree -->\n", "<!-- end of tree -->"
ORDER = (
    *("cli", "studies", "recipes", "training", "evaluation", "foundation", "pretrained", "sampling", "runs", "latents"),
    *("objectives", "flow", "derivative", "networks", "data", "distributed", "core"),
)
"""Packages from the top layer to the ground."""
WIDTH = 28


def sentence(file: Path) -> str:
    """The first sentence of a module's docstring."""
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    first = " ".join(text.partition("\n\n")[0].split())
    return re.split(r"(?<=[.:])\s(?=[A-Z(])", first)[0].rstrip(".:")


def lines(folder: Path, depth: int = 0) -> list[str]:
    """A package, its modules, then its packages, indented by depth."""
    name = f"{'  ' * depth}{folder.name}/"
    found = [f"{name:{WIDTH}}{sentence(folder / '__init__.py')}"]
    for file in sorted(folder.glob("*.py")):
        if file.name not in ("__init__.py", "__main__.py"):
            name = f"{'  ' * (depth + 1)}{file.stem}"
            found.append(f"{name:{WIDTH}}{sentence(file)}")
    for inner in sorted(path for path in folder.iterdir() if (path / "__init__.py").exists()):
        found += lines(inner, depth + 1)
    return found


def tree() -> str:
    """The whole tree as a block of text for the page."""
    package = ROOT / "src" / "facm"
    found = [line for name in ORDER for line in lines(package / name)]
    return "```\n" + "\n".join(found) + "\n```\n"


def main() -> None:
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    made = before + BEGIN + tree() + END + after
    if "--check" in sys.argv[1:]:
        if made != page:
            sys.exit("docs/architecture.md: the tree is not that of src/facm; run: python tools/tree.py")
        return
    PAGE.write_text(made, encoding="utf-8")


if __name__ == "__main__":
    main()
