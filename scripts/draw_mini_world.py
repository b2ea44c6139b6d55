#!/usr/bin/env python3
"""Draw docs/images/mini_world.png, pictures of the mini world: mini_world/gallery.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mini_world.gallery import main

if __name__ == "__main__":
    sys.exit(main())
