#!/usr/bin/env python3
"""Pre-train the tiny CLIP: mini_world/pretraining_command.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mini_world.pretraining_command import main

if __name__ == "__main__":
    sys.exit(main())
