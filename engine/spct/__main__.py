"""`python -m spct`: the same as the command `spct`, for launchers that start modules."""

import sys

from spct.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
