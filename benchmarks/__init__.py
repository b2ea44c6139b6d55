"""Speed and memory, always as a ratio against the plain path in the same run."""
