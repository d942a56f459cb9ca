"""How a command ends when it does not end well; the number is the exit code.

0  done, and all is well
1  the answer is no: unhealthy, a defect found, a token that does not work, not confirmed
2  the command line is wrong, or what was given is invalid
3  there is no such thing
4  AWS or Google refused or did not answer
5  somebody else changed it meanwhile
"""


class CommandError(Exception):
    """Shown as one line without a stack trace."""

    exit_code = 4


class CheckFailedError(CommandError):
    """What was asked for was done, and the answer is no."""

    exit_code = 1


class InvalidInputError(CommandError):
    """The operator gave something that cannot be obeyed; nothing was changed."""

    exit_code = 2


class NotFoundError(CommandError):
    """There is no such rule, email, queue or parameter."""

    exit_code = 3


class ChangedMeanwhileError(CommandError):
    """A conditional write found another state than the one that was read."""

    exit_code = 5
