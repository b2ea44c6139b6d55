"""The embedded default's data sets: they register by being imported."""

from mini_world import data_sets  # noqa: F401
