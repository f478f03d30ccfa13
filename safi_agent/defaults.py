"""Default values of the settings, for SafiChain, create_safi_chain, SafiMiddleware and the command line alike.

This module imports nothing of LangChain, so that the command line can show the defaults without loading it.
"""

from typing import Final

MODEL: Final = "openai:gpt-4o"  # used where no model is given and OPENAI_API_KEY is set
VALUES: Final = "unesco"
STORE: Final = "sqlite:///safi.db"
LOG: Final = "saf-spirit-log.json"
BETA: Final = 0.9
REVIEW_BELOW: Final = 6
DRIFT_ABOVE: Final = 0.4
CHECK_SHARE: Final = 0.05
JUDGE_DRIFT_ABOVE: Final = 0.2
CONSCIENCE_CALLS: Final = "all"
SCORE_MODE: Final = "discrete"
WILL_SEES_REFLECTION: Final = True
DRAFTS: Final = 1
MIN_AGREEMENT: Final = 0.0
REFUSE_TRUNCATED: Final = False
RAISE_ON_VIOLATION: Final = False
AUDIT_ATTEMPTS: Final = 3
AUDIT_BACKOFF: Final = 1.0
AUDIT_TIMEOUT: Final = 120.0
AUDIT_MODE: Final = "in_process"
MAX_PENDING: Final = 10_000
WHEN_FULL: Final = "wait"
TRACE_CONTENTS: Final = False
WILL_MODE: Final = "enforce"
REFUSED: Final = "minimal"
