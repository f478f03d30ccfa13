"""Refusing settings that cannot be meant."""

import math
from typing import Any

from langchain_core.embeddings import Embeddings

from safi_agent.faculties.spirit import beta_out

MOST_DRAFTS = 64
LEAST_BYTES = 4096  # of a log before it is set aside: a file a line helps nobody


def check(chain: Any) -> None:
    """Look at a chain's settings as a whole.

    Raises:
        ValueError: one is out of its range; the text names it, what is allowed and what came.
        TypeError: a hook cannot be called.
    """
    if beta_out(chain.beta):
        raise ValueError(f"beta: expected a number in [0, 1), got {chain.beta!r}.")
    for name, least in (("audit_attempts", 1), ("audit_backoff", 0), ("audit_timeout", 0), ("drift_above", 0)):
        number = getattr(chain, name)
        if not (math.isfinite(number) and number >= least):
            raise ValueError(f"{name}: expected a number of at least {least}, got {number!r}.")
    if not math.isfinite(chain.review_below):
        raise ValueError(f"review_below: expected a number, got {chain.review_below!r}.")
    _check_drafting(chain)
    if chain.log_max_bytes is not None and chain.log_max_bytes < LEAST_BYTES:
        raise ValueError(f"log_max_bytes: expected None or at least {LEAST_BYTES}, got {chain.log_max_bytes!r}.")
    for hook in chain.hooks:
        if not callable(hook):
            raise TypeError(f"hooks: expected callables, got {type(hook).__name__}.")


def _check_drafting(chain: Any) -> None:
    if isinstance(chain.drafts, bool) or not 1 <= chain.drafts <= MOST_DRAFTS:
        raise ValueError(f"drafts: expected a whole number from 1 to {MOST_DRAFTS}, got {chain.drafts!r}.")
    if chain.embeddings is not None and not isinstance(chain.embeddings, Embeddings):
        raise TypeError(f"embeddings: expected LangChain's Embeddings or None, got {type(chain.embeddings).__name__}.")
    if chain.drafts_alike is not None and not -1 <= chain.drafts_alike <= 1:
        raise ValueError(f"drafts_alike: expected a cosine similarity in [-1, 1], got {chain.drafts_alike!r}.")
    if not 0 <= chain.min_agreement <= 1:
        raise ValueError(f"min_agreement: expected a share in [0, 1], got {chain.min_agreement!r}.")
    if chain.min_agreement and chain.drafts == 1:
        raise ValueError(f"min_agreement: expected 0 where there is one draft, got {chain.min_agreement!r}.")
