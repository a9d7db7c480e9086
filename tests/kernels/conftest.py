"""Triton's kernels run under its interpreter here; it is chosen when Triton is first imported, so before any test module."""

import os

os.environ.setdefault("TRITON_INTERPRET", "1")
