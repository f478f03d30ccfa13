"""SAFi for LangChain: a runnable that answers only what its Will lets through, and audits every answer."""

__all__: list[str] = []
