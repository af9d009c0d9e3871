"""Tests on real database servers."""

import pytest

pytest.register_assert_rewrite("tests.integration.lifecycle", "tests.integration.proxy")
