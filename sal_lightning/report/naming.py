"""Under which names the values of a callback stand in loggers."""

PREFIX = "sal/"


def prefix(name: str = "") -> str:
    """What they begin with, for a callback of this name.

    >>> prefix(), prefix("often")
    ('sal/', 'sal/often/')
    """
    return f"{PREFIX}{name}/" if name else PREFIX
