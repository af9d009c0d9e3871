"""All benchmarks, one after the other: `python -m bench`; options are passed on to each."""

from __future__ import annotations

import subprocess
import sys

from bench import NAMES


def main() -> None:
    failed = [
        name for name in NAMES if subprocess.run([sys.executable, "-m", f"bench.{name}", *sys.argv[1:]], check=False).returncode
    ]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
