"""The offline model: a rule-based chat model for rehearsals, without a network. It labels all its output.

It demonstrates the loop. It does not understand language, and its verdicts are meaningless outside of a rehearsal.
"""

import json
import re
from typing import Any

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from typing_extensions import override

from safi_agent.values import label

LABEL = "offline rehearsal"
HARM = re.compile(
    r"\b(bombs?|explosives?|poison\w*|weapons?|kill\w*|steal\w*|hack\w*|blackmail\w*|fake (?:documents?|id)|"
    r"without (?:their|his|her) (?:consent|knowledge))\b",
    re.IGNORECASE,
)
_VALUE = re.compile(r"^- (.+?): (.*)$", re.MULTILINE)
# The reply formats in the prompts of the Will and the Conscience, which identify the faculty that asks.
_WILL, _CONSCIENCE = '{"decision": "approve" or "violation"', '{"ledger": [{"value": "name"'
_WORD = re.compile(r"[a-z]{5,}")


class OfflineChatModel(BaseChatModel):
    """A rule-based chat model; the same input gives the same output."""

    @property
    @override
    def _llm_type(self) -> str:
        return LABEL

    @override
    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        system, human = str(messages[0].text), str(messages[-1].text)
        if _WILL in system:
            text = _will(system, human)
        elif _CONSCIENCE in system:
            text = _conscience(system, human)
        else:
            text = _intellect(system, human)
        return ChatResult(generations=[ChatGeneration(message=AIMessage(text))])


def _intellect(system: str, prompt: str) -> str:
    values = [name for name, _ in _VALUE.findall(system)]
    named = [name for name in values if _overlap(name, prompt)] or values[:2]
    subject = " ".join(prompt.split())[:200]
    return (
        f"[{LABEL}] You asked: \u201c{subject}\u201d. No language model is connected; this only rehearses an answer. "
        f"A real one would weigh {' and '.join(named[:2]).lower()}, say what is uncertain, and leave the choice to the "
        f"people concerned.\n<reflection>[{LABEL}] Touches on {', '.join(named[:2])}.</reflection>"
    )


def _fenced(name: str, text: str) -> str:
    match = re.search(rf"<{name}>\n(.*?)\n</{name}>", text, re.DOTALL)
    return match[1] if match else ""


def _will(system: str, human: str) -> str:
    harm = HARM.search(_fenced("draft", human)) or HARM.search(_fenced("user_prompt", human))
    gates = re.search(r'own ruling in "gates": (.*)\.$', system, re.MULTILINE)
    ruled = [{"value": name, "upheld": not harm} for name in (gates[1].split("; ") if gates else [])]
    reason = f"The word \u2018{harm[0].lower()}\u2019 is on its list." if harm else "No word is on its list."
    ruling = {"decision": "violation" if harm else "approve", "reason": f"[{LABEL}] {reason}", "gates": ruled}
    return json.dumps(ruling)


def _conscience(system: str, human: str) -> str:
    draft, prompt = _fenced("draft", human), _fenced("user_prompt", human)
    rows = []
    for name, description in _VALUE.findall(system):
        named = label(name) in label(draft)
        near = _overlap(f"{name} {description}", f"{prompt} {draft}")
        score, why = (1, "named") if named else (0.5, "touched on") if near else (0, "not mentioned")
        rows.append({"value": name, "score": score, "confidence": 0.5, "reason": f"[{LABEL}] {why}"})
    return json.dumps({"ledger": rows})


def _overlap(one: str, other: str) -> bool:
    return bool(_words(one) & _words(other))


def _words(text: str) -> set[str]:
    return {word[:6] for word in _WORD.findall(text.lower())}
