"""The vocabulary of the log."""

from __future__ import annotations

import logging
from enum import Enum


class Event(Enum):
    """Everything that is ever logged: its level, its fields, and what it says.

    ITEM stands for the fields of `of_item`: task, item, attempt, operation_uuid, model. A worker's lines about its work all
    carry `worker`; those about the database's connections do not.
    """

    # An item's way. Levels are spelt logging.X, since ERROR is an event's name in here.
    START = (logging.INFO, "host pid version mode concurrency", "a worker has started")
    METRICS = (logging.INFO, "address", "a worker tells Prometheus of itself there")
    FETCH = (logging.INFO, "task count", "items of one task were claimed")
    PROMPT = (logging.DEBUG, "ITEM prompt", "a model is about to be called; the prompt is cut to an excerpt")
    RESULT = (logging.DEBUG, "ITEM tokens_input tokens_output latency_ms answer", "a model has answered")
    DONE = (logging.INFO, "ITEM tokens_input tokens_output cost latency_ms", "a result is stored")
    ERROR = (
        logging.ERROR,
        "ITEM kind message outcome tokens_input tokens_output",
        "an attempt failed; a warning where another will follow",
    )
    # Things that happen on the way.
    PROMPT_BROKEN = (logging.ERROR, "message", "a file of the prompt folder cannot be used; the worker goes on without it")
    RETRY = (logging.WARNING, "ITEM kind message call delay", "a call failed and is made again within the attempt")
    RELEASE = (logging.INFO, "count", "own items were given back untouched")
    RESCUE = (logging.WARNING, "lost_worker count", "the items of a dead worker were given back")
    STRAYS = (
        logging.WARNING,
        "count",
        "items that were this worker's in the database, and unknown to it, were given back: a fail-over had lost commits",
    )
    CLAIM_LOST = (
        logging.WARNING,
        "ITEM tokens_input tokens_output cost latency_ms",
        "a result came after somebody else's claim and was not stored",
    )
    MODEL_STOPPED = (
        logging.ERROR,
        "model kind message probe_seconds",
        "no item can succeed on a model now; it is stopped for every worker",
    )
    MODEL_UNUSABLE = (
        logging.ERROR,
        "model message",
        "this process lacks a model's key or provider and leaves it to others for a while",
    )
    MODEL_RESUMED = (logging.INFO, "model", "a stopped model answered again")
    TASK_DONE = (logging.INFO, "task status records_processed records_failed", "a task's last open item was closed")
    TASK_PAUSED = (
        logging.WARNING,
        "task reason",
        "none of a task's items can be paid from its budget, or its model's for the day",
    )
    # Batches.
    BATCH = (
        logging.INFO,
        "batch task model state items provider_batch message",
        "a batch of items has gone on to its next state",
    )
    BATCH_DELAYED = (
        logging.WARNING,
        "batch task model state provider_batch kind message delay",
        "a batch could not be driven on now, and is looked at again",
    )
    BATCH_LOST = (
        logging.ERROR,
        "batch task model state items provider_batch message",
        "a batch was given up, or may have been handed in twice",
    )
    NO_BATCHES = (logging.WARNING, "model", "a model's provider takes no batches; items of the lane batch are done online")
    # Order and time.
    SCHEDULE_FIRED = (
        logging.INFO,
        "schedule due task count",
        "a schedule was due and made a task; none where the time was missed",
    )
    SCHEDULE_BROKEN = (logging.ERROR, "schedule message", "a schedule cannot fire until somebody has put it right")
    GROUP_ENDED = (logging.INFO, "group count", "all tasks of a closed group have ended")
    CALLBACK_DELIVERED = (logging.INFO, "group call status", "the receiver of a group's callback has it")
    CALLBACK_MISSED = (logging.WARNING, "group call status message delay", "a callback did not arrive, and is sent again")
    CALLBACK_GIVEN_UP = (
        logging.ERROR,
        "group call status message",
        "a callback did not arrive in three days, and is not sent again",
    )
    RESULTS_EXPIRED = (logging.INFO, "task", "a task's results were cleared, when their time was over")
    # The worker and its database.
    DRAIN = (logging.INFO, "in_flight drain_seconds", "a worker was asked to stop and claims nothing more")
    RELOADED = (
        logging.INFO,
        "changed at_restart",
        "settings were read anew: those in `changed` are in force, those in `at_restart` with the next start",
    )
    RELOAD_REFUSED = (logging.ERROR, "message", "the new settings are wrong; the worker goes on with those that it has")
    STUCK = (logging.ERROR, "reason", "a worker does not get on, and leaves it to the service manager's watchdog to end it")
    BROKEN = (
        logging.ERROR,
        "reason",
        "a worker cannot go on (a thread of it has died, no memory is left): it gives back what it can, and ends",
    )
    STOP = (logging.INFO, "processed failed deferred released", "a worker has ended")
    HEARTBEAT_LATE = (logging.WARNING, "seconds reason", "no heartbeat could be written for a while; claiming pauses")
    LEASE_LOST = (logging.ERROR, "seconds", "others may have taken this worker's items")
    DATABASE_AWAY = (
        logging.WARNING,
        "host reason commit_in_doubt",
        "a connection was lost, or no server can be reached; results in hand are kept",
    )
    DATABASE_BACK = (logging.INFO, "host", "the database answers again")
    CONFLICT = (logging.DEBUG, "attempt reason", "the server broke off a transaction in favour of another; it is run again")
    NO_TRACES = (logging.WARNING, "message", "traces are asked for and cannot be made; the worker goes on without")
    LEFT_OUT = (
        logging.INFO,
        "share done fetch seconds",
        "so many lines DONE and FETCH were left out in these seconds, as AI_WORKER_LOG_SAMPLE asks",
    )
    LIVE_FAILED = (logging.ERROR, "topic message", "a page of the dashboard cannot be kept up to date")
    # The web.
    WEB_START = (logging.INFO, "host pid version address", "the web listens")
    WEB_EXPOSED = (
        logging.WARNING,
        "address message",
        "the web listens on more than this machine's loopback address",
    )
    WEB_STOP = (logging.INFO, "seconds", "the web has ended")
    REQUEST = (
        logging.INFO,
        "method path status ms request_id by",
        "a request was answered; a warning or an error where the server is to blame; of health checks at DEBUG",
    )
    RUN_STARTED = (logging.INFO, "run pid", "an `ai-worker run` was started for POST /task/run")
    RUN_ENDED = (logging.INFO, "run pid exit_code", "it has ended")
    LIBRARY = (logging.WARNING, "logger message", "a library had something to say")

    def __init__(self, level: int, fields: str, says: str) -> None:
        self.level = level
        self.fields = tuple(fields.split())
        self.says = says
