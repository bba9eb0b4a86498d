"""What the site takes from outside of docs/: the results, as pages; and links to files of the repository, as text.

Pages are written to be read in the repository, where ``../results/README.md`` is a file. Here it is a page of the site,
and a file that is no page, such as a source, is named without a link.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
OUTSIDE = ("results/README.md", "results/LOG.md")
_LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]*)\]\((?P<path>(?:\.\./)+[^)#]*)(?P<anchor>#[^)]*)?\)")

_TAGS = re.compile(r"\] \[([\w ]+)\]")  # names of rows side by side, which would be a link by reference


def on_files(files: Files, config: Any) -> Files:
    for path in OUTSIDE:
        files.append(File.generated(config, path, content=(ROOT / path).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links out of the page's folder, followed from its place in the repository."""
    source = page.file.src_uri
    place = ROOT / source if source in OUTSIDE else ROOT / "docs" / source

    def followed(link: re.Match[str]) -> str:
        target = (place.parent / link["path"]).resolve()
        inside = target.relative_to(ROOT).as_posix()
        up = "../" * source.count("/")
        if inside in OUTSIDE:
            return f"[{link['text']}]({up}{inside}{link['anchor'] or ''})"
        if inside.startswith("docs/") and target.suffix in (".md", ".png"):
            return f"[{link['text']}]({up}{inside.removeprefix('docs/')}{link['anchor'] or ''})"
        return link["text"] if link["text"].startswith("`") else f"{link['text']} (`{inside}`)"

    found = _LINK.sub(followed, markdown)
    found = _TAGS.sub(r"] \\[\1]", found)
    if source in OUTSIDE:  # links beside it that are no pages: rows of measurements
        found = re.sub(r"\[([^\]]*)\]\((?!http|#|LOG\.md|README\.md|\.\./)([^)]*)\)", r"`results/\2`", found)
    return found
