"""The screenshots of docs/, made anew: `python -m tests.screenshots [FOLDER]`. Needs a MariaDB or MySQL program and Chromium."""

from __future__ import annotations

import sys
from io import BytesIO
from pathlib import Path

from PIL import Image

from ai_worker.store.tokens import Scope
from tests import sample, servers
from tests.browsing import Visit, chromium
from tests.dashboard import serving
from tests.servers import TestDatabase

FOLDER = Path(__file__).parents[1] / "docs" / "screenshots"
PAGES = {
    "overview": "/",
    "tasks": "/ui/tasks",
    "task": "/ui/tasks/1",
    "item": "/ui/items/1",
    "submit": "/ui/submit",
    "models": "/ui/models",
    "workers": "/ui/workers",
    "schedules": "/ui/schedules",
}
LOOKS = {
    "": {"color_scheme": "light", "viewport": {"width": 1280, "height": 860}},
    "-dark": {"color_scheme": "dark", "viewport": {"width": 1280, "height": 860}},
    "-phone": {"color_scheme": "light", "viewport": {"width": 360, "height": 740}, "device_scale_factor": 1.5, "is_mobile": True},
}


CORE = ("overview", "task", "item", "models")  # in all looks; the others as they are by day
COLOURS = 96  # of a picture: a third of the bytes, and hardly to be seen


def main(folder: Path, pages: list[str], looks: list[str]) -> None:
    """Makes a database for the purpose, fills it, and takes each page in each look."""
    folder.mkdir(parents=True, exist_ok=True)
    with servers.running("mariadb") as server, server.new_database() as name:
        database = TestDatabase(server, name)
        database.migrate()
        with server.connect(name) as connection:
            sample.fill(connection)
        with serving(database.url) as dashboard, chromium() as browser:
            for look in looks:
                visit = Visit(browser, dashboard, Scope.ADMIN, locale="en-GB", timezone_id="Europe/Warsaw", **LOOKS[look])
                for each in pages if not look else [each for each in pages if each in CORE]:
                    page = visit.open(PAGES[each])
                    shot = Image.open(BytesIO(page.screenshot(full_page=True, animations="disabled"))).convert("RGB")
                    small = shot.quantize(COLOURS, dither=Image.Dither.NONE)
                    small.save(folder / f"{each}{look}.png", optimize=True)
                visit.close()


if __name__ == "__main__":
    wanted = sys.argv[1:]
    target = Path(wanted.pop(0)) if wanted else FOLDER
    main(target, wanted or list(PAGES), list(LOOKS))
