"""Triton's attention against the reference in fp64, and rows of a tree computed alone."""

import torch

from spct_kernels import AttentionPlan, shared_prefix_attention


def assert_within_rule(actual, same_dtype, exact):
    """err(kernel, fp64) <= 2 err(torch in the same dtype, fp64) + 4 fp32 roundings of the largest value."""
    assert actual.dtype == same_dtype.dtype
    assert torch.equal(actual.isnan(), exact.isnan())
    finite = exact.isfinite()
    assert torch.equal(actual[~finite].double(), exact[~finite])
    if finite.any():
        exact = exact[finite]
        error, allowed = ((values[finite].double() - exact).abs().max().item() for values in (actual, same_dtype))
        assert error <= 2 * allowed + 4 * torch.finfo(torch.float32).eps * exact.abs().max().item()


def compare(inputs):
    """Both outputs of the Triton backend against the reference in fp64 and in the inputs' dtype."""
    wide = {**inputs, **{name: inputs[name].double() for name in ("q", "k_cache", "v_cache")}}
    results = shared_prefix_attention(**inputs, return_lse=True, backend="triton")
    own = shared_prefix_attention(**inputs, return_lse=True, backend="reference")
    exact = shared_prefix_attention(**wide, return_lse=True, backend="reference")
    for result, same_dtype, truth in zip(results, own, exact, strict=True):
        assert_within_rule(result, same_dtype, truth)
    return results


def rows_alone(tree, inputs, heads, rows):
    """Some rows, each computed in a plan that holds its path only, as one node."""
    plan, outputs = inputs["plan"], []
    offset = plan.nodes[0].tolist()
    for row in rows:
        path, above = [], tree.row_nodes[row]
        while above >= 0:
            path = plan.node_slots[offset[above] : offset[above + 1]].tolist() + path
            above = tree.parents[above]
        alone = AttentionPlan.build(
            node_parent=[-1],
            node_offset=[0, len(path)],
            node_slots=path,
            row_node=[0],
            row_position=[tree.positions[row]],
            num_heads=heads[0],
            num_kv_heads=heads[1],
            head_dim=heads[2],
        )
        outputs.append(
            shared_prefix_attention(**{**inputs, "q": inputs["q"][row : row + 1], "plan": alone}, return_lse=True, backend="triton")
        )
    return torch.cat([out for out, _ in outputs]), torch.cat([lse for _, lse in outputs])
