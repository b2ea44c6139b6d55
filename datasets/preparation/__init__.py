"""Getting, laying out and checking the data sets (`scripts/prepare_data.py`)."""
