"""Start-up: a judgement by the embedded model costs little more than importing torch (`make check`).

Compared in CPU time, which a busy machine changes less than the clock, one after the other, the smallest of several runs each.
"""

import resource
import subprocess
import sys

from command_line import environment

JUDGE = ["-m", "spct.cli.main", "judge", "--query", "2+2?", "--response", "4", "--response", "5", "--samples", "1", "--max-tokens", "1"]
MOST = 1.5
RUNS = 4


def cpu_seconds(*words):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *words], env=environment(), stdout=subprocess.DEVNULL, check=True, timeout=300)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_first_token_of_the_embedded_model_takes_at_most_one_and_a_half_times_the_import_of_torch():
    seconds = [(cpu_seconds("-c", "import torch"), cpu_seconds(*JUDGE)) for _ in range(RUNS)]
    alone, judged = (min(column) for column in zip(*seconds, strict=True))
    print(f"import torch {alone:.2f} s, judge to its first token and out {judged:.2f} s: {judged / alone:.2f}")
    assert judged <= MOST * alone
