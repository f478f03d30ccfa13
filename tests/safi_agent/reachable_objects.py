"""Search all objects that are reachable from an exception for a text.

The search follows what error trackers and debuggers can follow: arguments, attributes, notes, causes and contexts
(including suppressed ones), each frame of each traceback with its local variables, suspended generators and coroutines,
closures, bound methods, containers, private attributes.
"""

import asyncio
import functools
import logging
import threading
import traceback
import types
import weakref
from collections import deque
from collections.abc import Iterator, Mapping, Set
from contextvars import Context
from typing import Any

from langchain_core.language_models import BaseChatModel
from sqlalchemy import Engine

from safi_agent.audit.local import LocalAuditor
from safi_agent.store import Store

# What is the operator's, or the process's: models, the store with its database, loops with all that runs on them.
STOPS = (BaseChatModel, Store, LocalAuditor, Engine, asyncio.AbstractEventLoop, logging.Logger, threading.Thread)
CONTAINERS = {dict, list, tuple, set, frozenset}  # most objects; these have elements and nothing else
PLAIN = (int, float, complex, type(None), type, types.ModuleType, types.CodeType, types.BuiltinFunctionType)


def found(root: Any, word: str, own: str) -> list[str]:
    """The ways from ``root`` to texts with the word; frames of the file ``own``, which made it, are passed over."""
    seen, ways, left = {id(root)}, [], deque([(root, type(root).__name__)])
    keep = [root]  # so that no id is used again
    while left:
        item, way = left.popleft()
        if holds(item, word):
            ways.append(way)
        for step, child in children(item, own):
            if id(child) not in seen and not isinstance(child, PLAIN) and not isinstance(child, STOPS):
                seen.add(id(child))
                keep.append(child)
                left.append((child, f"{way}.{step}"))
    return ways


def holds(item: Any, word: str) -> bool:
    if isinstance(item, str):
        return word in item
    return isinstance(item, bytes | bytearray | memoryview) and word.encode() in bytes(item)


def children(item: Any, own: str) -> Iterator[tuple[str, Any]]:
    if isinstance(item, str | bytes | bytearray | memoryview):
        return
    if isinstance(item, types.FrameType):
        if item.f_code.co_filename != own:
            yield from ((f"{item.f_code.co_name}:{name}", local) for name, local in list(item.f_locals.items()))
        return
    yield from running(item)
    if isinstance(item, Mapping):
        yield from ((f"key {key!r:.40}", key) for key in list(item))
        yield from ((f"[{key!r:.40}]", item[key]) for key in list(item))
    elif isinstance(item, Context):
        yield from ((variable.name, held) for variable, held in item.items())
    elif isinstance(item, list | tuple | Set | deque):
        yield from ((f"[{i}]", inner) for i, inner in enumerate(list(item)))
    elif isinstance(item, weakref.ref):
        yield "ref", item()
    yield from attributes(item)


def running(item: Any) -> Iterator[tuple[str, Any]]:
    """What frames and code hold: of errors, tracebacks, generators, coroutines, tasks, functions and methods."""
    if type(item) in CONTAINERS:
        return
    if isinstance(item, BaseException):
        yield from ((name, getattr(item, name)) for name in ("args", "__cause__", "__context__", "__traceback__"))
        if isinstance(item, BaseExceptionGroup):
            yield "exceptions", item.exceptions
    names = ("tb_frame", "tb_next", "gi_frame", "gi_yieldfrom", "cr_frame", "cr_await", "ag_frame", "ag_await")
    names += ("__closure__", "__defaults__", "__kwdefaults__", "__self__", "__func__", "__wrapped__", "cell_contents")
    if isinstance(item, functools.partial):
        names += ("func", "args", "keywords")
    if isinstance(item, asyncio.Future):
        names += ("_result", "_exception", "_callbacks", "_coro")
    for name in names:
        try:
            yield name, getattr(item, name, None)
        except ValueError:  # an empty cell
            continue


def attributes(item: Any) -> Iterator[tuple[str, Any]]:
    if type(item) in CONTAINERS:
        return
    for name in ("__dict__", "__pydantic_private__", "__pydantic_extra__"):
        try:
            held = object.__getattribute__(item, name)
        except AttributeError:
            continue
        yield name, dict(held) if held else None
    for kind in type(item).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for slot in (slots,) if isinstance(slots, str) else slots:
            name = f"_{kind.__name__}{slot}" if slot.startswith("__") and not slot.endswith("__") else slot
            try:
                yield name, object.__getattribute__(item, name)
            except AttributeError:
                continue


def printed(error: BaseException, own: str) -> str:
    """What an error tracker writes of it, local variables too; without the locals of the file that made the word."""
    text, left, seen = "", [traceback.TracebackException.from_exception(error, capture_locals=True)], set()
    while left:
        shown = left.pop()
        if shown is None or id(shown) in seen:
            continue
        seen.add(id(shown))
        for frame in shown.stack:
            text += f"{frame.name} {frame.line}\n"
            text += repr(frame.locals) if frame.filename != own else ""
        text += "".join(shown.format_exception_only())
        left += [shown.__cause__, shown.__context__, *(shown.exceptions or [])]
    return text
