"""The one exception that a user is meant to read."""


class LuminaError(Exception):
    """Bad input: one sentence that names the thing at fault and the mend.

    The command line prints the message and exits with 2; any other exception is an internal error (exit code 1).
    """
