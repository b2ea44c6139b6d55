"""Put pip into a virtual environment that was made without it (Debian's python3 has no ensurepip).

Run by scripts/env.sh with the new environment's Python; needs the standard library alone. The wheel
comes from PyPI's JSON index with its checksum.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import urllib.parse
import urllib.request
from pathlib import Path

INDEX = "https://pypi.org/pypi/pip/json"


def main() -> None:
    """Download pip's newest wheel, check it, and let it install itself."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    with urllib.request.urlopen(INDEX, timeout=60) as answer:
        files = json.load(answer)["urls"]
    wheel = next(f for f in files if f["filename"].endswith("-py3-none-any.whl"))
    address = urllib.parse.urljoin(INDEX, wheel["url"])  # a mirror's addresses may be relative
    with urllib.request.urlopen(address, timeout=60) as answer:
        content = answer.read()
    if hashlib.sha256(content).hexdigest() != wheel["digests"]["sha256"]:
        sys.exit(f"error: {address} arrived with a wrong checksum")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / wheel["filename"]
        path.write_bytes(content)
        # A wheel is a zip: Python runs the pip inside it to install the wheel itself.
        subprocess.run(
            [sys.executable, path / "pip", "install", "-q", "--no-index", path], check=True
        )


if __name__ == "__main__":
    main()
