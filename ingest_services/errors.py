"""The one error that is meant for a person."""

from __future__ import annotations


class UserError(Exception):
    """Something a person can put right: one line that says what, where and what to do.

    The command line prints it without a traceback and exits with status 2.
    """
