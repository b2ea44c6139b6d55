#!/usr/bin/env python3
"""How far the runs of an output folder are: experiments/watching/command.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments.watching.command import main

if __name__ == "__main__":
    sys.exit(main())
