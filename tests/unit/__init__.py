"""Tests of single modules, without a database."""

import pytest

# Before any test imports it, or its assertions would fail without saying why.
pytest.register_assert_rewrite("tests.fake_provider.asking")
