/* Claim, lease and fence: a model of how items move between workers, small enough for every interleaving to be tried.
 *
 * Two items of one task, two workers, a rescuer; statements are atomic, transactions are not: rows are locked by the statement that
 * touches them, and what a transaction writes is seen by others when it commits (READ COMMITTED). A worker may die at any point and
 * come back, be silent past its lease and wake up, get a bad answer, give an item back; the answer to a COMMIT may get lost while the
 * server still works on it. FAULTS of these happen, of any kinds, at any points; and a person may bring a dead letter back.
 *
 * Proved, for every order of all that:
 *   - an item's result is committed at most once, and by whoever holds the claim (or held the last one, when nobody does);
 *   - the counters equal the counts, whenever anybody looks; a task that has ended has no open item;
 *   - each call is on the books once, but for those of workers that died with the answer or gave the item back;
 *   - no call is made without need: at most one for each item, and one more for each death, lapsed lease, bad answer, item given
 *     back, and dead letter brought back; none for a lost COMMIT;
 *   - it always ends, with every item done or a dead letter, and the task ended.
 *
 * Compiled with -D and one of these names, the protocol is broken in one place, and spin must find a counterexample:
 *   NO_TOKEN, NO_FENCE, LOOK_BEFORE_LOCK, GUESS_NOT_LANDED, GUESS_LANDED, LOOK_WITHOUT_WAITING, COUNT_APART, RESCUE_THE_LIVING,
 *   CLAIM_WITHOUT_LOOK, RESCUE_UNLOCKED.
 */

#define ITEMS 2
#define WORKERS 2
#define LIVES 5        /* rows of `worker`: one for each start, and one for each lease that was lost */
#define TOKENS 8       /* claims of one item */
#define MAX_LOSSES 2   /* an item lost so often is a dead letter */
#define MAX_ATTEMPTS 2

#ifndef FAULTS
#define FAULTS 3       /* in one execution, of any kinds, at any points */
#endif

#define NOBODY 255

/* `task_item.status_id` */
#define PENDING 0
#define PROCESSED 1
#define IN_PROGRESS 2
#define ERROR 3
#define DEFERRED 4

/* What a transaction brings home. */
#define RESULT 0
#define BAD 1
#define RELEASED 2

/* What a commit finds. */
#define HOLDS 0
#define LATE 1
#define LANDED 2

/* The database, as it is committed. */
byte status[ITEMS];
byte owner[ITEMS] = NOBODY;
byte token[ITEMS];            /* 0: NULL */
byte attempt[ITEMS];
byte lost[ITEMS];
byte fresh[ITEMS];            /* the last token there was: a new claim's is like no other */
bool ended;
byte processed, failed;
bool is_booked[ITEMS * TOKENS];  /* `task_attempt`, by operation: item and token */

/* Its locks: 0 or the session that holds them. */
byte row_lock[ITEMS];
byte task_lock;

/* `worker`: the lease is over; somebody has begun to rescue it (`lost_at`). And whether the process behind it is dead. */
bool is_over[LIVES];
bool is_lost[LIVES];
bool is_dead[LIVES];
byte lives;

byte faults = FAULTS;         /* that may still happen */
bool may_retry = true;        /* a person brings a dead letter back, once */

/* What nobody in the model sees: it is only there to be checked. */
byte results[ITEMS];          /* how often a result was committed */
byte claimed_as[ITEMS];       /* the token of whoever works on it by right, 0: nobody */
byte calls, booked, excuses;
byte unbooked;                /* calls that may be on no book: of workers that died before they were told, and of items given back */

/* A session whose client has gone, with a COMMIT that it may yet carry out. */
bool zombie;
byte z_item, z_token, z_attempt, z_kind, z_fence;
bool z_ends;

#define SESSION(w) ((w) + 1)
#define RESCUER (WORKERS + 1)
#define ZOMBIE (WORKERS + 2)

#define OPERATION(i, t) ((i) * TOKENS + (t))
#define IS_OPEN(i) (status[i] == PENDING || status[i] == IN_PROGRESS || status[i] == DEFERRED)
#define ALL_DONE (!IS_OPEN(0) && !IS_OPEN(1) && ended)
#ifdef RESCUE_THE_LIVING
#define CAN_RESCUE(i) (status[i] == IN_PROGRESS && row_lock[i] == 0)
#else
#define CAN_RESCUE(i) (status[i] == IN_PROGRESS && is_lost[owner[i]] && row_lock[i] == 0)
#endif
#define OTHER(i) (1 - (i))

