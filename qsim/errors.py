"""The one error a user can cause: a wrong config, file or argument."""


class InputError(ValueError):
    """Bad input from the user.

    The message names the field path or file first, then says what came and what to do;
    the command line prints it without a traceback and exits with status 2.
    """
