"""The training engine, under the names of Dassl's API; it knows no method and no data set."""

__version__ = "1.0.0"
