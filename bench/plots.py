"""Draws the pictures of README.md and docs/ from the JSON files under bench/results/.

    python bench/plots.py            draw what has changed (needs matplotlib: the extra spct[plot])
    python bench/plots.py --check    exit 1 if a picture was not drawn from its JSON; needs no matplotlib

A picture carries the hash of the JSON that it shows, so the check does not depend on fonts or on the version of matplotlib.
"""

from __future__ import annotations

import hashlib
import json
import struct
import sys
from pathlib import Path

from spct.evaluation.plot import draw_plot

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results"
PICTURES = ("embedded-test",)
MAX_BYTES = 200_000
_KEY = "Source"


def digest(source: Path) -> str:
    """Hash of what a JSON file says, whatever its layout."""
    return hashlib.sha256(json.dumps(json.loads(source.read_text()), sort_keys=True).encode()).hexdigest()


def drawn_from(picture: Path) -> str | None:
    """The hash that a picture carries; None if it is missing or carries none."""
    data = picture.read_bytes() if picture.exists() else b""
    place = 8
    while place + 8 <= len(data):
        length, kind = struct.unpack(">I4s", data[place : place + 8])
        key, _, text = data[place + 8 : place + 8 + length].partition(b"\0")
        if kind == b"tEXt" and key == _KEY.encode():
            return text.decode()
        place += 12 + length
    return None


def main() -> int:
    """Draws or checks every picture; returns the exit code."""
    stale = [name for name in PICTURES if drawn_from(RESULTS / f"{name}.png") != digest(RESULTS / f"{name}.json")]
    for name in stale:
        source, picture = RESULTS / f"{name}.json", RESULTS / f"{name}.png"
        if "--check" in sys.argv:
            print(f"{picture.relative_to(ROOT)}: not drawn from {source.name}; run python bench/plots.py")
            continue
        if not draw_plot(json.loads(source.read_text()), picture, metadata={_KEY: digest(source)}):
            print("bench/plots.py: matplotlib is not installed (extra spct[plot])", file=sys.stderr)
            return 1
        if picture.stat().st_size > MAX_BYTES:
            print(f"{picture.relative_to(ROOT)}: expected at most {MAX_BYTES} bytes, got {picture.stat().st_size}", file=sys.stderr)
            return 1
        print(f"{picture.relative_to(ROOT)}: drawn")
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
