"""The worker: poll, claim, run, commit, heartbeat, drain. One process is one asyncio loop and a few threads for the database.

`loop` is the heart and what others use; `lease` keeps the right to the claims, `picker` chooses what to claim, `slots` holds
what was claimed, `calls` takes one item through its model call and `packs` several through one (`endpoints` has the providers,
`attempt` what it costs and how it ends), `commits` stores what came of it, `breaker` leaves failing models alone, `upkeep` does
what any worker does for all.
"""

from ai_worker.worker.loop import Summary, Worker, WorkerOptions

__all__ = ["Summary", "Worker", "WorkerOptions"]
