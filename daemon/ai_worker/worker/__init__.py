"""The worker: poll, claim, run, commit, heartbeat, drain. One process is one asyncio loop and a few threads for the database.

`loop` is its life from the start to the end, `assembly` says who is made of what. `claiming` takes items into free slots and
`accounts` has what became of them. Below these: `lease` keeps the right to the claims, `picker` chooses what to claim, `listener`
waits for it, `slots` holds what was claimed, `calls` takes one item through its model call and `packs` several through one
(`endpoints` has the providers, `attempt` what it costs and how it ends), `commits` stores what came of it, `breaker` leaves
failing models alone, `room` sums up what limits the claims, `upkeep` does what any worker does for all.
"""

from ai_worker.worker.accounts import Summary
from ai_worker.worker.loop import Worker
from ai_worker.worker.options import Reloaded, WorkerOptions

__all__ = ["Reloaded", "Summary", "Worker", "WorkerOptions"]
