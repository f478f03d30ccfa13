"""Names of a callback's values in loggers."""

PREFIX = "sal/"


def prefix(name: str = "") -> str:
    """Prefix of all values logged by a callback of this name.

    >>> prefix(), prefix("often")
    ('sal/', 'sal/often/')
    """
    return f"{PREFIX}{name}/" if name else PREFIX
