"""The tool that follows the links of the documentation."""

from pathlib import Path

from tools import links


def test_a_missing_file_and_a_missing_heading_are_found(tmp_path: Path) -> None:
    page, other = tmp_path / "page.md", tmp_path / "other.md"
    other.write_text("# A title: with `code`, and more\n\n| a |\n|---|\n| [b](page.md) |\n", encoding="utf-8")
    page.write_text(
        "# Page\n\n[1](other.md) [2](other.md#a-title-with-code-and-more) [3](#page) [4](https://example.org/none)\n\n"
        "[5](none.md)\n\n| [6](other.md#none) |\n|---|\n| ![7](none.png) |\n",
        encoding="utf-8",
    )
    assert list(links.broken(other)) == []
    assert [said.partition(":")[0] for said in links.broken(page)] == ["none.md", "other.md#none", "none.png"]
