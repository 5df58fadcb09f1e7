"""Errors a user can act on: what was wrong, and what to do next.

    TrellisError
    ├── UsageError           an option or argument makes no sense
    │   └── BackendUnavailable   a kernel that was asked for cannot run here
    ├── InputError           a picture, mesh or bundle cannot be used
    ├── ModelError           a model is missing, damaged or foreign
    ├── OutOfMemory          device or host memory is used up
    ├── QualityError         the result failed the quality check under --strict
    ├── OutputError          the result could not be written
    └── Cancelled            the caller asked to stop

Knows nothing about exit codes: the command line maps classes to codes.
"""

from __future__ import annotations


class TrellisError(Exception):
    """One line saying what is wrong, and one saying what to do (`hint`, may be empty)."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(TrellisError):
    """An option or argument makes no sense."""


class BackendUnavailable(UsageError):
    """A kernel backend that was asked for does not exist or cannot run on this machine."""


class InputError(TrellisError):
    """A picture, mesh or bundle cannot be used."""


class ModelError(TrellisError):
    """A model is missing, damaged or not what its configuration says."""


class OutOfMemory(TrellisError):
    """Device or host memory is used up."""


class QualityError(TrellisError):
    """The result failed the quality check and the caller asked for strictness."""


class OutputError(TrellisError):
    """The result could not be written."""


class Cancelled(TrellisError):
    """The caller asked to stop; nothing was left half done."""
