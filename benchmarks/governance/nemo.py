"""NeMo Guardrails: its self-check of the output, through its runnable for LangChain."""

from pathlib import Path

from benchmarks.governance.runner import Contender
from benchmarks.governance.server import CHECK

CONFIG = f"""
models: []
rails:
  output:
    flows: [self check output]
prompts:
  - task: self_check_output
    content: |
      {CHECK} It has to keep to the policy of the company.
      The user asked: {{{{ user_input }}}}
      The answer: {{{{ bot_response }}}}
      Should the answer be blocked (Yes or No)?
"""


def contenders(url: str, folder: Path) -> dict[str, Contender]:
    from langchain_openai import ChatOpenAI
    from nemoguardrails import RailsConfig  # type: ignore[import-not-found]
    from nemoguardrails.integrations.langchain.runnable_rails import RunnableRails  # type: ignore[import-not-found]

    chat = ChatOpenAI(model="m", base_url=f"{url}/nemo/v1", api_key="none", max_retries=0)  # type: ignore[arg-type]
    rails = RunnableRails(RailsConfig.from_content(yaml_content=CONFIG), llm=chat)

    async def turn(question: str) -> str:
        return str(await rails.ainvoke(question))

    return {"nemo": Contender(turn)}
