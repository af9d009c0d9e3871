"""Who is made of what: the parts of one worker, put together. Nothing runs yet, and there need not be a loop.

Each part is made of those before it. Where two need each other, the earlier one is told of the later by a `Bell`, or when it
is started or opened, as the lease and the slots are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from ai_worker.counts import Counts, Metric
from ai_worker.library import Library
from ai_worker.models import Filters, Secret
from ai_worker.store.batches import Batches
from ai_worker.store.counters import Counters
from ai_worker.store.models import Models
from ai_worker.store.queue import Queue
from ai_worker.store.strays import Strays as StoredStrays
from ai_worker.worker.accounts import Accounts, Summary
from ai_worker.worker.backgrounds import Backgrounds
from ai_worker.worker.batches import BatchLane
from ai_worker.worker.bell import Bell
from ai_worker.worker.breakdown import Breakdown
from ai_worker.worker.breaker import Breaker
from ai_worker.worker.calls import Caller
from ai_worker.worker.claiming import Claiming
from ai_worker.worker.congestion import Throttle
from ai_worker.worker.courier import Courier
from ai_worker.worker.endpoints import Endpoints
from ai_worker.worker.estimates import Estimates
from ai_worker.worker.express import Express, heavier
from ai_worker.worker.learning import Learner
from ai_worker.worker.lease import Lease
from ai_worker.worker.listener import Listener
from ai_worker.worker.options import WorkerOptions
from ai_worker.worker.pacer import Pacer
from ai_worker.worker.picker import Picker
from ai_worker.worker.reporter import Reporter
from ai_worker.worker.room import Room
from ai_worker.worker.shared_picker import SharedPicker
from ai_worker.worker.shares import Shares
from ai_worker.worker.sharing import Sharing
from ai_worker.worker.slots import Slots
from ai_worker.worker.steps import stepwise
from ai_worker.worker.strays import Strays
from ai_worker.worker.threads import Threads
from ai_worker.worker.tracing import Tracing
from ai_worker.worker.twins import WAITING_PER_SLOT, Twins
from ai_worker.worker.under_way import UnderWay
from ai_worker.worker.upkeep import Upkeep


class Assembly:
    """One worker's parts. The parameters are those of `Worker`."""

    def __init__(
        self,
        queue: Queue,
        models: Models,
        decrypt: Callable[[int, bytes], Secret],
        filters: Filters,
        options: WorkerOptions,
        on_progress: Callable[[Summary], None],
        open_secret: Callable[[int, bytes, str], Secret] | None,
        tracing: Tracing,
    ) -> None:
        many = options.concurrency
        draining = self.draining = asyncio.Event()  # claim nothing more
        work_seen = self.work_seen = asyncio.Event()  # look for work
        on_room = Bell[[]]()  # there may be room, or items, for a claim that found none
        on_models = Bell[[]]()  # other models may be used than before

        # What others are made of: a right to claims, threads to ask the database in, slots for calls.
        counts = self.counts = Counts(queue.counters)
        threads = self.threads = Threads()
        lease = self.lease = Lease(
            queue, lease_seconds=options.lease_seconds, mode=options.mode, concurrency=many, name=options.name
        )
        breakdown = self.breakdown = Breakdown(lease.log)
        sharing = Sharing(filters.queues, many) if len(filters.queues) > 1 else None
        slots = self.slots = Slots(many, lambda: lease.may_claim, sharing)

        # What a call needs, and what it costs.
        endpoints = self.endpoints = Endpoints(
            threads.upkeep.doing(models.get), decrypt, request_timeout=options.request_timeout, max_connections=many
        )
        library = self.library = Library(queue.prompts, options.prompt_folder, threads.upkeep, options.names_file)
        estimates = Estimates(models.all, library.kind)
        queue.estimate_with(estimates)

        # How many calls models take, from this worker and from the whole fleet.
        breaker = Breaker(
            threads.upkeep.doing(models.stop), threads.upkeep.doing(models.resume), endpoints.name, lease.log, on_models
        )
        throttle = Throttle(many, slots.held)
        shares = self.shares = Shares(
            threads.pace.doing(lease.own(queue.shares.renew)), slots=many, held=slots.places, on_ready=on_room
        )
        on_pause = Bell[[int, float]]()
        learner = Learner(
            lambda verb, *subject, **values: threads.pace.aside(getattr(queue.pace, verb), *subject, **values),
            on_pause,
            slots.held,
            lambda id_ai_model: counts.add(Metric.RATE_LIMITED, 1, id_ai_model),
        )
        pacer = self.pacer = Pacer(
            threads.pace.doing(queue.pace.lease),
            learner.limits,
            learner.held_until,
            slots=many,
            held=slots.held,
            away=partial(slots.away, keeps_place=True),
            on_ready=on_room,
        )
        on_pause.reaches(pacer.hold)
        room = Room(slots, throttle, shares, pacer, breaker)

        # The calls themselves, and what becomes of them.
        twins = self.twins = Twins(
            threads.cache.doing(lease.own(queue.cache.ask)),
            threads.cache.doing(lease.own(queue.cache.abandon)),
            slots.away,
            WAITING_PER_SLOT * many,
            lease.log,
        )
        under_way = self.under_way = UnderWay(options.request_timeout)
        caller = Caller(
            endpoints,
            library,
            draining,
            breaker,
            pacer,
            throttle,
            learner,
            twins,
            Backgrounds(threads.cache.doing(queue.backgrounds.draw)),
            slots,
            tracing,
            partial(
                stepwise,
                steps=queue.steps,
                reserve=queue.reserve_for_step,
                take_probe=queue.take_probe,
                lease=lease,
                thread=threads.commit,
                endpoints=endpoints,
                slots=slots,
                saw=pacer.saw,
                stopping=draining,
                breaker=breaker,
                counts=counts,
            ),
            under_way,
            threads.texts,
            lease.log,
        )
        accounts = self.accounts = Accounts(
            threads.commit.doing(tracing.commits(counts.timed(Metric.COMMIT_DURATION, lease.own(queue.commit)))),
            queue.limits.has_freed,
            options,
            lease,
            slots,
            endpoints,
            breaker,
            throttle,
            twins,
            estimates,
            counts,
            breakdown,
            work_seen=work_seen,
            on_room=on_room,
            on_progress=on_progress,
        )
        slots.serve(tracing.attempts(caller.outcome), accounts.settle, accounts.defect, room.may_add)
        batches = self.batches = BatchLane(
            Batches(queue),
            filters,
            endpoints,
            breaker,
            lease,
            library,
            stopping=draining,
            on_stored=accounts.tell,
            on_refused=accounts.refused,
            room=accounts.left,
            on_claimed=accounts.fetched,
            on_change=on_models,
        )

        # What is done for the whole fleet.
        self.courier = Courier(queue.callbacks, threads.upkeep, open_secret, lease)
        upkeep = self.upkeep = Upkeep(
            queue,
            lease,
            options.lease_seconds,
            threads.in_loop(work_seen.set),
            threads.in_loop(self.courier.wake),
            counts.rescued,
        )
        strays = StoredStrays(queue.db)
        self.strays = Strays(
            threads.upkeep.doing(lease.own(strays.held)),
            threads.upkeep.doing(strays.give_back),
            accounts.known,
            lambda: strays.losses,
            lease_seconds=options.lease_seconds,
            on_work=work_seen.set,
            log=lease.log,
        )
        self.reporter = Reporter(counts, Counters(queue.db), lambda: lease.id_worker, lease.log)

        # Where the items come from.
        listener = self.listener = Listener(queue.turns(), filters, room.busy_models, polls=not options.forever)
        picker: Picker | SharedPicker = Picker(queue, filters, room.of, room.busy_models, batches.takes)
        express = None
        if sharing is not None:
            above = heavier(filters)
            if above.queues and options.forever and options.max_items is None:
                timed = counts.timed(Metric.CLAIM_DURATION, lease.own(queue.claim_new))
                claim = threads.express.doing(tracing.claims(timed))
                express = Express(
                    above,
                    Listener(queue.turns(), above, room.busy_models),
                    lambda new_item, wanted: claim(new_item, wanted, room.busy_models()),
                    lambda: slots.rooms(accounts.in_hand) if lease.may_claim else {},
                )
            picker = SharedPicker(
                queue,
                filters,
                lambda: slots.rooms(accounts.in_hand),
                sharing.held,
                room.of,
                room.busy_models,
                breaker.shunned,
                batches.takes,
                is_listening=lambda: express is not None and express.is_listening,
            )
        threads.watch(batches.thread, listener.thread, *([express.thread] if express else []))
        self.claiming = Claiming(
            queue,
            filters,
            options,
            threads.claim,
            lease,
            slots,
            room,
            pacer,
            accounts,
            batches,
            picker,
            listener,
            express,
            upkeep,
            counts,
            tracing,
            work_seen=work_seen,
            draining=draining,
            on_room=on_room,
        )
        on_room.reaches(picker.forget, slots.offer, work_seen.set)
        on_models.reaches(picker.forget, lambda: slots.give_back(breaker.shunned()), work_seen.set)
