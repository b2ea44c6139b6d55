"""The configuration tree: defaults, files with `_BASE_`, and options from the command line."""

from .defaults import clean_cfg, get_cfg_default
from .identity import MACHINE_KEYS, config_hash, config_values
from .node import CfgNode, file_values
from .public import UNCHANGED, public

__all__ = [
    "MACHINE_KEYS",
    "UNCHANGED",
    "CfgNode",
    "clean_cfg",
    "config_hash",
    "config_values",
    "file_values",
    "get_cfg_default",
    "public",
]
