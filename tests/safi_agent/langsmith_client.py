"""A client of LangSmith that sends nothing and keeps what it was to send."""

from typing import Any

from langsmith import Client


class Kept(Client):
    """Keeps the runs that are made and changed, as text."""

    def __init__(self) -> None:
        super().__init__(api_url="http://127.0.0.1:9", api_key="none", auto_batch_tracing=False)
        self.sent: list[str] = []

    def create_run(self, *args: Any, **kwargs: Any) -> None:
        self.sent.append(repr((args, kwargs)))

    def update_run(self, *args: Any, **kwargs: Any) -> None:
        self.sent.append(repr((args, kwargs)))
