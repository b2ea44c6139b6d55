"""The configuration tree: defaults, files with `_BASE_`, and options from the command line."""

from .defaults import clean_cfg, get_cfg_default
from .identity import MACHINE_KEYS, config_hash, config_values
from .node import CfgNode

__all__ = [
    "MACHINE_KEYS",
    "CfgNode",
    "clean_cfg",
    "config_hash",
    "config_values",
    "get_cfg_default",
]
