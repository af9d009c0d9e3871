"""A model provider on the loopback, for tests: the vendors' wire formats, every fault, and a record of what was asked.

In a test: `with FakeProvider() as fake: ...`. For tests with several worker processes: `python -m tests.fake_provider`.
"""

from tests.fake_provider.batches import BatchSettings
from tests.fake_provider.faults import FAULTS, Rule
from tests.fake_provider.limits import Limits
from tests.fake_provider.server import FakeProvider, Request
from tests.fake_provider.tokens import correct, tokens_for
from tests.fake_provider.wire import Ask, Tokens

__all__ = ["FAULTS", "Ask", "BatchSettings", "FakeProvider", "Limits", "Request", "Rule", "Tokens", "correct", "tokens_for"]
