#!/usr/bin/env python3
"""Get, unpack and check data sets: experiments/preparation_command.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments.preparation_command import main

if __name__ == "__main__":
    sys.exit(main())
