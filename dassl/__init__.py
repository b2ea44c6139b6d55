"""The training engine, under the names of Dassl's API; it knows no method and no data set."""

# Of this repository; pyproject.toml and result.json read it here. The import below needs it.
__version__ = "1.0.0"

from . import compat as compat  # its paths can be imported from here on
