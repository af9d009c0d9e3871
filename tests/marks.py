"""Marks for tests."""

from __future__ import annotations

import pytest

from tests import servers

ON_ONE_SERVER = pytest.mark.parametrize("server", servers.names()[:1], indirect=True)
"""For tests (or, as `pytestmark`, whole files) to which it makes no difference which database server there is."""
