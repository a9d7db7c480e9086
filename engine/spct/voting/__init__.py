"""From what judges wrote to rewards: parser, orders, noise keys, filter and votes."""

from spct.voting.orders import in_request_order, order_of, orders
from spct.voting.parse import parse_scores
from spct.voting.seeds import content_key, generation_seed, sample_seed
from spct.voting.soft import ScoreRead, SoftReader, expected_scores
from spct.voting.votes import Outcome, ParsedSample, judge, num_kept, read_sample, resolve_filter

__all__ = [
    "Outcome",
    "ParsedSample",
    "ScoreRead",
    "SoftReader",
    "content_key",
    "expected_scores",
    "generation_seed",
    "in_request_order",
    "judge",
    "num_kept",
    "order_of",
    "orders",
    "parse_scores",
    "read_sample",
    "resolve_filter",
    "sample_seed",
]
