"""Where randomness comes from: hashes of (seed, content, index), and of nothing else.

So two requests never share noise, and a request draws the same whatever its id, its place in a file, the batch and what ran before.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Sequence

from spct.types import ScoreRequest, Turn

CONTENT_BYTES = 16


def content_key(request: ScoreRequest) -> bytes:
    """Hash what a request asks (query, responses, reference, principles; not id, samples or seed) to 16 bytes.

    A query given as text and as a single user turn, and principles given as text and as a list of one, make the same prompt and so the
    same key. Every field goes in with its kind, count and lengths, so that no two other requests encode alike.
    """
    turns = (Turn("user", request.query),) if isinstance(request.query, str) else request.query
    principles = (request.principles,) if isinstance(request.principles, str) else request.principles
    query = [text for turn in turns if isinstance(turn, Turn) for text in (turn.role, turn.content)]
    digest = hashlib.blake2b(digest_size=CONTENT_BYTES, person=b"spct.content")
    for field in (query, request.responses, None if request.reference is None else (request.reference,), principles):
        digest.update(_encode(field))
    return digest.digest()


def sample_seed(seed: int, content: bytes, index: int) -> int:
    """Give the noise key of sample `index` of a request: 0 .. 2^63 - 1, so that it fits an int64 tensor."""
    return _key(b"spct.sample", seed, content, index)


def generation_seed(seed: int, prompt_ids: Sequence[int], index: int) -> int:
    """Give the noise key of sample `index` of a bare prompt: 0 .. 2^63 - 1."""
    prompt = hashlib.blake2b(struct.pack(f"<{len(prompt_ids)}q", *prompt_ids), digest_size=CONTENT_BYTES, person=b"spct.prompt").digest()
    return _key(b"spct.generate", seed, prompt, index)


def _key(person: bytes, seed: int, content: bytes, index: int) -> int:
    digest = hashlib.blake2b(struct.pack("<qq", seed, index) + content, digest_size=8, person=person).digest()
    return int.from_bytes(digest, "little") >> 1


def _encode(texts: Iterable[str] | None) -> bytes:
    if texts is None:
        return b"\x00"
    encoded = [text.encode() for text in texts]
    return b"\x01" + struct.pack("<q", len(encoded)) + b"".join(struct.pack("<q", len(text)) + text for text in encoded)
