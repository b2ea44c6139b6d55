#!/usr/bin/env python3
"""Classify images with a trained model: tuning/prediction.py."""

import sys

from tuning.prediction import main

if __name__ == "__main__":
    sys.exit(main())
