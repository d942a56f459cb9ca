"""Mutants that nothing can notice, or that are not worth a test, and why."""

# A regular expression that finds them by their ids → the reason.
EXCEPTIONS: dict[str, str] = {}
