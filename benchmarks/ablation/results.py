"""The file of results: one JSON line a run, appended as they come, and never half a line taken for a whole one."""

import json
from pathlib import Path
from typing import Any


class Results:
    """Lines of [`measure`], by run.

    Args:
        path: the file; made with the first line.
    """

    def __init__(self, path: Path):
        self.path = path

    def lines(self) -> list[dict[str, Any]]:
        """All whole lines; a last one that a kill has torn is left out."""
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
        """Keys of the runs that need not be repeated."""
        return {line["run"] for line in self.lines()}

    def append(self, line: dict[str, Any]) -> None:
        """Write a line to the disk before returning."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        torn = self.path.is_file() and self.path.stat().st_size and not self.path.read_bytes().endswith(b"\n")
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(("\n" if torn else "") + json.dumps(line) + "\n")
