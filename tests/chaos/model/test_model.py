"""The protocol against its model, in short: CI's part of `python -m tests.chaos.model`."""

from __future__ import annotations

import pytest

from tests.chaos.model.runs import run, world_on
from tests.servers import TestServer

STEPS = 25


@pytest.mark.parametrize("examples", [pytest.param(12), pytest.param(300, marks=pytest.mark.chaos)])
def test_verbs_in_any_order_do_what_the_model_says(server: TestServer, database_url: str, seed: int, examples: int) -> None:
    """Half of the examples are the same in each run, the others are new ones."""
    with world_on(server, database_url) as world:
        for each in (1, seed):
            print(run(world, examples, STEPS, each).text())  # noqa: T201 -- pytest shows it with a failure, and with -s
