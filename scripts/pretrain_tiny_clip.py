#!/usr/bin/env python3
"""Pre-train the tiny CLIP: mini_world/pretraining.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mini_world.pretraining import main

if __name__ == "__main__":
    sys.exit(main())
