"""What ``safi_agent`` offers, loaded when the first of it is used."""

from safi_agent.agents.tools import ToolRule
from safi_agent.chain import SafiChain, create_safi_chain
from safi_agent.errors import BacklogError, ClosedError, IntellectError, OutboxError, SafiError, ViolationError
from safi_agent.faculties.spirit import Assessment, assess
from safi_agent.hooks import Alert
from safi_agent.ledger import Finding
from safi_agent.lifecycle import Drained
from safi_agent.middleware import SafiMiddleware
from safi_agent.store.backlog import Backlog
from safi_agent.values import Value, ValueSet, load_values

__all__ = [
    "Alert",
    "Assessment",
    "Backlog",
    "BacklogError",
    "ClosedError",
    "Drained",
    "Finding",
    "IntellectError",
    "OutboxError",
    "SafiChain",
    "SafiError",
    "SafiMiddleware",
    "ToolRule",
    "Value",
    "ValueSet",
    "ViolationError",
    "assess",
    "create_safi_chain",
    "load_values",
]
