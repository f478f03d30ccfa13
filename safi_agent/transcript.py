"""Render a conversation as text for a judge, with a note for each part that is left out."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Self

from langchain_core.messages import AIMessage, BaseMessage, ToolMessage

MAX_CONTEXT = 20_000  # characters of a conversation for a judge; the same again for its system messages
MAX_ARGUMENT = 2_000  # maximum characters of a tool call's arguments
SYSTEM = ("system", "developer")
CHARACTER = "character"
MAX_DOCUMENTS = 100_000  # characters of all documents together

# Types of content blocks, of LangChain and of providers.
TEXTS = ("text", "input_text", "output_text", "text-plain")
MEDIA = {
    **dict.fromkeys(("image", "image_url", "input_image"), "image"),
    **dict.fromkeys(("audio", "input_audio"), "audio"),
    **dict.fromkeys(("file", "input_file", "document", "media"), "file"),
    **dict.fromkeys(("video", "video_url"), "video"),
}
PAPERS = ("file", "document")  # media types whose block may contain the text
# Reasoning, and calls that are in ``tool_calls`` too.
UNSPOKEN = (
    *("thinking", "redacted_thinking", "reasoning"),
    *("tool_use", "tool_call", "tool_call_chunk", "function_call", "invalid_tool_call", "input_json_delta"),
)


class Transcript(str):
    """Rendered messages; ``not_shown`` lists the omitted parts: "6 earlier messages", "2 images"."""

    not_shown: tuple[str, ...] = ()

    def __new__(cls, text: str, not_shown: Iterable[str] = ()) -> Self:
        """Create a transcript from its text and the omitted parts."""
        transcript = super().__new__(cls, text)
        transcript.not_shown = tuple(not_shown)
        return transcript


class _Chunk(NamedTuple):
    text: str
    missing: Counter[str]
    pinned: bool  # never omitted because of its age

    def clipped(self, most: int) -> "_Chunk":
        cut = max(0, len(self.text) - most)
        return self._replace(text=_clip(self.text, most), missing=self.missing + Counter({CHARACTER: cut}))


def transcript(
    messages: Sequence[BaseMessage], prompt_message: BaseMessage | None = None, documents: Sequence[str] = ()
) -> Transcript:
    r"""Render messages as text for a judge, in order, with the arguments of tool calls.

    Documents come first; if they have more than MAX_DOCUMENTS characters together, the longest are cut.

    System messages, and the content of ``prompt_message`` other than its text, are always included; if they have more
    than MAX_CONTEXT characters together, the longest are cut. The other messages have another MAX_CONTEXT characters:
    the oldest are left out first and replaced by a note. Content that is not text (pictures, audio, files) is replaced
    by a note, and the artifact of a tool's result is noted. A model's reasoning is left out.

    >>> from langchain_core.messages import HumanMessage
    >>> transcript([HumanMessage("Hi"), AIMessage("Hello")])
    'human: Hi\nai: Hello'
    """
    chunks = [_chunk(message) if message is not prompt_message else _other_content(message) for message in messages]
    most = _cut_length([len(text) for text in documents], MAX_DOCUMENTS)
    shown: list[_Chunk | None] = [_Chunk(text, Counter(), pinned=True).clipped(most) for text in documents]
    shown += _select([chunk for chunk in chunks if chunk is not None])
    left_out = sum(chunk is None for chunk in shown)
    missing = sum((chunk.missing for chunk in shown if chunk is not None), Counter[str]())
    lines = [chunk.text for chunk in shown if chunk is not None]
    not_shown = [_count(number, kind) for kind, number in missing.items()]
    if left_out:
        note = _count(left_out, "earlier message")
        lines.insert(shown.index(None), f"[{note} left out]")
        not_shown.insert(0, note)
    return Transcript("\n".join(lines), not_shown)


def _select(chunks: list[_Chunk]) -> list[_Chunk | None]:
    """The chunks that fit, shortened if necessary; None for each chunk that is left out."""
    shown: list[_Chunk | None] = [None] * len(chunks)
    most = _cut_length([len(chunk.text) for chunk in chunks if chunk.pinned], MAX_CONTEXT)
    for place, chunk in enumerate(chunks):
        if chunk.pinned:
            shown[place] = chunk.clipped(most)
    room = MAX_CONTEXT
    for place in reversed([place for place, chunk in enumerate(chunks) if not chunk.pinned]):
        if room < MAX_CONTEXT and len(chunks[place].text) > room:
            break
        shown[place] = chunks[place].clipped(room)
        room -= min(room, len(chunks[place].text))
    return shown


def _cut_length(lengths: list[int], most: int) -> int:
    """The length to which each text is cut, so that together they have at most ``most`` characters."""
    room, left = most, len(lengths)
    for length in sorted(lengths):
        if length * left > room:
            return room // left
        room, left = room - length, left - 1
    return most


def _chunk(message: BaseMessage) -> _Chunk:
    """A message as one line: role, content and tool calls."""
    text, missing = _readable(message.content)
    parts = [text]
    role = str(getattr(message, "role", message.type))
    if isinstance(message, ToolMessage):
        role = f"tool {message.name or ''}".strip()
        if message.artifact is not None:
            parts.append(_note("artifact", missing))
    if isinstance(message, AIMessage):
        parts += [_call(c["name"], json.dumps(c["args"], default=str), missing) for c in message.tool_calls]
        parts += [_call(c["name"], c["args"], missing) for c in message.invalid_tool_calls]
    return _Chunk(f"{role}: {' '.join(filter(None, parts))}", missing, role in SYSTEM)


def _other_content(prompt_message: BaseMessage) -> _Chunk | None:
    """The content of the prompt's message other than its text; None if there is none."""
    blocks = [] if isinstance(prompt_message.content, str) else prompt_message.content
    text, missing = _readable([b for b in blocks if not (isinstance(b, str) or b.get("type") == "text")])
    for block in blocks:
        if isinstance(block, dict) and block.get("type") == "text":
            text = f"{text} {_citations(block, missing)}".strip()
    return _Chunk(f"with the user prompt: {text}", missing, pinned=True) if text else None


