"""The results file: one JSON line per run, appended as runs finish; a torn last line is never read."""

import json
from pathlib import Path
from typing import Any


class Results:
    """The lines that [`measure`] returned.

    Args:
        path: the file; created with the first line.
    """

    def __init__(self, path: Path):
        self.path = path

    def lines(self) -> list[dict[str, Any]]:
        """Read all complete lines; one that a kill has torn is skipped."""
        if not self.path.is_file():
            return []
        lines = []
        for text in self.path.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:
                continue
        return lines

    def finished(self) -> set[str]:
        """Collect the keys of the recorded runs."""
        return {line["run"] for line in self.lines()}

    def append(self, line: dict[str, Any]) -> None:
        """Write a line to the disk before returning."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        torn = self.path.is_file() and self.path.stat().st_size and not self.path.read_bytes().endswith(b"\n")
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(("\n" if torn else "") + json.dumps(line) + "\n")
