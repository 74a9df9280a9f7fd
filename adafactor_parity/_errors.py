"""Wrong usage: what the command line answers with exit status 2."""

from adafactor_spec.errors import refusal


class UsageError(ValueError):
    """An argument is wrong. The message says which, what it must be, what it was, and the remedy."""


def wrong(argument: str, must: str, got: object, remedy: str) -> UsageError:
    """The error to raise for a bad argument: `steps must be at least 0, got -1. <remedy>`."""
    return UsageError(str(refusal(argument, must, got, remedy)))
