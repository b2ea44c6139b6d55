"""The configuration tree: defaults, files with `_BASE_`, and options from the command line."""

from .defaults import clean_cfg, get_cfg_default
from .node import CfgNode

__all__ = ["CfgNode", "clean_cfg", "get_cfg_default"]
