#!/usr/bin/env python3
"""Look into trained models: experiments/analysis_command.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments.analysis_command import main

if __name__ == "__main__":
    sys.exit(main())