inline check() {
  assert(processed == (status[0] == PROCESSED) + (status[1] == PROCESSED));
  assert(failed == (status[0] == ERROR) + (status[1] == ERROR));
  assert(!ended || (!IS_OPEN(0) && !IS_OPEN(1)));
  assert(results[0] <= 1 && results[1] <= 1);
  assert((status[0] == IN_PROGRESS) == (owner[0] != NOBODY) && (status[1] == IN_PROGRESS) == (owner[1] != NOBODY));
}

inline count_done(done_status) {
  if
  :: done_status == PROCESSED -> processed++
  :: done_status == ERROR -> failed++
  :: else
  fi
}

/* COMMIT of an outcome: item, attempt, counters and the task's end, all at once. */
inline apply(i, t, a, kind, fence, ends) {
  if
  :: fence == HOLDS ->
    /* The fence did its work when nobody else has this item by right. */
    assert(claimed_as[i] == t || claimed_as[i] == 0);
    if
    :: status[i] == PROCESSED -> processed--
    :: status[i] == ERROR -> failed--
    :: else
    fi;
    if
    :: kind == RESULT -> status[i] = PROCESSED; results[i]++
    :: kind == BAD && a - lost[i] >= MAX_ATTEMPTS -> status[i] = ERROR
    :: kind == BAD && a - lost[i] < MAX_ATTEMPTS -> status[i] = DEFERRED
    :: kind == RELEASED -> status[i] = PENDING; token[i] = 0; attempt[i]--
    fi;
    owner[i] = NOBODY;
    claimed_as[i] = 0;
#ifndef COUNT_APART
    count_done(status[i]);
#endif
    if
    :: ends -> ended = true
    :: else
    fi
  :: else
  fi;
  if
  :: kind != RELEASED && fence != LANDED ->
    booked++;
    assert(!is_booked[OPERATION(i, t)]);
    is_booked[OPERATION(i, t)] = true
  :: else
  fi;
}

inline unlock(session) {
  if :: row_lock[0] == session -> row_lock[0] = 0 :: else fi;
  if :: row_lock[1] == session -> row_lock[1] = 0 :: else fi;
  if :: task_lock == session -> task_lock = 0 :: else fi;
}

/* A process starts, or registers anew after its lease was lost. */
inline register() {
  assert(lives < LIVES);
  me = lives;
  lives++;
}

inline die() {
  faults > 0 ->
  faults--;
  excuses++;
  is_dead[me] = true;
  unlock(SESSION(w));
}

