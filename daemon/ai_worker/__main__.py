"""`python -m ai_worker` and the console script: the way into the command line.

Nothing is imported before it is guarded, so that Ctrl-C ends the start as it ends a command: with one line.
"""

from __future__ import annotations

import signal
import sys


def main() -> int:
    """Runs the command line of this process and returns its exit code."""
    # SIGTERM as Ctrl-C: what is open is closed on the way out, a private database server first of all.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        from ai_worker import cli

        return cli.main()
    except KeyboardInterrupt:
        sys.stderr.write("ai-worker: interrupted\n")
        return 1  # errors.EXIT_FAILED, which may not have been imported yet


if __name__ == "__main__":
    sys.exit(main())
