"""The protocol of claims and commits against a model of it: verbs of `store` in any order, two at once, with lost connections.

`protocol` is the model, `watched` the database that loses connections and runs two verbs statement by statement, `world` the real
tables beside the model, `machine` the state machine that draws what happens. `python -m tests.chaos.model` is the long run.
"""
