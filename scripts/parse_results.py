#!/usr/bin/env python3
"""Tables, pictures and the report of finished runs: experiments/results/."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments.results.command import main

if __name__ == "__main__":
    sys.exit(main())
