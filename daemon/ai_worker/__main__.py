"""`python -m ai_worker` and the console script: runs the command line and turns errors into messages and exit codes."""

from __future__ import annotations

import sys

from ai_worker.cli import main

if __name__ == "__main__":
    sys.exit(main())
