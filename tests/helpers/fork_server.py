"""Imports `spct score` once and forks a process per command line (a JSON list on stdin); answers with its process id.

For tests that need many processes of the program: what each runs, and how it dies, is as after a start of its own.
"""

import json
import os
import signal
import sys

import spct.cli.score  # noqa: F401 - imported for the children
from spct.cli.main import main

if __name__ == "__main__":
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for words in sys.stdin:
        child = os.fork()
        if not child:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os._exit(main(json.loads(words)))
        print(child, flush=True)
