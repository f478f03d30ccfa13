"""The log ``saf-spirit-log.json``: one line a turn, each chained to the one before it."""

from safi_agent.log.append import flush, log_path, write

__all__ = ["flush", "log_path", "write"]
