"""Guardrails AI: a validator of one's own that asks the model, in its asynchronous guard.

Its validators of the hub would have to be downloaded, and its runnable for LangChain blocks the loop: neither can be
run here with many turns at once, so the guard is awaited after the model.
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
    # What it would send home cannot arrive here, and trying takes its time: its own file of settings says no.
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
        """Has the model say whether the answer should be blocked."""

        async def async_validate(self, value: Any, metadata: dict[str, Any]) -> Any:
            said = await chat.ainvoke(PROMPT.format(answer=value))
            return PassResult() if str(said.text).startswith("No") else FailResult(error_message="Blocked.")

    guard = AsyncGuard().use(SelfCheck(on_fail="exception"))

    async def turn(question: str) -> str:
        drafted = await chat.ainvoke(question)
        return str((await guard.validate(str(drafted.text))).validated_output)

    return {"guardrails-ai": Contender(turn)}
