"""What a check found, whether that is good, and the line to write where it is not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Verdict = Literal["good", "note", "wrong"]
MARKS: dict[Verdict, str] = {"good": "ok", "note": "note", "wrong": "WRONG"}


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    what: what was looked at, in a word or two.
    verdict: "good", "note" (to be known, and no error) or "wrong".
    found: what was measured, in words.
    write: the line to write, of Python or as an option; empty where nothing has to change.
    """

    what: str
    verdict: Verdict
    found: str
    write: str = ""

    def __str__(self) -> str:
        line = f"{MARKS[self.verdict]:5}  {self.what:14}  {self.found}"
        return f"{line}\n{'':23}write: {self.write}" if self.write else line


@dataclass(frozen=True)
class Checkup:
    """All findings about one network.

    name: of the network.
    picture: the file with samples, if one was asked for.
    """

    name: str
    findings: tuple[Finding, ...]
    picture: Path | None = None

    @property
    def wrong(self) -> tuple[Finding, ...]:
        """The findings that have to be mended before a student can be distilled."""
        return tuple(finding for finding in self.findings if finding.verdict == "wrong")

    @property
    def good(self) -> bool:
        """Whether nothing is wrong."""
        return not self.wrong

    def of(self, what: str) -> Finding:
        """The finding about ``what``. Raises KeyError where there is none."""
        for finding in self.findings:
            if finding.what == what:
                return finding
        raise KeyError(what)

    def __str__(self) -> str:
        n = len(self.wrong)
        verdict = "nothing is wrong" if self.good else f"{n} thing{'s' * (n > 1)} to mend"
        picture = [f"samples: {self.picture}"] if self.picture is not None else []
        return "\n".join([f"{self.name}: {verdict}", *map(str, self.findings), *picture])
