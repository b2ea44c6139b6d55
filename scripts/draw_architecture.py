#!/usr/bin/env python3
"""Draw docs/images/architecture.png from the code's imports: experiments/architecture.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments.architecture import main

if __name__ == "__main__":
    sys.exit(main())
