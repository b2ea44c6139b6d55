#!/usr/bin/env python3
"""Run a whole protocol: experiments/launch.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments.launch import main

if __name__ == "__main__":
    sys.exit(main())
