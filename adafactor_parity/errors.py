"""The error for a wrong argument, which the command line answers with one line and exit status 2."""


class UsageError(ValueError):
    """An argument is wrong. The message says which, what it must be, what it was, and the remedy."""


def wrong(argument: str, must: str, got: object, remedy: str) -> UsageError:
    """The error to raise for a bad argument: `steps must be at least 0, got -1. <remedy>`."""
    from adafactor_spec.errors import refusal  # needs NumPy: the command line has to be able to start without it

    return UsageError(str(refusal(argument, must, got, remedy)))
