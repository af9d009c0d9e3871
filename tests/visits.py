"""A fresh process that serves a database and visits pages: `python -m tests.visits URL TIMES PATH...`.

The log on its standard error says how long each request took at the server; the request's id is `PATH-VISIT`, both counted
from 0.
"""

from __future__ import annotations

import sys

from ai_worker import log
from ai_worker.store.tokens import Scope
from tests.dashboard import serving


def main(url: str, times: int, paths: list[str]) -> None:
    """Waits until the web is warm, as it is some seconds after its start."""
    log.configure(format="json")
    with serving(url) as dashboard:
        browser = dashboard.browser(Scope.ADMIN)
        browser.get("/health/live")  # it has started
        dashboard.until(dashboard.app.state.warming.done, 60)
        for number, path in enumerate(paths):
            for visit in range(times):
                answer = browser.get(path, headers={"X-Request-ID": f"{number}-{visit}"})
                if answer.status_code not in {200, 303}:
                    sys.exit(f"{path}: {answer.status_code}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
