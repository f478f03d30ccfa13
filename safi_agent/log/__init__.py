"""The log ``saf-spirit-log.json``: one line a turn, each chained to the one before it."""

from safi_agent.log.path import log_path
from safi_agent.log.writer import flush, write

__all__ = ["flush", "log_path", "write"]
