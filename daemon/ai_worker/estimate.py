"""How many tokens some items will take, and what that costs: reckoned before anything is sent.

Tokens are estimated from the prompts, item by item; the same work is counted once where the task takes an earlier answer, and
what goes into one call is counted as one call. Items of a batch are each sent, whatever they have in common. What lies in the
result cache already is not looked at.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, field
from decimal import Decimal

from ai_worker import prices
from ai_worker.errors import ItemRejected, UsageError
from ai_worker.library import KindOf
from ai_worker.models import Item, Lane, Model, Prompt, Usage
from ai_worker.task_types.foreseen import foreseen
from ai_worker.task_types.pack import companions_key, packed
from ai_worker.text import estimate_tokens


@dataclass(slots=True)
class Estimate:
    """What the items came to so far. `kind_of` gives a task's type; `usage` and `cost` are of the calls; `twins` and `rejected`
    are items that need none.
    """

    kind_of: KindOf
    items: int = 0
    calls: int = 0
    twins: int = 0
    rejected: int = 0
    usage: Usage = field(default_factory=Usage)
    cost: Decimal = Decimal(0)
    unpriced: set[str] = field(default_factory=set)  # models
    stopped: Counter[str] = field(default_factory=Counter)  # items by model
    _seen: set[int] = field(default_factory=set)
    _packs: dict[Hashable, tuple[Model, list[Prompt]]] = field(default_factory=dict)

    @property
    def known_cost(self) -> Decimal | None:
        """USD, None when the price of a model is not known."""
        return None if self.unpriced else self.cost

    def add(self, item: Item, model: Model) -> tuple[Prompt, Usage, Decimal | None]:
        """Counts an item; its prompt, and what it would take if it were sent alone.

        Raises ItemRejected or UsageError when it would end in ERROR at once; it is counted, and takes nothing.
        """
        self.items += 1
        if item.task.is_probe:
            self.stopped[model.name] += 1
        try:
            prompt, *later = [each for _, each in foreseen(self.kind_of(item.task), item)]
        except (ItemRejected, UsageError):
            self.rejected += 1
            raise
        prompt = prompt._replace(lane=Lane.ONLINE if item.is_single else item.task.lane)
        if later:
            lane = Lane.FLEX if prompt.lane is Lane.FLEX else Lane.ONLINE  # batches are for items of one call
            return prompt, *self._steps(model, [prompt, *later], lane)
        usage = tokens_of(prompt)
        cost = prices.cost(model, usage, prompt.lane)
        if prompt.lane is Lane.BATCH:
            self._call(model, [prompt])
        elif self._is_twin(item, model, prompt):
            self.twins += 1
        elif (key := companions_key(item, model.provider in prices.FREE_PROVIDERS, prompt)) is not None:
            _, prompts = self._packs.setdefault(key, (model, []))
            prompts.append(prompt)
            if len(prompts) == item.task.pack:
                self._call(*self._packs.pop(key))
        else:
            self._call(model, [prompt])
        return prompt, usage, cost

    def _steps(self, model: Model, prompts: list[Prompt], lane: Lane) -> tuple[Usage, Decimal | None]:
        """Counts the calls of one item, each with what the ones before will have said; as if all were on one model."""
        whole, total, said = Usage(), Decimal(0), 0
        for each in prompts:
            usage = tokens_of(each) + Usage(tokens_input=said)
            said += usage.tokens_output
            whole += usage
            self.calls += 1
            cost = prices.cost(model, usage, lane)
            if cost is None:
                self.unpriced.add(model.name)
            total += cost or 0
        self.usage += whole
        self.cost += total
        return whole, None if model.name in self.unpriced else total

    def finish(self) -> None:
        """Counts the packs that are not full."""
        for model, prompts in self._packs.values():
            self._call(model, prompts)
        self._packs.clear()

    def _call(self, model: Model, prompts: list[Prompt]) -> None:
        usage = tokens_of(prompts[0] if len(prompts) == 1 else packed(prompts))
        self.calls += 1
        self.usage += usage
        cost = prices.cost(model, usage, prompts[0].lane)
        if cost is None:
            self.unpriced.add(model.name)
        else:
            self.cost += cost

    def _is_twin(self, item: Item, model: Model, prompt: Prompt) -> bool:
        if not item.task.cache_seconds or prompt.fingerprint is None:
            return False
        mark = hash((model.id_ai_model, prompt.fingerprint))  # 64 bits of it: a million rows are to fit into memory
        if mark in self._seen:
            return True
        self._seen.add(mark)
        return False


def tokens_of(prompt: Prompt) -> Usage:
    """About how many tokens one call takes."""
    asked = estimate_tokens(prompt.system) + estimate_tokens(prompt.user)
    wanted = prompt.tokens_output_expected or estimate_tokens(prompt.text)
    return Usage(asked, wanted, tokens_image=0 if prompt.image is None else wanted)