proctype Worker(byte w) {
  byte me, i, t, a, kind, fence, after;
  bool ends;

  d_step { register() }

ready:
  atomic { i = 0; t = 0; a = 0; kind = 0; fence = 0; ends = false; after = 0 };
end_idle:
  atomic {
    if
    :: is_lost[me] -> register(); goto ready
    :: !is_lost[me] && status[0] == PENDING && row_lock[0] == 0 -> i = 0
    :: !is_lost[me] && status[1] == PENDING && row_lock[1] == 0 -> i = 1
    fi;
    /* SELECT ... FOR UPDATE SKIP LOCKED */
#ifndef CLAIM_WITHOUT_LOOK
    row_lock[i] = SESSION(w)
#endif
  }

  /* UPDATE ... WHERE status_id = 0, and COMMIT. */
  if
  :: d_step {
#ifdef CLAIM_WITHOUT_LOOK
       row_lock[i] == 0 ->
#else
       status[i] == PENDING ->
#endif
       assert(status[i] == PENDING);
       fresh[i]++;
       assert(fresh[i] < TOKENS);
       t = fresh[i];
       attempt[i]++;
       a = attempt[i];
       token[i] = t;
       status[i] = IN_PROGRESS;
       owner[i] = me;
       claimed_as[i] = t;
       unlock(SESSION(w));
       check()
     }
  :: atomic { die() } -> goto dead
  fi;

  /* The call: no transaction, no lock. */
  if
  :: d_step { calls++; assert(calls <= ITEMS + excuses); kind = RESULT }
  :: d_step { faults > 0 -> faults--; excuses++; calls++; kind = BAD }
  :: d_step { faults > 0 -> faults--; excuses++; calls++; unbooked++; kind = RELEASED }
  :: atomic { die() } -> goto dead
  :: atomic { die() -> calls++; unbooked++ } -> goto dead
  fi;

commit:
  ends = false;
#ifdef LOOK_WITHOUT_WAITING
  /* Whether it has landed, asked before the row is locked. */
  d_step { fence = (is_booked[OPERATION(i, t)] -> LANDED : HOLDS) }
#endif
  /* SELECT ... FOR UPDATE by key: waits for whoever holds the row, a session of one's own that has been lost too. */
  if
  :: atomic { row_lock[i] == 0 -> row_lock[i] = SESSION(w) }
  :: atomic { die() -> unbooked++; if :: kind == RELEASED -> unbooked-- :: else fi } -> goto dead
  fi;
  d_step {
    if
#ifdef LOOK_WITHOUT_WAITING
    :: fence == LANDED
#else
#ifdef GUESS_NOT_LANDED
    :: false
#else
    :: is_booked[OPERATION(i, t)] && status[i] != IN_PROGRESS -> fence = LANDED
    :: is_booked[OPERATION(i, t)] && status[i] == IN_PROGRESS && token[i] != t -> fence = LANDED
#endif
#endif
    :: else ->
      if
#if defined(NO_FENCE)
      :: status[i] == IN_PROGRESS || kind == RESULT -> fence = HOLDS
#elif defined(NO_TOKEN)
      :: attempt[i] == a && (status[i] == IN_PROGRESS || kind == RESULT) -> fence = HOLDS
#elif defined(LOOK_WITHOUT_WAITING)
      :: attempt[i] == a && token[i] == t -> fence = HOLDS
#else
      :: attempt[i] == a && token[i] == t && (status[i] == IN_PROGRESS || kind == RESULT) -> fence = HOLDS
#endif
      :: else -> fence = LATE
      fi
    fi
  }
#ifdef LOOK_BEFORE_LOCK
  d_step { ends = !IS_OPEN(OTHER(i)) && (kind == RESULT || (kind == BAD && a - lost[i] >= MAX_ATTEMPTS)) }
#endif
  if
  :: atomic { task_lock == 0 -> task_lock = SESSION(w) }
  :: atomic { die() -> unbooked++; if :: kind == RELEASED || fence == LANDED -> unbooked-- :: else fi } -> goto dead
  fi;
#ifndef LOOK_BEFORE_LOCK
  d_step { ends = !IS_OPEN(OTHER(i)) && (kind == RESULT || (kind == BAD && a - lost[i] >= MAX_ATTEMPTS)) }
#endif
  if
  :: d_step {
       apply(i, t, a, kind, fence, ends);
       after = status[i];
       unlock(SESSION(w));
#ifndef COUNT_APART
       check()
#endif
     }
  :: atomic { die() -> unbooked++; if :: kind == RELEASED || fence == LANDED -> unbooked-- :: else fi } -> goto dead
  /* The connection breaks while COMMIT is under way: the old session may yet carry it out, with its locks. */
  :: atomic {
       faults > 0 && !zombie ->
       faults--;
       zombie = true; z_item = i; z_token = t; z_attempt = a; z_kind = kind; z_fence = fence; z_ends = ends;
       if :: row_lock[0] == SESSION(w) -> row_lock[0] = ZOMBIE :: else fi;
       if :: row_lock[1] == SESSION(w) -> row_lock[1] = ZOMBIE :: else fi;
       if :: task_lock == SESSION(w) -> task_lock = ZOMBIE :: else fi;
     };
#ifdef GUESS_LANDED
     goto ready
#else
     goto commit
#endif
  fi;
#ifdef COUNT_APART
  if
  :: d_step { if :: fence == HOLDS -> count_done(after) :: else fi }
  :: atomic { die() } -> goto dead
  fi;
#endif
  goto ready;

dead:
  /* Whatever keeps services up starts it again. */
  atomic { register() };
  goto ready
}