def _readable(content: Any) -> tuple[str, "Counter[str]"]:
    """Content as text, with a note for each block that cannot be text, and how many of each kind there are."""
    missing: Counter[str] = Counter()
    return _text(content, missing).strip(), missing


def _text(content: Any, missing: "Counter[str]") -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(_text(block, missing) for block in content)
    return _block(content, missing) if isinstance(content, Mapping) else _padded(_note("block", missing))


def _block(block: Mapping[str, Any], missing: "Counter[str]") -> str:
    kind = str(block.get("type", "text"))
    if kind in UNSPOKEN:
        return ""
    source = block.get("source")
    texts = [block.get("text"), block.get("content")]
    if isinstance(source, Mapping):  # an inline text document
        texts += [source.get("content"), source.get("data") if source.get("type") == "text" else None]
    text = "\n".join(_text(part, missing) for part in texts if isinstance(part, str | list))
    if (kind in MEDIA and not (text and kind in PAPERS)) or not (text or kind in TEXTS):
        text += _padded(_note(MEDIA.get(kind, _plain(kind)), missing))
    return text + _padded(_citations(block, missing))


def _citations(block: Mapping[str, Any], missing: "Counter[str]") -> str:
    lists = [item for name in ("annotations", "citations") if isinstance(item := block.get(name), list)]
    return " ".join(_note("citation", missing) for items in lists for _ in items)


def _note(kind: str, missing: "Counter[str]") -> str:
    missing[kind] += 1
    return f"[{kind} not shown]"


def _padded(note: str) -> str:
    return f" {note} " if note else ""


def _plain(kind: str) -> str:
    """The name of a block's type in letters."""
    return " ".join(re.findall(r"[A-Za-z0-9]+", kind))[:40] or "block"


def _call(name: str | None, arguments: str | None, missing: "Counter[str]") -> str:
    text = arguments or ""
    missing += Counter({CHARACTER: max(0, len(text) - MAX_ARGUMENT)})
    return f"called {name}({_clip(text, MAX_ARGUMENT)})"


def _count(number: int, kind: str) -> str:
    return f"{number} {kind}{'' if number == 1 else 's'}"


def _clip(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}…[+{len(text) - most} chars]"
