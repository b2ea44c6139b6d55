#!/usr/bin/env python3
"""A trained model as a folder that stands alone: experiments/export_command.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments.export_command import main

if __name__ == "__main__":
    sys.exit(main())
