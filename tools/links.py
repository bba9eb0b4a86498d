"""Every link of the project's pages leads somewhere: to a file that is there, and to a heading that it has.

    python tools/links.py

Pages are the Markdown files that git knows. Addresses of the web are not asked.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[1]
WEB = ("http://", "https://", "mailto:")


def pages() -> list[Path]:
    known = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in known.stdout.split()]


@cache
def parsed(page: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8"))


def links(page: Path) -> Iterator[str]:
    """Of a page: where its links and pictures lead."""
    for token in parsed(page):
        for part in token.children or ():
            target = part.attrs.get("href", part.attrs.get("src"))
            if isinstance(target, str):
                yield target


@cache
def anchors(page: Path) -> set[str]:
    """Names of a page's headings: lower case, without punctuation, hyphens for spaces."""
    tokens = parsed(page)
    titles = [after.content for token, after in pairwise(tokens) if token.type == "heading_open"]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def broken(page: Path) -> Iterator[str]:
    """What a page's links say and where they should lead, for those that lead nowhere."""
    for link in links(page):
        if link.startswith(WEB):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists():
            yield f"{link}: there is no {path}"
        elif anchor and target.suffix == ".md" and anchor not in anchors(target):
            yield f"{link}: {target.name} has no heading #{anchor}"


def main() -> None:
    found = [f"{page.relative_to(ROOT)}: {said}" for page in pages() for said in broken(page)]
    if found:
        sys.exit("\n".join(found))


if __name__ == "__main__":
    main()
