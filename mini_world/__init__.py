"""The embedded default: a drawn world, its data sets, and a tiny CLIP trained on it."""
