"""The script that breaks the protocol on purpose: its mutations fit today's statements, and some of them are noticed here."""

from __future__ import annotations

import pytest

from tests.chaos.mutations import MUTATIONS, Mutation, hunt
from tests.marks import ON_ONE_SERVER
from tests.servers import TestServer

CHEAP = ("no lock of tasks", "the day's sums begin anew", "ends without a look at what is in flight")


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda each: each.name)
def test_every_mutation_changes_what_it_names(mutation: Mutation) -> None:
    mutation.mutated()
    assert mutation.edits or mutation.patch


@ON_ONE_SERVER
@pytest.mark.parametrize("mutation", [each for each in MUTATIONS if each.name in CHEAP], ids=lambda each: each.name)
def test_a_broken_protocol_is_noticed(server: TestServer, database_url: str, mutation: Mutation) -> None:
    assert hunt(mutation, server, database_url, seed=1, examples=200).by is not None
