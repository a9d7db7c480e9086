"""Stands for CUDA's graphs on a CPU, under Triton's interpreter: a tape of launches and torch ops with frozen arguments."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves
from triton.runtime.interpreter import GridExecutor


class TapeGraph:
    """What was captured. As with a CUDA graph, numbers and addresses are those of the capture; only what is in the buffers may change."""

    def __init__(self):
        self.calls = []

    def replay(self):
        with _disable_current_modes():
            for call, results in self.calls:
                for old, new in zip(results, tensors(call()), strict=True):
                    if old.data_ptr() != new.data_ptr():
                        old.copy_(new)


class TapeCapture(TorchDispatchMode):
    """Captures by running once to warm up and once to record. A wait for the host, or host data that would be frozen, is an error."""

    refused = ("_local_scalar_dense", "lift_fresh", "nonzero", "item")

    def __call__(self, run):
        run()
        self.graph, own = TapeGraph(), GridExecutor.__call__
        launches = self

        def launched(executor, *arguments, **options):
            def call():
                own(executor, *arguments, **options)

            launches.graph.calls.append((call, []))
            with _disable_current_modes():
                call()

        GridExecutor.__call__ = launched
        try:
            with self:
                result = run()
        finally:
            GridExecutor.__call__ = own
        return self.graph, result

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        options = options or {}
        name = function.overloadpacket.__name__
        if name in self.refused:
            raise AssertionError(f"{name}: a captured step can't wait for the device or take data from the host")
        results = function(*arguments, **options)
        # A view's memory is another call's result.
        given = {one.untyped_storage().data_ptr() for one in tensors((arguments, options))}
        if not any(one.untyped_storage().data_ptr() in given for one in tensors(results)) or function._schema.is_mutable:
            self.graph.calls.append((lambda: function(*arguments, **options), tensors(results)))
        return results


def tensors(tree):
    """The tensors in a tree of tuples, lists and dictionaries."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
