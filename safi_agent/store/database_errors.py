"""Mask database errors: their messages may contain a statement, a prompt or a password, so only the type is shown."""

import functools
import logging
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from sqlalchemy.exc import SQLAlchemyError

P = ParamSpec("P")
T = TypeVar("T")
log = logging.getLogger("safi_agent")


class EarlierRowsKeptError(SQLAlchemyError):
    """Rows were purged, and earlier versions of them are kept; the message says why, and has no content of a row."""


def raise_as(make_error: Callable[[str], Exception], what: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorator: raise ``make_error(name)`` instead of a database error, with the name of its type only.

    The first line of its message is logged after ``what``; the others may quote a row.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(function)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
            try:
                return function(*args, **kwargs)
            except SQLAlchemyError as error:
                own = getattr(error, "orig", None) or error
                log.error("%s: %s", what, str(own).partition("\n")[0])
                cause = type(own).__name__
            raise make_error(cause)  # outside of the except block, so that it has no context

        return wrapper

    return decorate


def _not_opened(cause: str) -> ValueError:
    return ValueError(
        f"store: expected a database that can be opened, got {cause}. Details are in the logger 'safi_agent'."
    )


opening = raise_as(_not_opened, "The store could not be opened")
