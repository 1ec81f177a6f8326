"""The errors a user can cause. Each message names the value, what is accepted, and what to do."""


class AnpVsError(Exception):
    """Base of every error this package raises on purpose; the command line prints it without a traceback."""


class InputError(AnpVsError, ValueError):
    """A value given by the user is outside what is accepted."""


class DataError(AnpVsError):
    """A data file is missing, damaged, or not what its name says."""


class RunError(AnpVsError):
    """A run directory, checkpoint or saved network cannot be used as asked."""


class Stopped(RunError):
    """A signal asked the run to stop; it has saved its state and can be resumed."""
