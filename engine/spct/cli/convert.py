"""`spct convert`: a Hugging Face folder from a GGUF file."""

from __future__ import annotations

from argparse import Namespace

from spct.cli.console import note, readable_bytes, waiting
from spct.cli.exit_codes import EXIT_OK
from spct.conversion import convert_gguf


def main(args: Namespace) -> int:
    """Converts one file and says what was written.

    Raises: SpctError if the file can't be read or converted, or the folder can't be written.
    """
    with waiting("converting"):
        written = convert_gguf(args.source, args.output, dtype=args.dtype, overwrite=args.overwrite)
    note(
        f"{args.output}: {written.architecture}, {written.num_parameters:,} parameters, {readable_bytes(written.num_bytes)} as {args.dtype}"
    )
    return EXIT_OK
