"""What each stage of training adds: gathers folders of `spct eval -o DIR --against DIR_BEFORE` into one document for the tables.

    python bench/stages.py NAME=DIR [NAME=DIR …] --machine TEXT --command TEXT -o bench/results/stages.json

The folders stand in the order of training; each but the first must have been compared with the one before it.
"""

from __future__ import annotations

import argparse
import datetime
import json
from pathlib import Path
from typing import Any

CURVES = ("greedy", "voting")


def main() -> None:
    """Writes the document."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("stages", nargs="+", metavar="NAME=DIR")
    parser.add_argument("--machine", required=True)
    parser.add_argument("--command", required=True, help="how each folder was made")
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    stages: list[dict[str, Any]] = []
    before: Path | None = None
    for text in options.stages:
        name, _, folder = text.partition("=")
        report = json.loads((Path(folder) / "accuracy.json").read_text())
        stage = {"name": name, "items": report["items"], **{curve: report[curve] for curve in CURVES}}
        if before is not None:
            against = report.get("against", {})
            if against.get("run") != before.name:
                raise SystemExit(f"{folder}: expected a report --against {before.name}, got one against {against.get('run')}")
            stage["against"] = {curve: against[curve] for curve in CURVES}
        stages.append(stage)
        before = Path(folder)
    measured = {"date": datetime.date.today().isoformat(), "machine": options.machine, "command": options.command}
    options.output.write_text(json.dumps({"bench": "stages", "measured": measured, "stages": stages}, indent=1) + "\n")


if __name__ == "__main__":
    main()
