"""What launchers tell the processes that they start, by environment variables, and when that is too little."""

from collections.abc import Mapping, Sequence

from longvid_train.errors import UserError

ELASTIC = "TORCHELASTIC_RUN_ID"
"""By this a process knows that torchrun started it."""
BY_TORCHRUN = "start it with torchrun (scripts/launch/torchrun.sh)"


def check_set(environment: Mapping[str, str], names: Sequence[str], *, sign: str, remedy: str) -> None:
    """Refuse variables that are missing or empty.

    Args:
        environment: of this process.
        names: the variables.
        sign: the variable that says which launcher it was.
        remedy: how to start instead.

    Raises:
        UserError: a variable is missing.
    """
    missing = [name for name in names if not environment.get(name)]
    if missing:
        raise UserError(
            f"{sign} is set but {', '.join(missing)} {are(missing)} not; {remedy}, or unset {sign} to let longvid "
            "start the processes of this machine"
        )


def check_number(environment: Mapping[str, str], name: str) -> None:
    """Refuse a variable that is set to something else than a whole number."""
    text = environment.get(name, "0")
    if not text.isdecimal():
        raise UserError(f"{name} is '{text}'; it must be a whole number, as its launcher sets it")


def are(names: Sequence[str]) -> str:
    """The verb for these names."""
    return "is" if len(names) == 1 else "are"