/* The server's side of a connection that broke during COMMIT. */
active proctype OldSession() {
end:
  do
  :: d_step { zombie -> apply(z_item, z_token, z_attempt, z_kind, z_fence, z_ends); unlock(ZOMBIE); zombie = false; check() }
  :: d_step { zombie -> unlock(ZOMBIE); zombie = false }
  od
}

/* Time passes: the lease of a dead process runs out, and at times that of one that is only slow. */
active proctype Clock() {
  byte l;
end:
  do
  :: atomic {
       faults > 0 ->
       select(l : 0 .. 4);
       if
       :: l < lives && !is_over[l] && !is_dead[l] -> is_over[l] = true; faults--; excuses++
       :: else
       fi;
       l = 0
     }
  :: d_step { is_dead[0] && !is_over[0] -> is_over[0] = true }
  :: d_step { is_dead[1] && !is_over[1] -> is_over[1] = true }
  :: d_step { is_dead[2] && !is_over[2] -> is_over[2] = true }
  :: d_step { is_dead[3] && !is_over[3] -> is_over[3] = true }
  :: d_step { is_dead[4] && !is_over[4] -> is_over[4] = true }
  od
}

/* Any worker's upkeep: gives back what a lost worker holds. */
active proctype Rescuer() {
  byte i, l;
  bool ends;
end:
  do
  :: atomic {
       /* Its heartbeat fails from now on. */
       (is_over[0] && !is_lost[0]) || (is_over[1] && !is_lost[1]) || (is_over[2] && !is_lost[2]) || (is_over[3] && !is_lost[3]) ||
       (is_over[4] && !is_lost[4]) ->
       l = 0;
       do
       :: l < LIVES -> if :: is_over[l] -> is_lost[l] = true :: else fi; l++
       :: else -> break
       od;
       l = 0
     }
  :: atomic {
       CAN_RESCUE(0) || CAN_RESCUE(1) ->
       if
       :: CAN_RESCUE(0) -> i = 0
       :: CAN_RESCUE(1) -> i = 1
       fi;
       l = owner[i];
#ifndef RESCUE_UNLOCKED
       row_lock[i] = RESCUER
#endif
     };
#ifdef RESCUE_UNLOCKED
     atomic { row_lock[i] == 0 -> row_lock[i] = RESCUER };
#endif
     atomic { task_lock == 0 -> task_lock = RESCUER; ends = !IS_OPEN(OTHER(i)) && lost[i] + 1 >= MAX_LOSSES };
     d_step {
       /* The row of this attempt says that it was lost; a result that comes late replaces it. */
       owner[i] = NOBODY;
       claimed_as[i] = 0;
       lost[i]++;
       if
       :: lost[i] >= MAX_LOSSES -> status[i] = ERROR; failed++; ended = ends
       :: else -> status[i] = PENDING
       fi;
       unlock(RESCUER);
       check();
       i = 0; l = 0; ends = false
     }
  od
}

/* Deferred items become due. */
active proctype Promoter() {
end:
  do
  :: d_step { status[0] == DEFERRED && row_lock[0] == 0 -> status[0] = PENDING }
  :: d_step { status[1] == DEFERRED && row_lock[1] == 0 -> status[1] = PENDING }
  od
}

/* A person brings a dead letter back: its attempts begin anew, without a token. */
active proctype Person() {
  byte i;
end:
  do
  :: atomic {
       may_retry && task_lock == 0 && ((status[0] == ERROR && row_lock[0] == 0) || (status[1] == ERROR && row_lock[1] == 0)) ->
       if
       :: status[0] == ERROR && row_lock[0] == 0 -> i = 0
       :: status[1] == ERROR && row_lock[1] == 0 -> i = 1
       fi;
       may_retry = false;
       excuses++;
       status[i] = PENDING;
       attempt[i] = 0;
       lost[i] = 0;
       token[i] = 0;
       failed--;
       ended = false;
       i = 0
     }
  od
}

init {
  atomic { run Worker(0); run Worker(1) };
  /* When nobody can do anything any more. */
  timeout ->
  assert(ALL_DONE);
  assert(booked <= calls && calls <= booked + unbooked);
  assert(row_lock[0] == 0 && row_lock[1] == 0 && task_lock == 0)
}
