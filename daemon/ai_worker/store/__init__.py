"""Every database verb: one method is one transaction. `queue` moves items, `tasks` is for people, `models` for endpoints."""
