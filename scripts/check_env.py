"""Tell whether this Python can run the project: exit 0 if it satisfies requirements.txt, else 1.

Reads installed metadata only: no network, nothing imported, about a tenth of a second. Needs no
package beyond pip, whose own copy of `packaging` reads the requirement lines.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

MINIMUM = (3, 10)
REQUIREMENTS = Path(__file__).resolve().parents[1] / "requirements.txt"


def missing(requirements: Path) -> Iterator[str]:
    """Yield one phrase for each requirement that this Python doesn't satisfy."""
    try:
        from packaging.requirements import Requirement
    except ImportError:
        from pip._vendor.packaging.requirements import Requirement

    for line in requirements.read_text().splitlines():
        line = line.split("#")[0].strip()
        if not line:
            continue
        requirement = Requirement(line)
        if requirement.marker and not requirement.marker.evaluate():
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            yield f"{requirement} is not installed"
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            yield f"{requirement} is wanted, {version} is installed"


def main() -> int:
    """Print what is missing; the exit status is 0 when nothing is."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    if sys.version_info < MINIMUM:
        print(f"Python {sys.version.split()[0]} is older than {'.'.join(map(str, MINIMUM))}")
        return 1
    try:
        problems = list(missing(REQUIREMENTS))
    except ImportError:
        problems = ["neither packaging nor pip is installed"]
    print(*problems, sep="\n", end="\n" if problems else "")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
