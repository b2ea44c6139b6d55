"""The configuration tree: defaults, files with `_BASE_`, and options from the command line."""

from .constraints import Check, check_values, declare_checks, real, several, share, whole
from .defaults import add_defaults, clean_cfg, full_defaults, get_cfg_default
from .identity import MACHINE_KEYS, config_values
from .node import CfgNode, file_values
from .public import UNCHANGED, public

__all__ = [
    "MACHINE_KEYS",
    "UNCHANGED",
    "CfgNode",
    "add_defaults",
    "Check",
    "check_values",
    "clean_cfg",
    "config_values",
    "declare_checks",
    "file_values",
    "full_defaults",
    "get_cfg_default",
    "public",
    "real",
    "several",
    "share",
    "whole",
]
