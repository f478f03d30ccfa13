"""Guardrails AI: a custom validator that calls the model, in its asynchronous guard.

Validators of its hub need a download, and its LangChain runnable blocks the event loop, which rules out concurrent
turns; so the guard is awaited after the model.
"""

import os
from pathlib import Path
from typing import Any

from benchmarks.governance.runner import Contender
from benchmarks.governance.server import CHECK

PROMPT = (
    CHECK + " It has to keep to the policy of the company.\nThe answer: {answer}\nShould it be blocked (Yes or No)?"
)


def contenders(url: str, folder: Path) -> dict[str, Contender]:
    # Its telemetry cannot be sent here, and attempts take time: its settings file disables it.
    os.environ["HOME"] = str(folder)
    (folder / ".guardrailsrc").write_text("enable_metrics=false\n")
    from guardrails import AsyncGuard  # type: ignore[import-not-found]
    from guardrails.validator_base import (  # type: ignore[import-not-found]
        FailResult,
        PassResult,
        Validator,
        register_validator,
    )
    from langchain_openai import ChatOpenAI

    chat = ChatOpenAI(model="m", base_url=f"{url}/guardrails-ai/v1", api_key="none", max_retries=0)  # type: ignore[arg-type]

    @register_validator(name="self-check", data_type="string")
    class SelfCheck(Validator):  # type: ignore[misc]
        """Asks the model whether the answer should be blocked."""

        async def async_validate(self, value: Any, metadata: dict[str, Any]) -> Any:
            said = await chat.ainvoke(PROMPT.format(answer=value))
            return PassResult() if str(said.text).startswith("No") else FailResult(error_message="Blocked.")

    guard = AsyncGuard().use(SelfCheck(on_fail="exception"))

    async def turn(question: str) -> str:
        drafted = await chat.ainvoke(question)
        return str((await guard.validate(str(drafted.text))).validated_output)

    return {"guardrails-ai": Contender(turn)}
