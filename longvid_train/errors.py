"""The one exception a user's mistake raises, and how a command reports it."""


class UserError(ValueError):
    """A mistake of the user: one line that names the value, the rule and the remedy.

    Commands print the line on stderr and exit with status 2; every other exception is a failure (status 1).
    """


def nearest(wrong: str, valid: "list[str] | tuple[str, ...]") -> str:
    """Return ``"; did you mean 'x'?"`` for the valid name closest to ``wrong``, or an empty string if none is close.

    The shortest name that ``wrong`` abbreviates is the closest.
    """
    import difflib

    longer = sorted((name for name in valid if wrong and name.startswith(wrong)), key=len)
    close = longer or difflib.get_close_matches(wrong, valid, n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""
