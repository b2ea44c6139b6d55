"""The training engine, under the names of Dassl's API; it knows no method and no data set."""

from . import compat as compat  # its paths can be imported from here on

__version__ = "1.0.0"
