"""`baseline.json`: a folder's own word that it is no ordinary judge."""

from __future__ import annotations

import json
from pathlib import Path

from spct.errors import CheckpointError

FILE = "baseline.json"
VALUE_FORMS = ("scalar", "pairwise", "semi-scalar")
TEXT_FORMS = ("judge", "no-principles")
FORMS = (*VALUE_FORMS, *TEXT_FORMS)


def write_form(folder: Path, form: str) -> None:
    """Declare the form of a finished folder; one without principles is an ordinary judge and declares nothing."""
    if form != "no-principles":
        (folder / FILE).write_text(json.dumps({"form": form}) + "\n", encoding="utf-8")


def read_form(folder: Path) -> str | None:
    """The form that a folder declares; None for an ordinary judge.

    Raises: CheckpointError if the file is malformed or the form unknown.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        form = json.loads(path.read_text(encoding="utf-8"))["form"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f'{path}: expected {{"form": NAME}}, could not read it: {error}') from None
    if form not in FORMS:
        raise CheckpointError(f"{path}: form: expected one of {', '.join(FORMS)}, got {form!r}")
    return str(form)
