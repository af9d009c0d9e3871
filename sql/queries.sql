-- Every statement that AI Worker sends, by name, with its reason. Runs unchanged on MySQL 8.0.19+ and MariaDB 10.6+.
-- Parameters are written %(name)s, or %s where a line of VALUES stands for many rows; a literal percent sign is doubled. Read with DB_Description.md beside it.

-- ===== queue: how items move =====

-- name: runnable_tasks
-- Which tasks can be worked on now, best first, without a lock: one index-ordered scan per status, merged by the caller.
-- A task whose own model is stopped is there too when a fallback can take it; which one does is the caller's to see.
-- Nor is it there while it waits for another task: both look-ups by key, the first of which mostly finds nothing.
-- The pending test is a LIMIT 1 look-up on purpose: as EXISTS the optimizer may turn it into a join over all items. From the
-- range's end: claims leave dead index entries at its beginning, and as long as a backup holds a snapshot none is purged.
-- `id_prompt` is the one that the task is pinned to, or will be when it begins now: the current one of its type.
-- The whole key in ORDER BY: by its last column alone MySQL sorts. Tasks of other queues are passed over in the index, which ends in
-- the queue: one of its own would be written anew at each task's start and end.
(SELECT t.id_task, t.id_ai_model, t.task_type, t.description, t.parameters, t.max_attempts, t.priority, t.status_id,
        t.lane, t.pack, t.cache_seconds, t.budget, t.queue, t.personal_data, COALESCE(t.id_prompt, (SELECT pr.id_prompt FROM prompt pr FORCE INDEX (k_prompt_current) WHERE pr.name = t.task_type AND pr.is_active = 1
           ORDER BY pr.name DESC, pr.is_active DESC, pr.precedence DESC, pr.id_prompt DESC LIMIT 1)) AS id_prompt,
        m.max_in_flight, m.budget_per_day,
        m.max_requests_per_minute, m.max_tokens_per_minute,
        (SELECT CONCAT(COALESCE(p.requests_per_minute, ''), '/', COALESCE(p.tokens_per_minute, ''), '/', p.growth, '/',
                       TIMESTAMPDIFF(MICROSECOND, COALESCE(p.slowed_at, NOW(6)), NOW(6)))
          FROM ai_model_pace p FORCE INDEX (PRIMARY)
         WHERE p.id_ai_model = m.id_ai_model AND (p.requests_per_minute IS NOT NULL OR p.tokens_per_minute IS NOT NULL)) AS learnt,
        m.stopped_at IS NOT NULL AS is_probe,
        (SELECT GROUP_CONCAT(f.id_ai_model ORDER BY f.position) FROM task_fallback f FORCE INDEX (PRIMARY)
          WHERE f.id_task = t.id_task) AS fallbacks
   FROM task t FORCE INDEX (k_task_runnable)
   STRAIGHT_JOIN ai_model m FORCE INDEX (PRIMARY) ON m.id_ai_model = t.id_ai_model
  WHERE t.status_id = 0
    AND (t.scheduled_at IS NULL OR t.scheduled_at <= NOW(6))
    AND ((m.is_active = 1 AND (m.stopped_at IS NULL OR m.probe_at <= NOW(6)) AND m.id_ai_model NOT IN %(busy_models)s
          AND (%(any_model)s OR m.name IN %(model_names)s))
         OR ((m.is_active = 0 OR m.stopped_at IS NOT NULL)
             AND (SELECT f.id_task
                    FROM task_fallback f FORCE INDEX (PRIMARY)
                    STRAIGHT_JOIN ai_model fm FORCE INDEX (PRIMARY) ON fm.id_ai_model = f.id_ai_model
                   WHERE f.id_task = t.id_task AND fm.is_active = 1 AND (fm.stopped_at IS NULL OR fm.probe_at <= NOW(6))
                     AND fm.id_ai_model NOT IN %(busy_models)s AND (%(any_model)s OR fm.name IN %(model_names)s)
                   LIMIT 1) IS NOT NULL))
    AND (%(id_task)s IS NULL OR t.id_task = %(id_task)s)
    AND (%(any_type)s OR t.task_type IN %(task_types)s)
    AND (%(any_queue)s OR t.queue IN %(queues)s)
    AND (%(no_limits)s OR t.lane = 'batch' OR ((t.queue, t.task_type) NOT IN %(limits)s AND (t.queue, '') NOT IN %(limits)s
                           AND ('', t.task_type) NOT IN %(limits)s AND ('', '') NOT IN %(limits)s))
    AND (SELECT d.after_id_task FROM task_dependency d FORCE INDEX (PRIMARY)
           STRAIGHT_JOIN task p FORCE INDEX (PRIMARY) ON p.id_task = d.after_id_task
          WHERE d.id_task = t.id_task AND p.status_id <> 2
            AND (d.needs = 'success' OR p.status_id NOT IN (3, 5) OR p.finished_at IS NULL) LIMIT 1) IS NULL
    AND (SELECT i.id_task_item FROM task_item i FORCE INDEX (k_task_item_claim) WHERE i.id_task = t.id_task AND i.status_id = 0
            AND (%(id_task_item)s IS NULL OR i.id_task_item = %(id_task_item)s)
          ORDER BY i.id_task DESC, i.status_id DESC, i.id_task_item DESC LIMIT 1) IS NOT NULL
  ORDER BY t.claim_order, t.id_task
  LIMIT 500)
UNION ALL
(SELECT t.id_task, t.id_ai_model, t.task_type, t.description, t.parameters, t.max_attempts, t.priority, t.status_id,
        t.lane, t.pack, t.cache_seconds, t.budget, t.queue, t.personal_data, COALESCE(t.id_prompt, (SELECT pr.id_prompt FROM prompt pr FORCE INDEX (k_prompt_current) WHERE pr.name = t.task_type AND pr.is_active = 1
           ORDER BY pr.name DESC, pr.is_active DESC, pr.precedence DESC, pr.id_prompt DESC LIMIT 1)) AS id_prompt,
        m.max_in_flight, m.budget_per_day,
        m.max_requests_per_minute, m.max_tokens_per_minute,
        (SELECT CONCAT(COALESCE(p.requests_per_minute, ''), '/', COALESCE(p.tokens_per_minute, ''), '/', p.growth, '/',
                       TIMESTAMPDIFF(MICROSECOND, COALESCE(p.slowed_at, NOW(6)), NOW(6)))
          FROM ai_model_pace p FORCE INDEX (PRIMARY)
         WHERE p.id_ai_model = m.id_ai_model AND (p.requests_per_minute IS NOT NULL OR p.tokens_per_minute IS NOT NULL)) AS learnt,
        m.stopped_at IS NOT NULL AS is_probe,
        (SELECT GROUP_CONCAT(f.id_ai_model ORDER BY f.position) FROM task_fallback f FORCE INDEX (PRIMARY)
          WHERE f.id_task = t.id_task) AS fallbacks
   FROM task t FORCE INDEX (k_task_runnable)
   STRAIGHT_JOIN ai_model m FORCE INDEX (PRIMARY) ON m.id_ai_model = t.id_ai_model
  WHERE t.status_id = 1
    AND (t.scheduled_at IS NULL OR t.scheduled_at <= NOW(6))
    AND ((m.is_active = 1 AND (m.stopped_at IS NULL OR m.probe_at <= NOW(6)) AND m.id_ai_model NOT IN %(busy_models)s
          AND (%(any_model)s OR m.name IN %(model_names)s))
         OR ((m.is_active = 0 OR m.stopped_at IS NOT NULL)
             AND (SELECT f.id_task
                    FROM task_fallback f FORCE INDEX (PRIMARY)
                    STRAIGHT_JOIN ai_model fm FORCE INDEX (PRIMARY) ON fm.id_ai_model = f.id_ai_model
                   WHERE f.id_task = t.id_task AND fm.is_active = 1 AND (fm.stopped_at IS NULL OR fm.probe_at <= NOW(6))
                     AND fm.id_ai_model NOT IN %(busy_models)s AND (%(any_model)s OR fm.name IN %(model_names)s)
                   LIMIT 1) IS NOT NULL))
    AND (%(id_task)s IS NULL OR t.id_task = %(id_task)s)
    AND (%(any_type)s OR t.task_type IN %(task_types)s)
    AND (%(any_queue)s OR t.queue IN %(queues)s)
    AND (%(no_limits)s OR t.lane = 'batch' OR ((t.queue, t.task_type) NOT IN %(limits)s AND (t.queue, '') NOT IN %(limits)s
                           AND ('', t.task_type) NOT IN %(limits)s AND ('', '') NOT IN %(limits)s))
    AND (SELECT d.after_id_task FROM task_dependency d FORCE INDEX (PRIMARY)
           STRAIGHT_JOIN task p FORCE INDEX (PRIMARY) ON p.id_task = d.after_id_task
          WHERE d.id_task = t.id_task AND p.status_id <> 2
            AND (d.needs = 'success' OR p.status_id NOT IN (3, 5) OR p.finished_at IS NULL) LIMIT 1) IS NULL
    AND (SELECT i.id_task_item FROM task_item i FORCE INDEX (k_task_item_claim) WHERE i.id_task = t.id_task AND i.status_id = 0
            AND (%(id_task_item)s IS NULL OR i.id_task_item = %(id_task_item)s)
          ORDER BY i.id_task DESC, i.status_id DESC, i.id_task_item DESC LIMIT 1) IS NOT NULL
  ORDER BY t.claim_order, t.id_task
  LIMIT 500);

-- name: lock_pending_of_task
-- The claim on one big task: equality on task and status, a range on the key, no sort; other workers' rows are stepped over.
SELECT id_task_item, id_task, text_original, context, attempt, lost_count, refused, is_single, context_key
  FROM task_item FORCE INDEX (k_task_item_claim)
 WHERE id_task = %(id_task)s AND status_id = 0 AND id_task_item > %(after)s
 ORDER BY id_task_item
 LIMIT %(size)s
   FOR UPDATE SKIP LOCKED;

-- name: lock_pending_for_batch
-- The same for a batch: what came back from an earlier one, or was refused by a model, is left for the lane online.
SELECT id_task_item, id_task, text_original, context, attempt, lost_count, refused, is_single, context_key
  FROM task_item FORCE INDEX (k_task_item_claim)
 WHERE id_task = %(id_task)s AND status_id = 0 AND id_task_item > %(after)s AND is_single = 0 AND refused = 0
 ORDER BY id_task_item
 LIMIT %(size)s
   FOR UPDATE SKIP LOCKED;

-- name: lock_pending_singles
-- And the other way round: what a batch gave back is sent alone, and so is what a model has refused. Asked only where nothing waits for a batch, so that it need not
-- wade through that.
SELECT id_task_item, id_task, text_original, context, attempt, lost_count, refused, is_single, context_key
  FROM task_item FORCE INDEX (k_task_item_claim)
 WHERE id_task = %(id_task)s AND status_id = 0 AND id_task_item > %(after)s AND (is_single = 1 OR refused > 0)
 ORDER BY id_task_item
 LIMIT %(size)s
   FOR UPDATE SKIP LOCKED;

-- name: tasks_with_items_for_batches
-- Which of these tasks have items that wait for a batch; from the end of each range, where new items are and dead index entries few.
SELECT t.id_task
  FROM task t
 WHERE t.id_task IN %(tasks)s
   AND (SELECT i.id_task_item FROM task_item i FORCE INDEX (k_task_item_claim)
         WHERE i.id_task = t.id_task AND i.status_id = 0 AND i.is_single = 0 AND i.refused = 0
         ORDER BY i.id_task DESC, i.status_id DESC, i.id_task_item DESC LIMIT 1) IS NOT NULL;

-- name: lock_pending_of_tasks
-- The claim on many small tasks. No ORDER BY: a sort would lock every candidate and starve the next worker.
SELECT id_task_item, id_task, text_original, context, attempt, lost_count, refused, is_single, context_key
  FROM task_item FORCE INDEX (k_task_item_claim)
 WHERE id_task IN %(tasks)s AND status_id = 0
 LIMIT %(size)s
   FOR UPDATE SKIP LOCKED;

-- name: lock_pending_item
-- The claim on one named item.
SELECT id_task_item, id_task, text_original, context, attempt, lost_count, refused, is_single, context_key
  FROM task_item FORCE INDEX (PRIMARY)
 WHERE id_task_item = %(id_task_item)s AND id_task = %(id_task)s AND status_id = 0
   FOR UPDATE SKIP LOCKED;

-- name: task_states
-- Whether the tasks of the rows just locked may still be worked on: a task paused a moment ago is not claimed from. And which prompt
-- they are pinned to by now: a new one may have become current since this worker looked.
SELECT id_task, status_id, id_ai_model, id_prompt FROM task WHERE id_task IN %(tasks)s;

-- name: mark_claimed
-- The status is tested again: where SKIP LOCKED is parsed but ignored (TiDB), only one of two claimers gets the row.
-- FORCE INDEX here and wherever rows are locked by key: of a small table the optimizer would rather lock all of it.
UPDATE task_item FORCE INDEX (PRIMARY)
   SET status_id = 2, id_worker = %(id_worker)s, claim_token = %(claim_token)s, attempt = attempt + 1,
       id_ai_model = NULL, reserved = NULL
 WHERE id_task_item IN %(items)s AND status_id = 0;

-- name: mark_claimed_each
-- The same where a claim may be for another model than the task's own, or sets money aside.
UPDATE JSON_TABLE(%(rows)s, '$[*]' COLUMNS (
         id_task_item BIGINT UNSIGNED PATH '$.id', id_ai_model INT UNSIGNED PATH '$.mo', reserved DECIMAL(18,9) PATH '$.re')) r
STRAIGHT_JOIN task_item i FORCE INDEX (PRIMARY) ON i.id_task_item = r.id_task_item AND i.status_id = 0
   SET i.status_id = 2, i.id_worker = %(id_worker)s, i.claim_token = %(claim_token)s, i.attempt = i.attempt + 1,
       i.id_ai_model = r.id_ai_model, i.reserved = r.reserved;

-- name: model_states
-- Of all models, a handful: which of them may be called now. Looked at only where a task names more than one.
SELECT id_ai_model, name, is_active, stopped_at IS NOT NULL AS is_stopped, COALESCE(probe_at <= NOW(6), 0) AS is_due,
       TIMESTAMPDIFF(MICROSECOND, NOW(6), probe_at) / 1000000 AS probe_seconds, max_in_flight, budget_per_day,
       max_requests_per_minute, max_tokens_per_minute,
       (SELECT CONCAT(COALESCE(p.requests_per_minute, ''), '/', COALESCE(p.tokens_per_minute, ''), '/', p.growth, '/',
                       TIMESTAMPDIFF(MICROSECOND, COALESCE(p.slowed_at, NOW(6)), NOW(6)))
          FROM ai_model_pace p FORCE INDEX (PRIMARY)
         WHERE p.id_ai_model = ai_model.id_ai_model AND (p.requests_per_minute IS NOT NULL OR p.tokens_per_minute IS NOT NULL)) AS learnt,
       %(any_model)s OR name IN %(model_names)s AS is_wanted
  FROM ai_model;

-- name: lock_budget
-- What a task may cost and has cost, under the lock that every commit of its items takes; the items were locked before.
SELECT status_id, budget, cost FROM task FORCE INDEX (PRIMARY) WHERE id_task = %(id_task)s FOR UPDATE;

-- name: reserved_of_task
-- What is set aside for its items in flight. No counter: this cannot be wrong.
SELECT SUM(reserved) AS reserved FROM task_item FORCE INDEX (k_task_item_claim) WHERE id_task = %(id_task)s AND status_id = 2;

-- name: lock_pace
-- Claims that set money of one model's day aside go one at a time; its row in `ai_model` is locked by every INSERT of a task.
INSERT INTO ai_model_pace (id_ai_model) VALUES (%(id_ai_model)s) ON DUPLICATE KEY UPDATE id_ai_model = id_ai_model;

-- name: model_budget
-- Under that lock, what a model has cost today, and what is set aside of its day: in one look, since commits go on meanwhile.
SELECT m.name, m.budget_per_day,
       (SELECT SUM(d.cost) FROM ai_model_day d FORCE INDEX (PRIMARY)
         WHERE d.id_ai_model = m.id_ai_model AND d.day = UTC_DATE()) AS spent,
       (SELECT SUM(i.reserved)
          FROM task t FORCE INDEX (k_task_runnable)
          STRAIGHT_JOIN task_item i FORCE INDEX (k_task_item_claim) ON i.id_task = t.id_task AND i.status_id = 2
         WHERE t.status_id IN (1, 4, 5) AND t.finished_at IS NULL
           AND COALESCE(i.id_ai_model, t.id_ai_model) = m.id_ai_model AND i.id_task_item <> %(but)s) AS reserved
  FROM ai_model m
 WHERE m.id_ai_model = %(id_ai_model)s;

-- name: stored_steps
-- What need not be paid for again, of items that take several calls and have a budget.
SELECT id_task_item, step, part, digest FROM task_item_step FORCE INDEX (PRIMARY) WHERE id_task_item IN %(items)s;

-- name: reserve_step
-- A step for another model than the claim's: from now on what is set aside for its item, whose row is locked, counts for that
-- model's day. All of it is this step's, but where the task has a budget, which pays for the later ones too.
UPDATE task_item FORCE INDEX (PRIMARY)
   SET id_ai_model = %(id_ai_model)s,
       reserved = IF(%(is_all)s, %(reserved)s, GREATEST(COALESCE(reserved, 0), %(reserved)s))
 WHERE id_task_item = %(id_task_item)s;

-- name: model_name
-- For a reason that people read.
SELECT name FROM ai_model WHERE id_ai_model = %(id_ai_model)s;

-- name: pause_unpaid
-- A task none of whose items can be paid. What the day has spent is there again at the next midnight, UTC.
UPDATE task FORCE INDEX (PRIMARY)
   SET status_id = 4, status_reason = %(reason)s, finished_at = NULL, expire_at = NULL,
       resume_at = IF(%(is_for_today)s, UTC_DATE() + INTERVAL 1 DAY, NULL)
 WHERE id_task = %(id_task)s AND status_id IN (0, 1, 2, 3);

-- name: tasks_to_resume
-- Paused tasks whose time has come; a look without locks, and the next statement tests it again.
SELECT id_task FROM task FORCE INDEX (k_task_runnable) WHERE status_id = 4 AND resume_at <= NOW(6) LIMIT 500;

-- name: resume_tasks
-- A new day: they go on where they were.
UPDATE task FORCE INDEX (PRIMARY)
   SET status_id = IF(started_at IS NULL, 0, 1), status_reason = NULL, resume_at = NULL
 WHERE id_task IN %(tasks)s AND status_id = 4 AND resume_at <= NOW(6);

-- name: put_off_items
-- Pending items, locked, whose model cannot take them while the one before it in their chain can take others.
UPDATE task_item FORCE INDEX (PRIMARY)
   SET status_id = 4, available_at = NOW(6) + INTERVAL %(delay_us)s MICROSECOND
 WHERE id_task_item IN %(items)s AND status_id = 0;

-- name: last_words
-- What the models before the last one said of items that this one refuses too.
SELECT a.id_task_item, a.id_ai_model, a.finished_at, m.name, a.error_message
  FROM task_attempt a FORCE INDEX (k_task_attempt_item)
  STRAIGHT_JOIN ai_model m FORCE INDEX (PRIMARY) ON m.id_ai_model = a.id_ai_model
 WHERE a.id_task_item IN %(items)s AND a.error_message IS NOT NULL;

-- name: start_tasks
-- NEW begins, and is pinned to the prompt that its first items are done with; a finished task that got new items goes on. One that
-- somebody has paused or cancelled since the claim looked stays so, but it has begun: it has items in flight.
UPDATE task FORCE INDEX (PRIMARY)
   SET status_id = IF(status_id IN (0, 2, 3), 1, status_id), started_at = COALESCE(started_at, NOW(6)), finished_at = NULL,
       expire_at = NULL, id_prompt = COALESCE(id_prompt, %(id_prompt)s)
 WHERE id_task IN %(tasks)s AND (status_id IN (0, 2, 3) OR started_at IS NULL);

-- name: claimed_items
-- What a claim really got, where that is in doubt: the rows that carry its token. `attempt` as before the claim, like its siblings'.
-- FOR UPDATE, because after a lost COMMIT it must wait for the old session.
SELECT id_task_item, id_task, text_original, context, attempt - 1 AS attempt, lost_count, refused, is_single, context_key
  FROM task_item FORCE INDEX (PRIMARY)
 WHERE id_task_item IN %(items)s AND claim_token = %(claim_token)s AND status_id = 2
 ORDER BY id_task_item
   FOR UPDATE;

-- name: take_claim_turn
-- In a crowd, claims go one at a time. Nothing depends on it: after some seconds, or where there are no named locks, one goes ahead.
SELECT GET_LOCK(%(name)s, %(seconds)s) AS turn;

-- name: unclaim
-- A claim whose COMMIT may or may not have landed, and that nobody works on: as if it had never been made.
UPDATE task_item FORCE INDEX (PRIMARY)
   SET status_id = 0, id_worker = NULL, claim_token = NULL, attempt = attempt - 1
 WHERE id_task_item IN %(items)s AND claim_token = %(claim_token)s AND status_id = 2;

-- name: lock_committed
-- The commit's fence: rows by primary key, in its order, with what decides whether the result still counts.
SELECT id_task_item, status_id, claim_token, attempt
  FROM task_item FORCE INDEX (PRIMARY)
 WHERE id_task_item IN %(items)s
 ORDER BY id_task_item
   FOR UPDATE;

-- name: landed_operations
-- After a COMMIT whose answer was lost: which attempts it brought home. Rows that a rescue wrote (kind 'lost') do not count.
SELECT operation_uuid, outcome, error_kind
  FROM task_attempt FORCE INDEX (PRIMARY)
 WHERE operation_uuid IN %(operations)s AND NOT (outcome = 'lost' AND error_kind <=> 'lost');

-- name: rescued_operations
-- Of attempts that come too late: which ones a rescue has put on record. Of the others, the database never heard, or has forgotten.
SELECT operation_uuid
  FROM task_attempt FORCE INDEX (PRIMARY)
 WHERE operation_uuid IN %(operations)s AND outcome = 'lost' AND error_kind <=> 'lost';

-- name: store_results
-- The plain case, a group of nothing but results, in one statement: found by primary key, fenced by status, claim token and attempt.
-- When not all rows match, the transaction is broken off and done the long way. Rows of VALUES, which cost a third less than JSON
-- with texts of some length; each server reads its own dialect of them in the comments that the other one skips.
UPDATE (/*M! WITH r (id_task_item, attempt, claim_token, tokens_input, tokens_output, cost, text_corrected, change_summary, result) AS (*/
VALUES /*!80019 ROW*/(%s, %s, %s, %s, %s, %s, %s, %s, %s)
       /*M! ) SELECT * FROM r*/) AS r
       /*!80019 (id_task_item, attempt, claim_token, tokens_input, tokens_output, cost, text_corrected, change_summary, result)*/
STRAIGHT_JOIN task_item i FORCE INDEX (PRIMARY) ON i.id_task_item = r.id_task_item AND i.status_id = 2
          AND i.attempt = r.attempt AND i.claim_token = r.claim_token
   SET i.status_id = 1,
       i.id_worker = NULL,
       i.finished_at = NOW(6),
       i.tokens_input = i.tokens_input + r.tokens_input,
       i.tokens_output = i.tokens_output + r.tokens_output,
       i.cost = IF(r.cost IS NULL, i.cost, COALESCE(i.cost, 0) + r.cost),
       i.error_kind = NULL,
       i.error_message = NULL,
       i.text_corrected = r.text_corrected,
       i.change_summary = r.change_summary,
       i.result = r.result;

-- name: store_outcomes
-- The same for outcomes of all kinds, whose rows are locked and looked at already.
UPDATE JSON_TABLE(%(rows)s, '$[*]' COLUMNS (
         id_task_item BIGINT UNSIGNED PATH '$.id', attempt INT PATH '$.at', status_id INT PATH '$.st',
         charged INT PATH '$.ch', found_again INT PATH '$.fa', delay_us BIGINT PATH '$.de', refused INT PATH '$.rf',
         single INT PATH '$.si',
         tokens_input INT PATH '$.ti', tokens_output INT PATH '$.to', cost DECIMAL(18,9) PATH '$.co',
         error_kind VARCHAR(32) PATH '$.ek', error_message VARCHAR(1000) PATH '$.em',
         text_corrected MEDIUMTEXT PATH '$.tc', change_summary TEXT PATH '$.cs', result MEDIUMTEXT PATH '$.re')) r
STRAIGHT_JOIN task_item i FORCE INDEX (PRIMARY) ON i.id_task_item = r.id_task_item AND i.attempt = r.attempt
   SET i.status_id = r.status_id,
       i.id_worker = NULL,
       i.claim_token = IF(r.charged, i.claim_token, NULL),
       i.attempt = i.attempt - 1 + r.charged,
       i.lost_count = i.lost_count - r.found_again,
       i.refused = GREATEST(i.refused, r.refused),
       i.available_at = IF(r.status_id = 4, NOW(6) + INTERVAL r.delay_us MICROSECOND, NULL),
       i.is_single = GREATEST(i.is_single, r.single),
       i.finished_at = IF(r.status_id IN (1, 3), NOW(6), NULL),
       i.tokens_input = i.tokens_input + r.tokens_input,
       i.tokens_output = i.tokens_output + r.tokens_output,
       i.cost = IF(r.cost IS NULL, i.cost, COALESCE(i.cost, 0) + r.cost),
       i.error_kind = r.error_kind,
       i.error_message = r.error_message,
       i.text_corrected = r.text_corrected,
       i.change_summary = r.change_summary,
       i.result = r.result;

-- name: charge_items
-- Tokens of results that came too late are the item's all the same; nothing else of the row is the loser's to touch.
UPDATE JSON_TABLE(%(rows)s, '$[*]' COLUMNS (
         id_task_item BIGINT UNSIGNED PATH '$.id',
         tokens_input INT PATH '$.ti', tokens_output INT PATH '$.to', cost DECIMAL(18,9) PATH '$.co')) r
STRAIGHT_JOIN task_item i FORCE INDEX (PRIMARY) ON i.id_task_item = r.id_task_item
   SET i.tokens_input = i.tokens_input + r.tokens_input,
       i.tokens_output = i.tokens_output + r.tokens_output,
       i.cost = IF(r.cost IS NULL, i.cost, COALESCE(i.cost, 0) + r.cost);

-- name: forget_lost_attempts
-- A rescue wrote these attempts down as lost, without tokens; their workers came back and know better.
DELETE a
  FROM task_attempt a FORCE INDEX (PRIMARY)
 WHERE a.operation_uuid IN %(operations)s AND a.outcome = 'lost' AND a.error_kind <=> 'lost';

-- name: insert_attempts
-- The ledger: one row per attempt that ended. Placeholders without names: this one is written for each item, and they cost less.
INSERT INTO task_attempt (operation_uuid, id_task, id_task_item, attempt, id_worker, id_ai_model, outcome, error_kind, error_message,
                          tokens_input, tokens_output, tokens_cached, tokens_reasoning, cost, latency_ms, lane)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s);

-- name: add_to_day
-- What a commit's attempts have used of their models today, added in its own transaction; after the tasks, and by key. VALUES() is
-- deprecated on MySQL, but what is to follow it MariaDB does not know.
INSERT INTO ai_model_day (id_ai_model, day, shard, attempts, tokens_input, tokens_output, tokens_cached, tokens_reasoning, cost)
VALUES (%s, UTC_DATE(), %s, %s, %s, %s, %s, %s, %s)
    ON DUPLICATE KEY UPDATE
       attempts = attempts + VALUES(attempts),
       tokens_input = tokens_input + VALUES(tokens_input),
       tokens_output = tokens_output + VALUES(tokens_output),
       tokens_cached = tokens_cached + VALUES(tokens_cached),
       tokens_reasoning = tokens_reasoning + VALUES(tokens_reasoning),
       cost = IF(VALUES(cost) IS NULL, cost, COALESCE(cost, 0) + VALUES(cost));

-- name: write_minutes
-- What one worker has done in the present minute so far, in place of what it wrote last: its own rows, which nobody else writes.
INSERT INTO worker_minute (minute_at, id_worker, id_ai_model, processed, failed, retried, tokens_input, tokens_output, cost, latencies)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
    ON DUPLICATE KEY UPDATE
       processed = VALUES(processed), failed = VALUES(failed), retried = VALUES(retried), tokens_input = VALUES(tokens_input),
       tokens_output = VALUES(tokens_output), cost = VALUES(cost), latencies = VALUES(latencies);

-- name: write_counters
-- The counters of one worker that have changed, as they stand now: a repeat does no harm.
INSERT INTO worker_counter (id_worker, name, id_ai_model, label, value)
VALUES (%s, %s, %s, %s, %s)
    ON DUPLICATE KEY UPDATE value = VALUES(value);

-- name: lock_counters
-- The counters of workers that are no longer there, before they are added up: whoever comes second finds none.
SELECT name, id_ai_model, label, value
  FROM worker_counter FORCE INDEX (PRIMARY)
 WHERE id_worker IN %(workers)s
   FOR UPDATE;

-- name: add_counters
-- The same, added to the sums of worker 0, in one order, so that two workers that end do not wait for each other in a circle.
INSERT INTO worker_counter (id_worker, name, id_ai_model, label, value)
VALUES (%s, %s, %s, %s, %s)
    ON DUPLICATE KEY UPDATE value = value + VALUES(value);

-- name: delete_counters
-- The same, taken away where they were, in that transaction.
DELETE FROM worker_counter
 WHERE id_worker IN %(workers)s;

-- name: item_steps
-- What earlier attempts at an item have finished, read at the beginning of the next one.
SELECT step, part, digest, operation_uuid, result, text
  FROM task_item_step FORCE INDEX (PRIMARY)
 WHERE id_task_item = %(id_task_item)s;

-- name: forget_steps
-- Steps that were made of something else: the prompt or the text has changed since. They stay in the ledger.
DELETE s
  FROM task_item_step s FORCE INDEX (PRIMARY)
 WHERE s.id_task_item = %(id_task_item)s AND s.operation_uuid IN %(operations)s;

-- name: begin_steps
-- How far an item has come, as its attempt finds it; the row is locked already.
UPDATE task_item FORCE INDEX (PRIMARY)
   SET steps_done = %(done)s, steps_total = %(total)s
 WHERE id_task_item = %(id_task_item)s;

-- name: insert_step
-- A finished step or part, at once when its answer is there: a crash costs the call under way, and no more.
INSERT INTO task_item_step (id_task_item, step, part, digest, operation_uuid, result, text)
VALUES (%(id_task_item)s, %(step)s, %(part)s, %(digest)s, %(operation)s, %(result)s, %(text)s);

-- name: insert_step_attempt
-- Its row in the ledger, which says what it cost.
INSERT INTO task_attempt (operation_uuid, id_task, id_task_item, attempt, id_worker, id_ai_model, outcome,
                          tokens_input, tokens_output, tokens_cached, tokens_reasoning, cost, latency_ms, lane, step)
VALUES (%(operation)s, %(id_task)s, %(id_task_item)s, %(attempt)s, %(id_worker)s, %(id_ai_model)s, 'processed',
        %(tokens_input)s, %(tokens_output)s, %(tokens_cached)s, %(tokens_reasoning)s, %(cost)s, %(latency_ms)s, %(lane)s, %(number)s);

-- name: book_step
-- What it cost, on its item, whose row is locked; that much less is set aside for the rest of it.
UPDATE task_item FORCE INDEX (PRIMARY)
   SET steps_done = steps_done + 1,
       tokens_input = tokens_input + %(tokens_input)s,
       tokens_output = tokens_output + %(tokens_output)s,
       cost = IF(%(cost)s IS NULL, cost, COALESCE(cost, 0) + %(cost)s),
       reserved = IF(%(cost)s IS NULL, reserved, GREATEST(reserved - %(cost)s, 0))
 WHERE id_task_item = %(id_task_item)s;

-- name: forget_parts
-- Parts of long texts whose items are done: the result has them all.
-- A join, as the servers would read a small table whole for an IN on the first column of its key, and lock all of it.
DELETE s
  FROM JSON_TABLE(%(rows)s, '$[*]' COLUMNS (id BIGINT UNSIGNED PATH '$.id')) r
  STRAIGHT_JOIN task_item_step s FORCE INDEX (PRIMARY) ON s.id_task_item = r.id AND s.part > 0;

-- name: forget_files
-- What an item's earlier result brought goes when it has a new one.
DELETE f
  FROM JSON_TABLE(%(rows)s, '$[*]' COLUMNS (id BIGINT UNSIGNED PATH '$.id')) r
  STRAIGHT_JOIN task_item_file f FORCE INDEX (PRIMARY) ON f.id_task_item = r.id;

-- name: begin_file
-- A file's bytes are gathered in the session, in pieces that every packet takes, and come into the table with their row: appended
-- there, each piece would have all before it written again.
SET @ai_worker_file = %(piece)s;

-- name: append_to_file
-- The next piece of it.
SET @ai_worker_file = CONCAT(@ai_worker_file, %(piece)s);

-- name: add_file
-- A file of an item whose row this transaction holds, with the bytes that were sent.
INSERT INTO task_item_file (id_task_item, position, mime_type, size, sha256, width, height, content, thumbnail)
VALUES (%(id_task_item)s, %(position)s, %(mime_type)s, %(size)s, %(sha256)s, %(width)s, %(height)s, @ai_worker_file, %(thumbnail)s);

-- name: end_file
-- The session need not hold megabytes until the next one.
SET @ai_worker_file = NULL;

-- name: add_file_in_folder
-- The same of a file that lies in a folder.
INSERT INTO task_item_file (id_task_item, position, mime_type, size, sha256, width, height, path, thumbnail)
VALUES (%(id_task_item)s, %(position)s, %(mime_type)s, %(size)s, %(sha256)s, %(width)s, %(height)s, %(path)s, %(thumbnail)s);

-- name: files_with_thumbnails
-- Without their bytes, which may be megabytes each; by ranges of the primary key.
SELECT id_task_item, position, mime_type, size, sha256, width, height, path, IF(%(thumbnails)s, thumbnail, NULL) AS thumbnail
  FROM task_item_file
 WHERE id_task_item IN %(items)s
 ORDER BY id_task_item, position;

-- name: file_piece
-- A file leaves in pieces as well: one at a time in memory, and no packet is too small.
SELECT SUBSTRING(content, %(start)s, %(length)s) AS piece
  FROM task_item_file
 WHERE id_task_item = %(id_task_item)s AND position = %(position)s;

-- name: lock_tasks
-- Before looking whether a task has ended: who finishes another item of it at the same instant waits here, and then sees ours.
SELECT id_task, status_id, records_processed, records_failed, finished_at IS NOT NULL AS is_finished
  FROM task FORCE INDEX (PRIMARY)
 WHERE id_task IN %(tasks)s
 ORDER BY id_task
   FOR UPDATE;

-- name: tasks_without_open_items
-- The look, under the task row's lock; from the end of each range, where dead index entries are fewest.
SELECT t.id_task
  FROM task t
 WHERE t.id_task IN %(tasks)s
   AND (SELECT i.id_task_item FROM task_item i FORCE INDEX (k_task_item_claim) WHERE i.id_task = t.id_task AND i.status_id = 0
         ORDER BY i.id_task DESC, i.status_id DESC, i.id_task_item DESC LIMIT 1) IS NULL
   AND (SELECT i.id_task_item FROM task_item i FORCE INDEX (k_task_item_claim) WHERE i.id_task = t.id_task AND i.status_id = 2
         ORDER BY i.id_task DESC, i.status_id DESC, i.id_task_item DESC LIMIT 1) IS NULL
   AND (SELECT i.id_task_item FROM task_item i FORCE INDEX (k_task_item_claim) WHERE i.id_task = t.id_task AND i.status_id = 4
         ORDER BY i.id_task DESC, i.status_id DESC, i.id_task_item DESC LIMIT 1) IS NULL;

-- name: settle_tasks
-- The counters, in the same transaction as what they count; last, and by id, so that the hot row is held shortest. And the end of
-- those that have ended, in the same stroke: COMPLETED, ERROR, or CANCELLED still.
UPDATE JSON_TABLE(%(rows)s, '$[*]' COLUMNS (
         id_task BIGINT UNSIGNED PATH '$.id', processed INT PATH '$.pr', failed INT PATH '$.fa',
         tokens_input BIGINT PATH '$.ti', tokens_output BIGINT PATH '$.to', cost DECIMAL(18,9) PATH '$.co',
         ended_as INT PATH '$.en')) r
STRAIGHT_JOIN task t FORCE INDEX (PRIMARY) ON t.id_task = r.id_task
   SET t.records_processed = t.records_processed + r.processed,
       t.records_failed = t.records_failed + r.failed,
       t.tokens_input = t.tokens_input + r.tokens_input,
       t.tokens_output = t.tokens_output + r.tokens_output,
       t.cost = IF(r.cost IS NULL, t.cost, COALESCE(t.cost, 0) + r.cost),
       t.status_id = COALESCE(r.ended_as, t.status_id),
       t.status_reason = IF(r.ended_as IN (2, 3), NULL, t.status_reason),
       t.finished_at = IF(r.ended_as IS NULL, t.finished_at, NOW(6)),
       t.expire_at = IF(r.ended_as IS NULL, t.expire_at, NOW(6) + INTERVAL t.result_seconds SECOND);

-- name: end_tasks
-- The same where nothing is counted. People end tasks too, and may not write the counters.
UPDATE task FORCE INDEX (PRIMARY)
   SET status_id = IF(status_id = 5, 5, IF(records_failed > 0, 3, 2)), status_reason = IF(status_id = 5, status_reason, NULL),
       finished_at = NOW(6), expire_at = NOW(6) + INTERVAL result_seconds SECOND
 WHERE id_task IN %(tasks)s;

-- name: open_tasks_without_open_items
-- Tasks that nobody ended: an application deleted their last open items. Looked for now and then, in pages of tasks.
SELECT t.id_task
  FROM task t
 WHERE t.status_id = 1
   AND (SELECT i.id_task_item FROM task_item i WHERE i.id_task = t.id_task AND i.status_id = 0 LIMIT 1) IS NULL
   AND (SELECT i.id_task_item FROM task_item i WHERE i.id_task = t.id_task AND i.status_id = 2 LIMIT 1) IS NULL
   AND (SELECT i.id_task_item FROM task_item i WHERE i.id_task = t.id_task AND i.status_id = 4 LIMIT 1) IS NULL
 ORDER BY t.id_task
 LIMIT 100;

-- name: look_at_time
-- What time brings besides items, in one statement a second: whether a schedule is due, a closed group may end, a callback is to be
-- sent, results have had their time, or a worker's lease is over. Five look-ups that mostly find nothing.
SELECT (SELECT s.id_schedule FROM schedule s FORCE INDEX (k_schedule_due)
         WHERE s.is_active = 1 AND s.next_at <= NOW(6) LIMIT 1) IS NOT NULL AS has_schedule,
       (SELECT g.id_task_group FROM task_group g FORCE INDEX (k_task_group_open)
         WHERE g.ended_at IS NULL AND g.closed_at IS NOT NULL LIMIT 1) IS NOT NULL AS has_group,
       (SELECT c.id_callback FROM callback c FORCE INDEX (k_callback_due) WHERE c.due_at <= NOW(6) LIMIT 1) IS NOT NULL AS has_callback,
       (SELECT t.id_task FROM task t FORCE INDEX (k_task_expire) WHERE t.expire_at <= NOW(6) LIMIT 1) IS NOT NULL AS has_expired,
       (SELECT w.id_worker FROM worker w FORCE INDEX (k_worker_lease)
         WHERE w.ended_at IS NULL AND w.lease_until < NOW(6) AND (w.mode <> 'batch' OR w.lost_at IS NOT NULL)
         LIMIT 1) IS NOT NULL AS has_stale;

-- name: newest_item
-- One look at the end of the primary key: has anybody inserted anything?
SELECT COALESCE(MAX(id_task_item), 0) AS id_task_item FROM task_item;

-- name: take_turn
-- Idle workers queue here to be the one that listens. -1: this session must first be told when to end, see the next statement.
SELECT IF(@@SESSION.wait_timeout <= %(silence)s, GET_LOCK(%(name)s, %(seconds)s), -1) AS turn;

-- name: end_silent_sessions
-- A listener that has lost its power or its network must not keep its turn; and waiting is no slow query.
SET SESSION wait_timeout = %(silence)s, long_query_time = 86400;

-- name: end_turn
-- The next in the queue wakes.
DO RELEASE_LOCK(%(name)s);

-- name: look_at_all
-- For the next statement alone, which then sees how many rows are being inserted, committed or not.
SET TRANSACTION ISOLATION LEVEL READ UNCOMMITTED;

-- name: wait_for_items
-- A look every millisecond at the end of the primary key, made inside the server: asking from outside costs both sides ten times as much.
-- The look is a locking read, because that alone sees what is committed while the statement runs; RAND() keeps it from being made
-- only once; SKIP LOCKED passes over what is not committed yet. In ascending order: the other way round the servers would lock the
-- row below the range as well, all the time. Only where there are few new rows, which a read without locks counts first: a million
-- being inserted in one transaction must not be waded through at each look, whatever range the statement names; MariaDB keeps a
-- lock for each row passed over until the statement ends, and aborts when these fill its buffer pool. Of a crowd the first key comes
-- back, negative: for the next statement. No row at all: the turn is somebody else's.
WITH RECURSIVE look (n) AS (
  SELECT 1 FROM DUAL WHERE IS_USED_LOCK(%(name)s) = CONNECTION_ID()
  UNION ALL
  SELECT n + 1 FROM look WHERE n < %(looks)s)
SELECT COALESCE(IF((SELECT c.id_task_item
                      FROM task_item c FORCE INDEX (PRIMARY)
                     WHERE c.id_task_item > %(after)s AND RAND() < 1
                     ORDER BY c.id_task_item
                     LIMIT 50, 1) IS NULL,
                   (SELECT i.id_task_item
                      FROM task_item i FORCE INDEX (PRIMARY)
                     WHERE i.id_task_item > %(after)s AND RAND() < 1
                     ORDER BY i.id_task_item
                     LIMIT 1
                       FOR UPDATE SKIP LOCKED),
                   -(SELECT c.id_task_item
                       FROM task_item c FORCE INDEX (PRIMARY)
                      WHERE c.id_task_item > %(after)s AND RAND() < 1
                      ORDER BY c.id_task_item
                      LIMIT 1)),
                SLEEP(0.001)) AS new_item, n
  FROM look
HAVING new_item <> 0 OR n = %(looks)s
 LIMIT 1;

-- name: wait_for_item
-- The same for one key, of an item that is just being inserted, with a crowd of others. Each look must
-- ask for a key of its own, or it is made once, when the statement begins; a range would be left on the way past locked rows.
WITH RECURSIVE look (n) AS (
  SELECT 1 FROM DUAL WHERE IS_USED_LOCK(%(name)s) = CONNECTION_ID()
  UNION ALL
  SELECT n + 1 FROM look WHERE n < %(looks)s)
SELECT COALESCE((SELECT i.id_task_item
                   FROM task_item i FORCE INDEX (PRIMARY)
                  WHERE i.id_task_item = %(item)s + 0 * look.n
                    FOR UPDATE SKIP LOCKED),
                SLEEP(0.001)) AS new_item, n
  FROM look
HAVING new_item > 0 OR n = %(looks)s
 LIMIT 1;

-- name: claim_new_item
-- The claim on one item that a listener has just heard of, in one statement; its task starts, and is pinned to a prompt, or goes on where it had ended.
-- Where money must be set aside, a limit be kept to, a model be chosen, or another task be waited for, it is left to the long way.
UPDATE task_item i FORCE INDEX (PRIMARY)
  STRAIGHT_JOIN task t FORCE INDEX (PRIMARY) ON t.id_task = i.id_task
  STRAIGHT_JOIN ai_model m FORCE INDEX (PRIMARY) ON m.id_ai_model = t.id_ai_model
   SET i.status_id = 2, i.id_worker = %(id_worker)s, i.claim_token = %(claim_token)s, i.attempt = i.attempt + 1,
       i.id_ai_model = NULL, i.reserved = NULL, t.status_id = 1, t.started_at = COALESCE(t.started_at, NOW(6)),
       t.finished_at = NULL, t.expire_at = NULL,
       t.id_prompt = COALESCE(t.id_prompt, (SELECT pr.id_prompt FROM prompt pr FORCE INDEX (k_prompt_current) WHERE pr.name = t.task_type AND pr.is_active = 1
           ORDER BY pr.name DESC, pr.is_active DESC, pr.precedence DESC, pr.id_prompt DESC LIMIT 1))
 WHERE i.id_task_item = %(new_item)s AND i.status_id = 0 AND i.refused = 0
   AND t.status_id IN (0, 1, 2, 3) AND t.lane <> 'batch' AND t.budget IS NULL AND m.budget_per_day IS NULL
   AND (t.scheduled_at IS NULL OR t.scheduled_at <= NOW(6))
   AND (SELECT d.after_id_task FROM task_dependency d FORCE INDEX (PRIMARY) WHERE d.id_task = t.id_task LIMIT 1) IS NULL
   AND m.is_active = 1 AND m.stopped_at IS NULL AND m.max_in_flight IS NULL AND m.id_ai_model NOT IN %(busy_models)s
   AND (%(id_task)s IS NULL OR t.id_task = %(id_task)s)
   AND (%(id_task_item)s IS NULL OR i.id_task_item = %(id_task_item)s)
   AND (%(any_type)s OR t.task_type IN %(task_types)s)
   AND (%(any_queue)s OR t.queue IN %(queues)s)
   AND (%(no_limits)s OR ((t.queue, t.task_type) NOT IN %(limits)s AND (t.queue, '') NOT IN %(limits)s
                          AND ('', t.task_type) NOT IN %(limits)s AND ('', '') NOT IN %(limits)s))
   AND (%(any_model)s OR m.name IN %(model_names)s);

-- name: claimed_new_item
-- What that claim got, if it got it, with its task.
SELECT i.id_task_item, i.text_original, i.context, i.attempt - 1 AS attempt_before, i.lost_count, i.refused, i.is_single, i.context_key,
       t.id_task, t.id_ai_model, t.task_type, t.description, t.parameters, t.max_attempts, t.priority, t.status_id,
       t.lane, t.pack, t.cache_seconds, t.budget, t.queue, t.personal_data, t.id_prompt, m.max_in_flight, m.budget_per_day,
       m.max_requests_per_minute, m.max_tokens_per_minute,
        (SELECT CONCAT(COALESCE(p.requests_per_minute, ''), '/', COALESCE(p.tokens_per_minute, ''), '/', p.growth, '/',
                       TIMESTAMPDIFF(MICROSECOND, COALESCE(p.slowed_at, NOW(6)), NOW(6)))
          FROM ai_model_pace p FORCE INDEX (PRIMARY)
         WHERE p.id_ai_model = m.id_ai_model AND (p.requests_per_minute IS NOT NULL OR p.tokens_per_minute IS NOT NULL)) AS learnt,
        0 AS is_probe,
       (SELECT GROUP_CONCAT(f.id_ai_model ORDER BY f.position) FROM task_fallback f FORCE INDEX (PRIMARY)
         WHERE f.id_task = t.id_task) AS fallbacks
  FROM task_item i FORCE INDEX (PRIMARY)
  STRAIGHT_JOIN task t FORCE INDEX (PRIMARY) ON t.id_task = i.id_task
  STRAIGHT_JOIN ai_model m FORCE INDEX (PRIMARY) ON m.id_ai_model = t.id_ai_model
 WHERE i.id_task_item = %(new_item)s AND i.claim_token = %(claim_token)s AND i.status_id = 2;

-- name: finished_tasks_of_new_items
-- Items that an application inserted into tasks which had ended: those tasks go on.
SELECT DISTINCT t.id_task
  FROM task_item i FORCE INDEX (PRIMARY)
  STRAIGHT_JOIN task t ON t.id_task = i.id_task
 WHERE i.id_task_item > %(after)s AND i.status_id IN (0, 4) AND t.status_id IN (2, 3)
 LIMIT 100;

-- name: finished_tasks_page
-- The same for items that became visible out of order (a long INSERT): all finished tasks, page by page, newest first.
SELECT t.id_task,
       (SELECT i.id_task_item FROM task_item i WHERE i.id_task = t.id_task AND i.status_id = 0 LIMIT 1) IS NOT NULL
    OR (SELECT i.id_task_item FROM task_item i WHERE i.id_task = t.id_task AND i.status_id = 2 LIMIT 1) IS NOT NULL
    OR (SELECT i.id_task_item FROM task_item i WHERE i.id_task = t.id_task AND i.status_id = 4 LIMIT 1) IS NOT NULL AS is_open
  FROM task t FORCE INDEX (PRIMARY)
 WHERE t.id_task < %(before)s AND t.status_id IN (2, 3)
 ORDER BY t.id_task DESC
 LIMIT 1000;

-- name: reopen_tasks
-- Their status is tested again: somebody may have cancelled or reopened one since the look.
UPDATE task FORCE INDEX (PRIMARY) SET status_id = 1, finished_at = NULL, expire_at = NULL WHERE id_task IN %(tasks)s AND status_id IN (2, 3);

-- name: lock_due
-- Deferred items whose time has come; the due index holds nothing else.
SELECT id_task_item
  FROM task_item FORCE INDEX (k_task_item_due)
 WHERE available_at <= NOW(6)
 ORDER BY available_at
 LIMIT 500
   FOR UPDATE SKIP LOCKED;

-- name: promote_due
-- Into the claim's range, once the rows are locked.
UPDATE task_item FORCE INDEX (PRIMARY) SET status_id = 0, available_at = NULL WHERE id_task_item IN %(items)s AND status_id = 4;

-- name: next_due
-- Seconds until the next deferred item is due, negative when it is overdue; NULL when there is none.
SELECT TIMESTAMPDIFF(MICROSECOND, NOW(6), MIN(available_at)) / 1000000 AS seconds FROM task_item FORCE INDEX (k_task_item_due)
 WHERE available_at IS NOT NULL;

-- name: register_worker
-- The row that claims name as their owner, with its first lease.
INSERT INTO worker (host, pid, version, mode, concurrency, lease_until)
VALUES (%(host)s, %(pid)s, %(version)s, %(mode)s, %(concurrency)s, NOW(6) + INTERVAL %(lease_us)s MICROSECOND);

-- name: beat
-- The heartbeat: one row, by key; it fails when somebody has begun to rescue this worker's items. It names its process, too: after
-- a fail-over to a replica that lacked the row, the number may be another worker's. A batch is no process, and names none.
UPDATE worker FORCE INDEX (PRIMARY)
   SET heartbeat_at = NOW(6), lease_until = NOW(6) + INTERVAL %(lease_us)s MICROSECOND,
       in_flight = %(in_flight)s, items_processed = %(items_processed)s, items_failed = %(items_failed)s
 WHERE id_worker = %(id_worker)s AND lost_at IS NULL AND ended_at IS NULL
   AND (%(pid)s IS NULL OR (pid = %(pid)s AND host = %(host)s));

-- name: worker_draining
-- For those who look on: this one finishes what it holds. Nothing else depends on it; the time stays that of the first call.
UPDATE worker FORCE INDEX (PRIMARY) SET draining_at = COALESCE(draining_at, NOW(6)) WHERE id_worker = %(id_worker)s;

-- name: end_worker
-- In good order, or by a rescue that has found nothing more of it. Whatever it still owned is an orphan from here on.
UPDATE worker FORCE INDEX (PRIMARY)
   SET ended_at = NOW(6), in_flight = 0, items_processed = %(items_processed)s, items_failed = %(items_failed)s
 WHERE id_worker = %(id_worker)s AND ended_at IS NULL;

-- name: end_lost_worker
-- A rescued worker's row ends with its last item; what it had done stays on it.
UPDATE worker FORCE INDEX (PRIMARY) SET ended_at = NOW(6), in_flight = 0 WHERE id_worker = %(id_worker)s AND ended_at IS NULL;

-- name: uptime
-- Seconds since the server started: right after a restart every lease is stale and none of the workers is dead.
SHOW GLOBAL STATUS LIKE 'Uptime';

-- name: lock_stale_worker
-- One worker whose lease is over; several rescuers take different ones. A batch is no process that can die: its items come back
-- only when it was given up.
SELECT id_worker
  FROM worker FORCE INDEX (k_worker_lease)
 WHERE ended_at IS NULL AND lease_until < NOW(6) AND (mode <> 'batch' OR lost_at IS NOT NULL)
 ORDER BY lease_until
 LIMIT 1
   FOR UPDATE SKIP LOCKED;

-- name: mark_worker_lost
-- Its next heartbeat fails, so that it registers anew. The time stays that of the first rescuer.
UPDATE worker FORCE INDEX (PRIMARY) SET lost_at = COALESCE(lost_at, NOW(6)) WHERE id_worker = %(id_worker)s;

-- name: items_of_worker
-- What a lost worker holds. Through the claim index, which is there anyway: an index on the owner would cost every claim and commit.
SELECT i.id_task_item
  FROM task t FORCE INDEX (k_task_runnable)
  STRAIGHT_JOIN task_item i FORCE INDEX (k_task_item_claim) ON i.id_task = t.id_task AND i.status_id = 2
 WHERE t.status_id IN (1, 4, 5) AND t.finished_at IS NULL AND i.id_worker = %(id_worker)s
 LIMIT 500;

-- name: orphaned_items
-- Items whose owner has ended or is not there at all: a claim that landed after its worker had been given up.
SELECT i.id_task_item, i.id_worker
  FROM task t FORCE INDEX (k_task_runnable)
  STRAIGHT_JOIN task_item i FORCE INDEX (k_task_item_claim) ON i.id_task = t.id_task AND i.status_id = 2
  LEFT JOIN worker w ON w.id_worker = i.id_worker
 WHERE t.status_id IN (1, 4, 5) AND t.finished_at IS NULL AND (w.id_worker IS NULL OR w.ended_at IS NOT NULL)
 LIMIT 500;

-- name: claims_of_worker
-- All that a worker holds, as the database has it: what it knows nothing of, nobody works on. Asked after a lost connection alone.
SELECT i.id_task_item, i.id_task, i.claim_token
  FROM task t FORCE INDEX (k_task_runnable)
  STRAIGHT_JOIN task_item i FORCE INDEX (k_task_item_claim) ON i.id_task = t.id_task AND i.status_id = 2
 WHERE t.status_id IN (1, 4, 5) AND t.finished_at IS NULL AND i.id_worker = %(id_worker)s
 LIMIT 5000;

-- name: lock_lost_items
-- Rows that are being committed at this moment are stepped over: their owner was not dead after all.
SELECT id_task_item, id_task, attempt, lost_count, claim_token, id_worker, id_ai_model
  FROM task_item FORCE INDEX (PRIMARY)
 WHERE id_task_item IN %(items)s AND status_id = 2
   FOR UPDATE SKIP LOCKED;

-- name: give_back_lost
-- Claimable again at once, and not charged: lost_count grows beside attempt. The claim token stays, so that a result may come late.
UPDATE task_item FORCE INDEX (PRIMARY)
   SET status_id = 0, id_worker = NULL, lost_count = lost_count + 1,
       error_kind = 'lost', error_message = 'the worker that had claimed the item was lost'
 WHERE id_task_item IN %(items)s AND status_id = 2;

-- name: cancel_lost
-- The same for items whose task is not there any more.
UPDATE task_item FORCE INDEX (PRIMARY)
   SET status_id = 5, id_worker = NULL, lost_count = lost_count + 1
 WHERE id_task_item IN %(items)s AND status_id = 2;

-- name: bury_lost
-- An item that has taken too many workers down with it.
UPDATE task_item FORCE INDEX (PRIMARY)
   SET status_id = 3, id_worker = NULL, finished_at = NOW(6), error_kind = 'lost',
       error_message = CONCAT('the item was lost with its worker ', lost_count + 1, ' times: it may be what kills them'),
       lost_count = lost_count + 1
 WHERE id_task_item IN %(items)s AND status_id = 2;

-- name: others_at_work
-- Who else holds items that these filters want, and how long ago each showed a sign of life: `run` waits for the silent ones.
-- Batches are no processes, and waited for in their own way, unless they were given up.
SELECT w.id_worker, TIMESTAMPDIFF(MICROSECOND, w.heartbeat_at, NOW(6)) / 1000000 AS silent_seconds
  FROM worker w FORCE INDEX (k_worker_lease)
 WHERE w.ended_at IS NULL AND w.id_worker <> %(id_worker)s
   AND (w.mode <> 'batch' OR w.lost_at IS NOT NULL)
   AND (SELECT i.id_task_item
          FROM task t FORCE INDEX (k_task_runnable)
          STRAIGHT_JOIN ai_model m ON m.id_ai_model = t.id_ai_model
          STRAIGHT_JOIN task_item i FORCE INDEX (k_task_item_claim) ON i.id_task = t.id_task AND i.status_id = 2
         WHERE t.status_id IN (1, 4, 5) AND t.finished_at IS NULL
           AND (%(id_task)s IS NULL OR t.id_task = %(id_task)s)
           AND (%(any_type)s OR t.task_type IN %(task_types)s)
           AND (%(any_queue)s OR t.queue IN %(queues)s)
           AND (%(any_model)s OR m.name IN %(model_names)s)
           AND (%(id_task_item)s IS NULL OR i.id_task_item = %(id_task_item)s)
           AND i.id_worker = w.id_worker
         LIMIT 1) IS NOT NULL;

-- name: waiting_items
-- What is left for a `run` with these filters: pending items, those of them that no model can take now, and when the next
-- deferred one is due; `f` are the tasks that a fallback can take. In one look, since others claim and give back meanwhile.
SELECT SUM(i.status_id = 0) AS pending, SUM(i.status_id = 4) AS deferred,
       SUM(i.status_id = 0 AND (m.is_active = 0 OR (m.stopped_at IS NOT NULL AND m.probe_at > NOW(6))
                                OR m.id_ai_model IN %(busy_models)s OR NOT (%(any_model)s OR m.name IN %(model_names)s))
                           AND f.id_task IS NULL) AS blocked,
       MIN(TIMESTAMPDIFF(MICROSECOND, NOW(6), i.available_at)) / 1000000 AS due_seconds
  FROM task t FORCE INDEX (k_task_runnable)
  STRAIGHT_JOIN ai_model m ON m.id_ai_model = t.id_ai_model
  LEFT JOIN (SELECT DISTINCT ft.id_task
               FROM task ft FORCE INDEX (k_task_runnable)
               STRAIGHT_JOIN task_fallback f FORCE INDEX (PRIMARY) ON f.id_task = ft.id_task
               STRAIGHT_JOIN ai_model om ON om.id_ai_model = ft.id_ai_model
               STRAIGHT_JOIN ai_model fm ON fm.id_ai_model = f.id_ai_model
              WHERE ft.status_id IN (0, 1) AND (om.is_active = 0 OR om.stopped_at IS NOT NULL OR om.id_ai_model IN %(spent_models)s)
                AND fm.is_active = 1 AND (fm.stopped_at IS NULL OR fm.probe_at <= NOW(6))
                AND fm.id_ai_model NOT IN %(busy_models)s AND (%(any_model)s OR fm.name IN %(model_names)s)) f ON f.id_task = t.id_task
  STRAIGHT_JOIN task_item i FORCE INDEX (k_task_item_claim) ON i.id_task = t.id_task AND i.status_id IN (0, 4)
 WHERE t.status_id IN (0, 1)
   AND (t.scheduled_at IS NULL OR t.scheduled_at <= NOW(6))
   AND (%(id_task)s IS NULL OR t.id_task = %(id_task)s)
   AND (%(any_type)s OR t.task_type IN %(task_types)s)
   AND (%(any_queue)s OR t.queue IN %(queues)s)
   AND (SELECT d.after_id_task FROM task_dependency d FORCE INDEX (PRIMARY)
          STRAIGHT_JOIN task p FORCE INDEX (PRIMARY) ON p.id_task = d.after_id_task
         WHERE d.id_task = t.id_task AND p.status_id <> 2
           AND (d.needs = 'success' OR p.status_id NOT IN (3, 5) OR p.finished_at IS NULL) LIMIT 1) IS NULL
   AND (%(any_model)s OR m.name IN %(model_names)s OR f.id_task IS NOT NULL)
   AND (%(id_task_item)s IS NULL OR i.id_task_item = %(id_task_item)s);

-- name: unpaid_tasks
-- For a `run` with these filters: tasks that wait for money, since only a budget pauses one besides people.
SELECT t.id_task, t.status_reason
  FROM task t FORCE INDEX (k_task_runnable)
  STRAIGHT_JOIN ai_model m ON m.id_ai_model = t.id_ai_model
 WHERE t.status_id = 4 AND t.status_reason <> 'paused by a person'
   AND (%(id_task)s IS NULL OR t.id_task = %(id_task)s)
   AND (%(any_type)s OR t.task_type IN %(task_types)s)
   AND (%(any_queue)s OR t.queue IN %(queues)s)
   AND (%(any_model)s OR m.name IN %(model_names)s)
   AND (SELECT d.after_id_task FROM task_dependency d FORCE INDEX (PRIMARY)
          STRAIGHT_JOIN task p FORCE INDEX (PRIMARY) ON p.id_task = d.after_id_task
         WHERE d.id_task = t.id_task AND p.status_id <> 2
           AND (d.needs = 'success' OR p.status_id NOT IN (3, 5) OR p.finished_at IS NULL) LIMIT 1) IS NULL
   AND (SELECT i.id_task_item FROM task_item i FORCE INDEX (k_task_item_claim) WHERE i.id_task = t.id_task AND i.status_id = 0
           AND (%(id_task_item)s IS NULL OR i.id_task_item = %(id_task_item)s)
         ORDER BY i.id_task DESC, i.status_id DESC, i.id_task_item DESC LIMIT 1) IS NOT NULL
 LIMIT 100;

-- name: held_tasks
-- For a `run` with these filters: tasks with work that wait for another one. `is_lost`: it has ended, and not as it had to.
SELECT t.id_task, d.after_id_task, d.needs, p.status_id, p.finished_at IS NOT NULL AS is_lost
  FROM task t FORCE INDEX (k_task_runnable)
  STRAIGHT_JOIN task_dependency d FORCE INDEX (PRIMARY) ON d.id_task = t.id_task
  STRAIGHT_JOIN task p FORCE INDEX (PRIMARY) ON p.id_task = d.after_id_task
  STRAIGHT_JOIN ai_model m ON m.id_ai_model = t.id_ai_model
 WHERE t.status_id IN (0, 1) AND p.status_id <> 2
   AND (d.needs = 'success' OR p.status_id NOT IN (3, 5) OR p.finished_at IS NULL)
   AND (%(id_task)s IS NULL OR t.id_task = %(id_task)s)
   AND (%(any_type)s OR t.task_type IN %(task_types)s)
   AND (%(any_queue)s OR t.queue IN %(queues)s)
   AND (%(any_model)s OR m.name IN %(model_names)s)
   AND (SELECT i.id_task_item FROM task_item i FORCE INDEX (k_task_item_claim) WHERE i.id_task = t.id_task AND i.status_id = 0
           AND (%(id_task_item)s IS NULL OR i.id_task_item = %(id_task_item)s)
         ORDER BY i.id_task DESC, i.status_id DESC, i.id_task_item DESC LIMIT 1) IS NOT NULL
 LIMIT 100;

-- name: item_of
-- For `run --task-item`: which task it belongs to, and how it stands.
SELECT i.id_task, i.status_id, s.name AS status FROM task_item i JOIN task_item_status s ON s.status_id = i.status_id
 WHERE i.id_task_item = %(id_task_item)s;

-- name: preview_tasks
-- For dry runs: all tasks that a run would come to, page by page along the primary key, also those that wait for a stopped model. `id_prompt` is
-- NULL where a task is not pinned yet: a dry run may come before the first worker, and the library knows the current ones.
SELECT t.id_task, t.id_ai_model, t.task_type, t.description, t.parameters, t.max_attempts, t.priority, t.status_id,
       t.lane, t.pack, t.cache_seconds, t.budget, t.queue, t.personal_data, t.id_prompt, m.max_in_flight, m.budget_per_day,
       m.max_requests_per_minute, m.max_tokens_per_minute, m.stopped_at IS NOT NULL AS is_probe,
       (SELECT GROUP_CONCAT(f.id_ai_model ORDER BY f.position) FROM task_fallback f FORCE INDEX (PRIMARY)
        WHERE f.id_task = t.id_task) AS fallbacks
  FROM task t FORCE INDEX (PRIMARY)
  STRAIGHT_JOIN ai_model m FORCE INDEX (PRIMARY) ON m.id_ai_model = t.id_ai_model
 WHERE t.id_task > %(after)s
   AND t.status_id IN (0, 1)
   AND (t.scheduled_at IS NULL OR t.scheduled_at <= NOW(6))
   AND (m.is_active = 1
        OR (SELECT f.id_task FROM task_fallback f FORCE INDEX (PRIMARY)
              STRAIGHT_JOIN ai_model fm FORCE INDEX (PRIMARY) ON fm.id_ai_model = f.id_ai_model
             WHERE f.id_task = t.id_task AND fm.is_active = 1 LIMIT 1) IS NOT NULL)
   AND (%(id_task)s IS NULL OR t.id_task = %(id_task)s)
   AND (%(any_type)s OR t.task_type IN %(task_types)s)
   AND (%(any_queue)s OR t.queue IN %(queues)s)
   AND (%(any_model)s OR m.name IN %(model_names)s)
   AND (SELECT d.after_id_task FROM task_dependency d FORCE INDEX (PRIMARY)
          STRAIGHT_JOIN task p FORCE INDEX (PRIMARY) ON p.id_task = d.after_id_task
         WHERE d.id_task = t.id_task AND p.status_id <> 2
           AND (d.needs = 'success' OR p.status_id NOT IN (3, 5) OR p.finished_at IS NULL) LIMIT 1) IS NULL
   AND (SELECT i.id_task_item FROM task_item i WHERE i.id_task = t.id_task AND i.status_id = 0
           AND (%(id_task_item)s IS NULL OR i.id_task_item = %(id_task_item)s) LIMIT 1) IS NOT NULL
 ORDER BY t.id_task
 LIMIT %(size)s;

-- name: preview_items
-- For dry runs: what would be claimed, page by page, without touching it.
SELECT i.id_task_item, i.id_task, i.text_original, i.context, i.attempt, i.lost_count, i.refused, i.is_single, i.context_key
  FROM task_item i FORCE INDEX (k_task_item_claim)
 WHERE i.id_task = %(id_task)s AND i.status_id = 0 AND i.id_task_item > %(after)s
   AND (%(id_task_item)s IS NULL OR i.id_task_item = %(id_task_item)s)
 ORDER BY i.id_task_item
 LIMIT %(size)s;

-- name: take_probe
-- A stopped model is tried again by one claim in the whole fleet: who moves the time forward makes it.
UPDATE ai_model SET probe_at = NOW(6) + INTERVAL %(seconds)s SECOND
 WHERE id_ai_model = %(id_ai_model)s AND stopped_at IS NOT NULL AND probe_at <= NOW(6);

-- name: leave_probe
-- It was taken and there was nothing to make it with. Not where the model has been stopped for longer since.
UPDATE ai_model SET probe_at = NOW(6)
 WHERE id_ai_model = %(id_ai_model)s AND stopped_at IS NOT NULL AND probe_at BETWEEN NOW(6) AND NOW(6) + INTERVAL %(seconds)s SECOND;


-- ===== batches: what is handed in at a provider =====

-- name: waiting_batch
-- Under the task's lock: a batch that was not handed in yet. A second one would only share its items, or meet the same refusal.
SELECT id_batch FROM batch FORCE INDEX (k_batch_task)
 WHERE id_task = %(id_task)s AND id_ai_model = %(id_ai_model)s AND state IN ('collecting', 'submitting')
 LIMIT 1;

-- name: insert_batch
-- With the `worker` row that will own its items, in one transaction; held by who made it.
INSERT INTO batch (batch_key, id_task, id_ai_model, id_worker, state, id_holder, held_until)
VALUES (%(batch_key)s, %(id_task)s, %(id_ai_model)s, %(id_worker)s, 'collecting', %(id_holder)s,
        NOW(6) + INTERVAL %(hold_us)s MICROSECOND);

-- name: batch_of_key
-- After a COMMIT whose answer was lost: whether it is there.
SELECT id_batch FROM batch WHERE batch_key = %(batch_key)s;

-- name: due_batches
-- Batches that somebody should look at now, and nobody is just looking at. An index look-up where there are none.
SELECT b.id_batch
  FROM batch b FORCE INDEX (k_batch_open)
  STRAIGHT_JOIN ai_model m ON m.id_ai_model = b.id_ai_model
  LEFT JOIN task t ON t.id_task = b.id_task
 WHERE b.ended_at IS NULL AND b.poll_at <= NOW(6)
   AND (b.held_until IS NULL OR b.held_until <= NOW(6) OR b.id_holder = %(id_holder)s)
   AND m.id_ai_model NOT IN %(busy_models)s
   AND (%(id_task)s IS NULL OR b.id_task = %(id_task)s)
   AND (%(any_type)s OR t.task_type IN %(task_types)s)
   AND (%(any_queue)s OR t.queue IN %(queues)s)
   AND (%(any_model)s OR m.name IN %(model_names)s)
 ORDER BY b.poll_at
 LIMIT 20;

-- name: hold_batch
-- One worker at a time drives a batch on; who dies meanwhile loses it when its time is over.
UPDATE batch FORCE INDEX (PRIMARY)
   SET id_holder = %(id_holder)s, held_until = NOW(6) + INTERVAL %(hold_us)s MICROSECOND
 WHERE id_batch = %(id_batch)s AND ended_at IS NULL
   AND (held_until IS NULL OR held_until <= NOW(6) OR id_holder = %(id_holder)s);

-- name: renew_batch
-- Longer; not when the time was over, for somebody else may have begun.
UPDATE batch FORCE INDEX (PRIMARY)
   SET held_until = NOW(6) + INTERVAL %(hold_us)s MICROSECOND
 WHERE id_batch = %(id_batch)s AND id_holder = %(id_holder)s AND held_until > NOW(6) AND ended_at IS NULL;

-- name: batch_row
-- How it stands, and what its task and its lease say.
SELECT b.id_batch, b.batch_key, b.id_task, b.id_ai_model, b.id_worker, b.state, b.provider_batch_id, b.items, b.failures,
       b.cancelled_at IS NOT NULL AS is_cancelled, COALESCE(t.status_id, 5) AS task_status,
       TIMESTAMPDIFF(SECOND, COALESCE(b.submitted_at, b.created_at), NOW(6)) AS age, COALESCE(w.lease_until < NOW(6), 1) AS is_overdue
  FROM batch b
  LEFT JOIN task t ON t.id_task = b.id_task
  LEFT JOIN worker w ON w.id_worker = b.id_worker
 WHERE b.id_batch = %(id_batch)s;

-- name: task_of_batch
-- Its task as a claim sees it, for the model that the batch is for.
SELECT t.id_task, m.id_ai_model, t.task_type, t.description, t.parameters, t.max_attempts, t.priority, t.status_id,
       t.lane, t.pack, t.cache_seconds, t.budget, t.queue, t.personal_data, COALESCE(t.id_prompt, (SELECT pr.id_prompt FROM prompt pr FORCE INDEX (k_prompt_current) WHERE pr.name = t.task_type AND pr.is_active = 1
           ORDER BY pr.name DESC, pr.is_active DESC, pr.precedence DESC, pr.id_prompt DESC LIMIT 1)) AS id_prompt,
       m.max_in_flight, m.budget_per_day,
       m.max_requests_per_minute, m.max_tokens_per_minute, 0 AS is_probe, t.id_ai_model AS own_model,
       (SELECT GROUP_CONCAT(f.id_ai_model ORDER BY f.position) FROM task_fallback f FORCE INDEX (PRIMARY)
         WHERE f.id_task = t.id_task) AS fallbacks
  FROM task t
  JOIN ai_model m ON m.id_ai_model = %(id_ai_model)s
 WHERE t.id_task = %(id_task)s;

-- name: items_of_batch
-- A page of what it holds, with the fence of each: the same rows after a crash as before.
SELECT id_task_item, text_original, context, attempt, lost_count, refused, is_single, claim_token
  FROM task_item FORCE INDEX (k_task_item_claim)
 WHERE id_task = %(id_task)s AND status_id = 2 AND id_worker = %(id_worker)s AND id_task_item > %(after)s
 ORDER BY id_task_item
 LIMIT %(size)s;

-- name: batch_submitting
-- From here on it takes no more items, and may be at the provider.
UPDATE batch FORCE INDEX (PRIMARY)
   SET state = 'submitting', items = %(items)s
 WHERE id_batch = %(id_batch)s AND state IN ('collecting', 'submitting') AND id_holder = %(id_holder)s AND held_until > NOW(6);

-- name: batch_submitted
-- The provider has it, whoever holds it by now; but the first id that is stored stands.
UPDATE batch FORCE INDEX (PRIMARY)
   SET state = IF(state = 'submitting', 'submitted', state), provider_batch_id = %(provider_batch_id)s,
       submitted_at = COALESCE(submitted_at, NOW(6)), failures = 0, message = NULL
 WHERE id_batch = %(id_batch)s AND ended_at IS NULL AND (provider_batch_id IS NULL OR provider_batch_id = %(provider_batch_id)s);

-- name: batch_storing
-- The provider has finished with it.
UPDATE batch FORCE INDEX (PRIMARY)
   SET state = 'storing', failures = 0, message = %(message)s
 WHERE id_batch = %(id_batch)s AND state IN ('submitted', 'storing');

-- name: batch_cancelled
-- The provider was asked to end it.
UPDATE batch FORCE INDEX (PRIMARY) SET cancelled_at = COALESCE(cancelled_at, NOW(6)) WHERE id_batch = %(id_batch)s AND ended_at IS NULL;

-- name: leave_batch
-- Not held any more, until somebody looks at it again.
UPDATE batch FORCE INDEX (PRIMARY)
   SET id_holder = NULL, held_until = NULL, poll_at = NOW(6) + INTERVAL %(delay_us)s MICROSECOND, failures = %(failures)s,
       message = COALESCE(%(message)s, message)
 WHERE id_batch = %(id_batch)s AND id_holder = %(id_holder)s AND ended_at IS NULL;

-- name: end_batch
-- All that it held has been stored or given back, or was given up.
UPDATE batch FORCE INDEX (PRIMARY)
   SET state = 'done', ended_at = NOW(6), id_holder = NULL, held_until = NULL, message = COALESCE(%(message)s, message)
 WHERE id_batch = %(id_batch)s AND ended_at IS NULL;

-- name: give_up_batch
-- A rescue now takes its items as it takes those of the dead.
UPDATE worker FORCE INDEX (PRIMARY) SET lost_at = COALESCE(lost_at, NOW(6)), lease_until = NOW(6)
 WHERE id_worker = %(id_worker)s AND ended_at IS NULL;

-- name: open_batches
-- What a `run` with these filters waits for, and in how many seconds the first of them may be looked at.
SELECT COUNT(*) AS batches,
       MIN(TIMESTAMPDIFF(MICROSECOND, NOW(6), GREATEST(b.poll_at, COALESCE(b.held_until, b.poll_at)))) / 1000000 AS seconds
  FROM batch b FORCE INDEX (k_batch_open)
  STRAIGHT_JOIN ai_model m ON m.id_ai_model = b.id_ai_model
  LEFT JOIN task t ON t.id_task = b.id_task
 WHERE b.ended_at IS NULL
   AND (%(any_batch)s OR b.id_batch IN %(batches)s)
   AND (%(id_task)s IS NULL OR b.id_task = %(id_task)s)
   AND (%(any_type)s OR t.task_type IN %(task_types)s)
   AND (%(any_queue)s OR t.queue IN %(queues)s)
   AND (%(any_model)s OR m.name IN %(model_names)s);

-- name: batches_of_task
-- For people: a task's batches, in the order in which they were made.
SELECT b.id_batch, b.state, b.provider_batch_id, b.items, b.message, b.failures, b.created_at, b.submitted_at, b.cancelled_at, b.ended_at
  FROM batch b FORCE INDEX (k_batch_task)
 WHERE b.id_task = %(id_task)s
 ORDER BY b.id_batch;

-- ===== groups: tasks with a common end, and the callback that tells of it =====

-- name: group_add
-- The secret follows in the same transaction: it is bound to the id that this statement makes.
INSERT INTO task_group (name, callback_url) VALUES (%(name)s, %(callback_url)s);

-- name: group_set_secret
-- What its callback is signed with, encrypted.
UPDATE task_group SET secret_encrypted = %(secret_encrypted)s WHERE id_task_group = %(id_task_group)s;

-- name: group_secrets_lock
-- All secrets, locked: `rekey` changes all of them or none.
SELECT id_task_group, secret_encrypted FROM task_group WHERE secret_encrypted IS NOT NULL ORDER BY id_task_group FOR UPDATE;

-- name: group_of_name
-- One group with its callback; never its secret.
SELECT g.id_task_group, g.name, g.callback_url, g.created_at, g.closed_at, g.ended_at,
       c.attempts, c.due_at, c.delivered_at, c.failed_at, c.last_status, c.last_error
  FROM task_group g
  LEFT JOIN callback c ON c.id_task_group = g.id_task_group
 WHERE g.name = %(name)s;

-- name: group_list
-- The same of all groups, the newest first.
SELECT g.id_task_group, g.name, g.callback_url, g.created_at, g.closed_at, g.ended_at,
       c.attempts, c.due_at, c.delivered_at, c.failed_at, c.last_status, c.last_error
  FROM task_group g
  LEFT JOIN callback c ON c.id_task_group = g.id_task_group
 ORDER BY g.id_task_group DESC
 LIMIT 1000;

-- name: group_totals
-- Its tasks by status, with their counters: no item is looked at. The seconds are those since the first of them began.
SELECT id_task_group, status_id, COUNT(*) AS tasks, SUM(records_processed) AS records_processed, SUM(records_failed) AS records_failed,
       SUM(cost) AS cost,
       TIMESTAMPDIFF(MICROSECOND, MIN(started_at), IF(COUNT(finished_at) = COUNT(*), MAX(finished_at), NOW(6))) / 1000000 AS seconds
  FROM task FORCE INDEX (k_task_group)
 WHERE id_task_group IN %(groups)s
 GROUP BY id_task_group, status_id;

-- name: group_items
-- Its items by status, off the claim index, for people who look at one group.
SELECT i.status_id, COUNT(*) AS items
  FROM task t FORCE INDEX (k_task_group)
  STRAIGHT_JOIN task_item i FORCE INDEX (k_task_item_claim) ON i.id_task = t.id_task
 WHERE t.id_task_group = %(id_task_group)s
 GROUP BY i.status_id;

-- name: group_close
-- From here on no task joins it, and it can end.
UPDATE task_group SET closed_at = NOW(6) WHERE id_task_group = %(id_task_group)s AND closed_at IS NULL;

-- name: share_group
-- While a task joins it nobody closes it; several may join at the same time. As both servers spell it.
SELECT name, closed_at FROM task_group FORCE INDEX (PRIMARY) WHERE id_task_group = %(id_task_group)s LOCK IN SHARE MODE;

-- name: groups_to_end
-- Closed groups without an open task; a look without locks, every second, into an index that holds hardly any of them.
SELECT g.id_task_group
  FROM task_group g FORCE INDEX (k_task_group_open)
 WHERE g.ended_at IS NULL AND g.closed_at IS NOT NULL
   AND (SELECT t.id_task FROM task t FORCE INDEX (k_task_group)
         WHERE t.id_task_group = g.id_task_group AND t.ended_in_group = 0 LIMIT 1) IS NULL
 LIMIT 20;

-- name: lock_group
-- Under its lock it ends once; the time is the database's. Another worker that is just doing it is not waited for.
SELECT name, callback_url, NOW(6) AS now
  FROM task_group FORCE INDEX (PRIMARY)
 WHERE id_task_group = %(id_task_group)s AND ended_at IS NULL AND closed_at IS NOT NULL
   FOR UPDATE SKIP LOCKED;

-- name: open_task_of_group
-- The look again, under the lock.
SELECT id_task FROM task FORCE INDEX (k_task_group) WHERE id_task_group = %(id_task_group)s AND ended_in_group = 0 LIMIT 1;

-- name: tasks_of_group
-- For the callback, which is told no more than five hundred.
SELECT id_task, status_id, records_processed, records_failed, cost
  FROM task FORCE INDEX (k_task_group)
 WHERE id_task_group = %(id_task_group)s
 ORDER BY id_task;

-- name: end_group
-- It has ended, for good: tasks that go on later do not end it again.
UPDATE task_group FORCE INDEX (PRIMARY) SET ended_at = %(ended_at)s WHERE id_task_group = %(id_task_group)s AND ended_at IS NULL;

-- name: insert_callback
-- In the transaction that ends the group: from here on it cannot be lost. Due at once.
INSERT INTO callback (id_task_group, body) VALUES (%(id_task_group)s, %(body)s);

-- name: lock_due_callbacks
-- Callbacks to be sent now, each by one worker.
SELECT id_callback
  FROM callback FORCE INDEX (k_callback_due)
 WHERE due_at <= NOW(6)
 ORDER BY due_at
 LIMIT 10
   FOR UPDATE SKIP LOCKED;

-- name: take_callbacks
-- Whoever sends it has it for so long; after a crash it falls due again, and is sent again under the same id.
UPDATE callback FORCE INDEX (PRIMARY)
   SET due_at = NOW(6) + INTERVAL %(lease)s SECOND, attempts = attempts + 1
 WHERE id_callback IN %(callbacks)s;

-- name: taken_callbacks
-- What is to be sent, and where; the time that goes into the signature is the database's.
SELECT c.id_callback, c.id_task_group, c.attempts, c.body, c.created_at, g.name, g.callback_url, g.secret_encrypted,
       UNIX_TIMESTAMP() AS now
  FROM callback c FORCE INDEX (PRIMARY)
  STRAIGHT_JOIN task_group g FORCE INDEX (PRIMARY) ON g.id_task_group = c.id_task_group
 WHERE c.id_callback IN %(callbacks)s;

-- name: callback_delivered
-- The receiver has it. Also when the lease was over: what counts is that it got there.
UPDATE callback FORCE INDEX (PRIMARY)
   SET delivered_at = NOW(6), due_at = NULL, failed_at = NULL, last_status = %(status)s, last_error = NULL
 WHERE id_callback = %(id_callback)s AND delivered_at IS NULL;

-- name: callback_put_off
-- Once more later; only by the latest one who took it.
UPDATE callback FORCE INDEX (PRIMARY)
   SET due_at = NOW(6) + INTERVAL %(delay_us)s MICROSECOND, last_status = %(status)s, last_error = %(reason)s
 WHERE id_callback = %(id_callback)s AND attempts = %(attempts)s AND due_at IS NOT NULL;

-- name: callback_failed
-- It is given up: a person may send it again.
UPDATE callback FORCE INDEX (PRIMARY)
   SET due_at = NULL, failed_at = NOW(6), last_status = %(status)s, last_error = %(reason)s
 WHERE id_callback = %(id_callback)s AND attempts = %(attempts)s AND due_at IS NOT NULL;

-- name: callback_again
-- A person has mended the receiver, and does not want to wait for the next try, or there is none: now, with its tries counted anew.
UPDATE callback SET due_at = NOW(6), failed_at = NULL, attempts = 0
 WHERE id_task_group = %(id_task_group)s AND delivered_at IS NULL AND attempts > 0;

-- name: callback_of_group
-- Why there is nothing to be sent again.
SELECT attempts, due_at, delivered_at, failed_at, last_status, last_error FROM callback WHERE id_task_group = %(id_task_group)s;

-- name: failed_callbacks
-- For people: those that were given up, the first of them.
SELECT g.name, c.failed_at, c.last_status, c.last_error
  FROM callback c
  JOIN task_group g ON g.id_task_group = c.id_task_group
 WHERE c.failed_at IS NOT NULL
 ORDER BY c.id_callback
 LIMIT 20;

-- ===== schedules: tasks that come again and again =====

-- name: schedule_add
-- With the first time that it fires, worked out by the caller.
INSERT INTO schedule (name, cron, time_zone, missed, id_ai_model, task_type, description, parameters, priority, queue, max_attempts,
                      lane, budget, result_seconds, personal_data, items, next_at)
VALUES (%(name)s, %(cron)s, %(time_zone)s, %(missed)s, %(id_ai_model)s, %(task_type)s, %(description)s, %(parameters)s, %(priority)s,
        %(queue)s, %(max_attempts)s, %(lane)s, %(budget)s, %(result_seconds)s, %(personal_data)s, %(items)s,
        %(next_at)s);

-- name: schedule_list
-- All of them, a handful, with the last time that each made a task: the end of a range of the key.
SELECT s.id_schedule, s.name, s.cron, s.time_zone, s.missed, s.is_active, s.task_type, s.description, s.priority, s.queue,
       s.lane, s.budget, s.result_seconds, s.personal_data, JSON_LENGTH(s.items) AS items, s.next_at, s.message, m.name AS model, f.due_at AS last_due_at, f.id_task AS last_task
  FROM schedule s
  JOIN ai_model m ON m.id_ai_model = s.id_ai_model
  LEFT JOIN schedule_fire f ON f.id_schedule = s.id_schedule
        AND f.due_at = (SELECT l.due_at FROM schedule_fire l FORCE INDEX (PRIMARY)
                         WHERE l.id_schedule = s.id_schedule AND l.id_task IS NOT NULL ORDER BY l.due_at DESC LIMIT 1)
 ORDER BY s.name;

-- name: schedule_remove
-- The tasks stay, and so does what is on record of its fires.
DELETE FROM schedule WHERE id_schedule = %(id_schedule)s;

-- name: schedule_pause
-- It is not due any more, whatever its next time.
UPDATE schedule SET is_active = 0 WHERE id_schedule = %(id_schedule)s;

-- name: schedule_resume
-- From now on; what was wrong with it is put right.
UPDATE schedule SET is_active = 1, next_at = %(next_at)s, message = NULL WHERE id_schedule = %(id_schedule)s;

-- name: lock_due_schedule
-- The one that has been due for longest and that nobody is just firing; the time is the database's.
SELECT id_schedule, name, cron, time_zone, missed, id_ai_model, task_type, description, parameters, priority, queue, max_attempts,
       lane, budget, result_seconds, personal_data, items, next_at, NOW(6) AS now
  FROM schedule FORCE INDEX (k_schedule_due)
 WHERE is_active = 1 AND next_at <= NOW(6)
 ORDER BY next_at
 LIMIT 1
   FOR UPDATE SKIP LOCKED;

-- name: fire_of_schedule
-- Whether this time was fired before.
SELECT id_task FROM schedule_fire FORCE INDEX (PRIMARY) WHERE id_schedule = %(id_schedule)s AND due_at = %(due_at)s;

-- name: insert_fire
-- That this time has been fired, or missed and skipped: its key makes a second one impossible.
INSERT INTO schedule_fire (id_schedule, due_at, id_task) VALUES (%(id_schedule)s, %(due_at)s, %(id_task)s);

-- name: move_schedule
-- In the same transaction, on to its next time.
UPDATE schedule FORCE INDEX (PRIMARY) SET next_at = %(next_at)s, message = NULL WHERE id_schedule = %(id_schedule)s;

-- name: break_schedule
-- It cannot fire as it is, and would only fail again: it says why, until somebody has changed it. Not where that was done meanwhile.
UPDATE schedule FORCE INDEX (PRIMARY)
   SET next_at = NULL, message = %(message)s
 WHERE id_schedule = %(id_schedule)s AND next_at = %(next_at)s;

-- ===== expiry: results that were to be kept for a while =====

-- name: expired_tasks
-- Ended tasks whose results' time is over, in a look that finds hardly any.
SELECT id_task FROM task FORCE INDEX (k_task_expire) WHERE expire_at <= NOW(6) AND finished_at IS NOT NULL ORDER BY expire_at LIMIT 20;

-- name: has_expired
-- Whether that is still so, in the transaction that clears some of it: a task that was retried meanwhile keeps what it has.
SELECT id_task FROM task FORCE INDEX (PRIMARY) WHERE id_task = %(id_task)s AND expire_at <= NOW(6) AND finished_at IS NOT NULL;

-- name: clear_results
-- What a model has made goes, what was asked and what it cost stays.
UPDATE task_item FORCE INDEX (PRIMARY)
   SET text_corrected = NULL, change_summary = NULL, result = NULL
 WHERE id_task_item IN %(items)s;

-- name: clear_steps
-- The same of the steps in between.
DELETE s
  FROM JSON_TABLE(%(rows)s, '$[*]' COLUMNS (id BIGINT UNSIGNED PATH '$.id')) r
  STRAIGHT_JOIN task_item_step s FORCE INDEX (PRIMARY) ON s.id_task_item = r.id;

-- name: clear_files
-- The same of what is no text.
DELETE f
  FROM JSON_TABLE(%(rows)s, '$[*]' COLUMNS (id BIGINT UNSIGNED PATH '$.id')) r
  STRAIGHT_JOIN task_item_file f FORCE INDEX (PRIMARY) ON f.id_task_item = r.id;

-- name: results_expired
-- Once all is cleared; not of a task that goes on again.
UPDATE task FORCE INDEX (PRIMARY)
   SET expire_at = NULL, status_reason = 'results expired'
 WHERE id_task = %(id_task)s AND expire_at <= NOW(6) AND finished_at IS NOT NULL;

-- ===== cache: identical work is paid for once =====

-- name: find_answers
-- What is known of pieces of work, without a lock. An item is an answer as long as it holds the result that was stored under the key:
-- not one that somebody has rejected, nor one that was made anew since, nor one that was cleared when its time was over. A row without an answer and without a living owner is nobody's.
SELECT c.cache_key, c.id_task_item, c.id_worker, TIMESTAMPDIFF(MICROSECOND, c.stored_at, NOW(6)) / 1000000 AS age,
       w.id_worker IS NOT NULL AS is_under_way, i.id_task_item IS NOT NULL AS is_answered,
       i.text_corrected, i.change_summary, i.result
  FROM result_cache c FORCE INDEX (PRIMARY)
  LEFT JOIN task_item i FORCE INDEX (PRIMARY)
    ON i.id_task_item = c.id_task_item AND c.stored_at >= i.finished_at AND i.status_id = 1 AND i.review_status_id <> 2
       AND i.result IS NOT NULL
  LEFT JOIN worker w FORCE INDEX (PRIMARY)
    ON w.id_worker = c.id_worker AND w.ended_at IS NULL AND w.lost_at IS NULL AND w.lease_until >= NOW(6)
 WHERE c.cache_key IN %(keys)s;

-- name: lead_work
-- Whoever comes first makes the call; IGNORE leaves the others where they are. Sorted by key, so that two of these do not deadlock.
INSERT IGNORE INTO result_cache (cache_key, id_task_item, id_worker)
VALUES (%s, %s, %s);

-- name: drop_answers
-- Each row only as it was seen: of many that want to take it over, one does, and an answer that was stored since stays.
DELETE c
  FROM result_cache c FORCE INDEX (PRIMARY)
 WHERE c.cache_key IN %(keys)s AND (c.cache_key, c.id_task_item, COALESCE(c.id_worker, 0)) IN %(seen)s;

-- name: store_answers
-- In the transaction that stores the results, and only where the work is still this item's.
UPDATE result_cache c FORCE INDEX (PRIMARY)
   SET c.stored_at = NOW(6), c.id_worker = NULL
 WHERE c.cache_key IN %(keys)s AND (c.cache_key, c.id_task_item) IN %(led)s;

-- name: useless_answers
-- Rows that nobody can use any more, in one short run of the key. Keys are hashes: runs from random places come by everywhere.
SELECT c.cache_key, c.id_task_item, c.id_worker
  FROM (SELECT cache_key, id_task_item, id_worker, stored_at
          FROM result_cache FORCE INDEX (PRIMARY)
         WHERE cache_key >= %(start)s
         ORDER BY cache_key
         LIMIT %(size)s) c
  LEFT JOIN task_item i FORCE INDEX (PRIMARY) ON i.id_task_item = c.id_task_item
  LEFT JOIN worker w FORCE INDEX (PRIMARY) ON w.id_worker = c.id_worker AND w.ended_at IS NULL AND w.lost_at IS NULL
 WHERE i.id_task_item IS NULL
    OR c.stored_at < NOW(6) - INTERVAL %(days)s DAY
    OR (c.stored_at IS NULL AND w.id_worker IS NULL);

-- ===== background: what is drawn into prompts beside the items =====

-- name: earlier_results
-- The latest results of a subject before an item, newest first, from the end of the index without a sort; of the latest 500 items of
-- the subject alone, or one with a million items that are not done would be read through for each. Texts no longer than there is room.
-- The length is compared because keys that differ in blanks at their ends are equal to both servers, and are two subjects. What a person
-- has put in a result's place was said, and what a person has rejected was not.
SELECT LEFT(i.text_original, %(longest)s) AS text_original, LEFT(COALESCE(i.text_reviewed, i.text_corrected), %(longest)s) AS result
  FROM task_item i FORCE INDEX (k_task_item_context)
  STRAIGHT_JOIN task t FORCE INDEX (PRIMARY) ON t.id_task = i.id_task
 WHERE i.context_key = %(context_key)s AND CHAR_LENGTH(i.context_key) = CHAR_LENGTH(%(context_key)s)
   AND i.id_task_item < %(before)s
   AND i.id_task_item >= COALESCE((SELECT o.id_task_item FROM task_item o FORCE INDEX (k_task_item_context)
                                    WHERE o.context_key = %(context_key)s AND o.id_task_item < %(before)s
                                    ORDER BY o.id_task_item DESC LIMIT 1 OFFSET 499), 0)
   AND i.status_id = 1
   AND i.review_status_id <> 2
   AND i.text_corrected IS NOT NULL
   AND (%(any_type)s OR t.task_type IN %(types)s)
 ORDER BY i.id_task_item DESC
 LIMIT %(size)s;

-- name: newest_facts
-- What is known of a subject, newest first, from the end of the index without a sort: by the whole key MariaDB would sort, as the key
-- is a text. The length as above. Not what comes from a result that a reviewer has rejected.
SELECT f.fact
  FROM context_fact f FORCE INDEX (k_context_fact_newest)
  LEFT JOIN task_item i FORCE INDEX (PRIMARY) ON i.id_task_item = f.id_task_item
 WHERE f.context_key = %(context_key)s AND CHAR_LENGTH(f.context_key) = CHAR_LENGTH(%(context_key)s)
   AND COALESCE(i.review_status_id, 0) <> 2
 ORDER BY f.id_context_fact DESC
 LIMIT %(size)s;

-- name: reviewed_examples
-- What people have accepted and rejected of a task, the newest of each, from the ends of two index ranges without a sort; not what has
-- been reviewed otherwise or made anew since.
(SELECT r.id_task_item, r.review_status_id, r.note, LEFT(i.text_original, %(longest)s) AS text_original,
        LEFT(COALESCE(r.text_reviewed, i.text_corrected), %(longest)s) AS answer
   FROM task_item_review r FORCE INDEX (k_task_item_review_task)
   STRAIGHT_JOIN task_item i FORCE INDEX (PRIMARY) ON i.id_task_item = r.id_task_item
  WHERE r.id_task = %(id_task)s AND r.review_status_id = 1 AND i.review_status_id = 1 AND i.text_corrected IS NOT NULL
  ORDER BY r.id_task DESC, r.review_status_id DESC, r.id_task_item_review DESC
  LIMIT %(size)s)
UNION ALL
(SELECT r.id_task_item, r.review_status_id, r.note, LEFT(i.text_original, %(longest)s), LEFT(i.text_corrected, %(longest)s)
   FROM task_item_review r FORCE INDEX (k_task_item_review_task)
   STRAIGHT_JOIN task_item i FORCE INDEX (PRIMARY) ON i.id_task_item = r.id_task_item
  WHERE r.id_task = %(id_task)s AND r.review_status_id = 2 AND i.review_status_id = 2 AND i.text_corrected IS NOT NULL
  ORDER BY r.id_task DESC, r.review_status_id DESC, r.id_task_item_review DESC
  LIMIT %(size)s);

-- name: keep_facts
-- A fact is kept once per subject: IGNORE leaves a known one as it is. Sorted by subject and fact, so that two of these do not deadlock.
INSERT IGNORE INTO context_fact (context_key, fact, id_task_item)
VALUES (%s, %s, %s);

-- ===== prompts: the library =====

-- name: prompts
-- All that is in the library but the texts, what goes first first: a few dozen rows, looked at when a worker starts.
SELECT id_prompt, name, version, origin, digest, is_active, created_by, created_at
  FROM prompt
 ORDER BY name, precedence DESC, id_prompt DESC;

-- name: current_prompt
-- What a task of this type is pinned to where a client submits it: the newest active one of what goes first.
SELECT id_prompt FROM prompt FORCE INDEX (k_prompt_current)
 WHERE name = %(name)s AND is_active = 1
 ORDER BY name DESC, is_active DESC, precedence DESC, id_prompt DESC
 LIMIT 1;

-- name: prompt_of_id
-- One prompt with its text, when a worker meets it for the first time.
SELECT id_prompt, name, version, origin, digest, source FROM prompt WHERE id_prompt = %(id_prompt)s;

-- name: publish_prompts
-- What a host brings with it. IGNORE: another one that started at the same time has brought the same.
INSERT IGNORE INTO prompt (name, version, origin, digest, source, created_by)
VALUES (%(name)s, %(version)s, %(origin)s, %(digest)s, %(source)s, %(created_by)s);

-- name: lock_prompts
-- All of one name, what goes first first; locked, so that two people who push at the same time are told of each other.
SELECT id_prompt, name, version, origin, digest, source, is_active, created_by, created_at
  FROM prompt FORCE INDEX (k_prompt_current)
 WHERE name = %(name)s
 ORDER BY name, precedence DESC, id_prompt DESC
   FOR UPDATE;

-- name: prompts_of_name
-- The same without locks, to look at.
SELECT id_prompt, name, version, origin, digest, source, is_active, created_by, created_at
  FROM prompt FORCE INDEX (k_prompt_current)
 WHERE name = %(name)s
 ORDER BY name, is_active DESC, precedence DESC, id_prompt DESC;

-- name: sample_item
-- An item to show a prompt with.
SELECT id_task, text_original, context, context_key FROM task_item WHERE id_task_item = %(id_task_item)s;

-- name: sample_task
-- A task to show a prompt with, and the prompt that it is pinned to.
SELECT task_type, description, parameters, id_prompt FROM task WHERE id_task = %(id_task)s;

-- name: push_prompt
-- A team's own. Its id makes it the current one: it is the newest.
INSERT INTO prompt (name, version, origin, digest, source, created_by)
VALUES (%(name)s, %(version)s, %(origin)s, %(digest)s, %(source)s, %(created_by)s);

-- name: activate_prompt
-- Takes one out of use for new tasks, or back into it. Tasks that are pinned to it go on with it.
UPDATE prompt SET is_active = %(is_active)s WHERE id_prompt = %(id_prompt)s;


-- ===== models =====

-- name: model_list
-- All endpoints, for people and for workers that start; a handful of rows.
SELECT id_ai_model, name, provider, model, base_url, api_key_encrypted, options, max_requests_per_minute, max_tokens_per_minute,
       max_in_flight, price_input, price_cached, price_output, budget_per_day, is_active, stopped_kind, stopped_reason, stopped_at, probe_at
  FROM ai_model ORDER BY id_ai_model;

-- name: model_list_without_keys
-- The same for those who may see all of an endpoint but its key: the web's user.
SELECT id_ai_model, name, provider, model, base_url, options, max_requests_per_minute, max_tokens_per_minute,
       max_in_flight, price_input, price_cached, price_output, budget_per_day, is_active, stopped_kind, stopped_reason, stopped_at, probe_at
  FROM ai_model ORDER BY id_ai_model;

-- name: model_lock
-- One endpoint, locked, so that two people who change different columns do not undo each other's work.
SELECT id_ai_model, name, provider, model, base_url, api_key_encrypted, options, max_requests_per_minute, max_tokens_per_minute,
       max_in_flight, price_input, price_cached, price_output, budget_per_day, is_active, stopped_kind, stopped_reason, stopped_at, probe_at
  FROM ai_model WHERE id_ai_model = %(id_ai_model)s FOR UPDATE;

-- name: model_add
-- The key follows in the same transaction: it is bound to the id that this statement makes.
INSERT INTO ai_model (name, provider, model, base_url, options, max_requests_per_minute, max_tokens_per_minute, max_in_flight,
                      price_input, price_cached, price_output, budget_per_day, is_active)
VALUES (%(name)s, %(provider)s, %(model)s, %(base_url)s, %(options)s, %(max_requests_per_minute)s, %(max_tokens_per_minute)s,
        %(max_in_flight)s, %(price_input)s, %(price_cached)s, %(price_output)s, %(budget_per_day)s, %(is_active)s);

-- name: model_set
-- Every column that people set; the caller has locked the row and changed what it wants changed.
UPDATE ai_model
   SET name = %(name)s, provider = %(provider)s, model = %(model)s, base_url = %(base_url)s, options = %(options)s,
       max_requests_per_minute = %(max_requests_per_minute)s, max_tokens_per_minute = %(max_tokens_per_minute)s,
       max_in_flight = %(max_in_flight)s, price_input = %(price_input)s, price_cached = %(price_cached)s,
       price_output = %(price_output)s, budget_per_day = %(budget_per_day)s, is_active = %(is_active)s
 WHERE id_ai_model = %(id_ai_model)s;

-- name: model_set_key
-- The encrypted key alone; NULL takes it away.
UPDATE ai_model SET api_key_encrypted = %(api_key_encrypted)s WHERE id_ai_model = %(id_ai_model)s;

-- name: model_keys_lock
-- All keys, locked: `rekey` changes all of them or none.
SELECT id_ai_model, api_key_encrypted FROM ai_model WHERE api_key_encrypted IS NOT NULL ORDER BY id_ai_model FOR UPDATE;

-- name: model_days
-- What each model has used per UTC day, the latest days first; off the primary key, sixteen rows per model and day.
SELECT m.id_ai_model, m.name, d.day, SUM(d.attempts) AS attempts, SUM(d.tokens_input) AS tokens_input,
       SUM(d.tokens_output) AS tokens_output, SUM(d.tokens_cached) AS tokens_cached, SUM(d.tokens_reasoning) AS tokens_reasoning,
       SUM(d.cost) AS cost, d.day = UTC_DATE() AS is_today
  FROM ai_model m
  STRAIGHT_JOIN ai_model_day d FORCE INDEX (PRIMARY) ON d.id_ai_model = m.id_ai_model AND d.day > UTC_DATE() - INTERVAL %(days)s DAY
 GROUP BY m.id_ai_model, m.name, d.day
 ORDER BY d.day DESC, m.id_ai_model;

-- name: model_task_count
-- How many tasks hold an endpoint in place (k_task_model).
SELECT COUNT(*) AS tasks FROM task WHERE id_ai_model = %(id_ai_model)s;

-- name: model_remove
-- Refused by the foreign key of `task` when a task uses it.
DELETE FROM ai_model WHERE id_ai_model = %(id_ai_model)s;

-- name: model_stop
-- The first failure stops it, a failed probe keeps it stopped; the calls that were in flight beside them change nothing.
-- Whoever takes a probe has moved its time forward, so a probe must say that it is one.
UPDATE ai_model
   SET stopped_kind = %(kind)s, stopped_reason = %(reason)s, stopped_at = COALESCE(stopped_at, UTC_TIMESTAMP(6)),
       probe_at = UTC_TIMESTAMP(6) + INTERVAL %(probe_seconds)s SECOND
 WHERE id_ai_model = %(id_ai_model)s AND (stopped_at IS NULL OR probe_at <= UTC_TIMESTAMP(6) OR %(is_probe)s);

-- name: model_resume
-- Matches a row only when it was stopped, so that one of many workers says so.
UPDATE ai_model SET stopped_kind = NULL, stopped_reason = NULL, stopped_at = NULL, probe_at = NULL
 WHERE id_ai_model = %(id_ai_model)s AND stopped_at IS NOT NULL;

-- name: forget_pace
-- What was learnt of a model's limits, and the sending time leased so far: a person knows better.
UPDATE ai_model_pace SET requests_per_minute = NULL, tokens_per_minute = NULL, growth = 0, slowed_at = NULL, paced_until = NOW(6)
 WHERE id_ai_model = %(id_ai_model)s;

-- ===== pace: what the fleet may send =====

-- name: add_pace
-- A model's line of sending time, when it is first needed; another worker may have been quicker.
INSERT IGNORE INTO ai_model_pace (id_ai_model) VALUES (%(id_ai_model)s);

-- name: lease_pace
-- The next free stretch of a model's sending time, in one statement without a SELECT: the microseconds until it begins, and one, come
-- back as LAST_INSERT_ID; also where no row was changed, because the line is leased too far ahead. NOW is when the statement began.
UPDATE ai_model_pace FORCE INDEX (PRIMARY)
   SET paced_until = GREATEST(paced_until, NOW(6)) + INTERVAL %(stretch_us)s MICROSECOND
 WHERE id_ai_model = %(id_ai_model)s
   AND LAST_INSERT_ID(1 + GREATEST(0, TIMESTAMPDIFF(MICROSECOND, NOW(6), paced_until))) <= 1 + %(ahead_us)s;

-- name: hold_pace
-- A provider has asked for a pause: the line goes on behind it, and after a longer one a learnt limit does not grow before.
UPDATE ai_model_pace FORCE INDEX (PRIMARY)
   SET paced_until = GREATEST(paced_until, NOW(6) + INTERVAL %(hold_us)s MICROSECOND),
       slowed_at = IF(%(hold_us)s > 2000000, GREATEST(slowed_at, NOW(6) + INTERVAL %(hold_us)s MICROSECOND), slowed_at)
 WHERE id_ai_model = %(id_ai_model)s;

-- name: shares
-- All shares of a model; those of workers whose lease is over do not count.
SELECT s.id_worker, s.wanted, s.granted, COALESCE(w.ended_at IS NULL AND w.lease_until > NOW(6), 0) AS is_alive
  FROM ai_model_share s FORCE INDEX (PRIMARY)
  LEFT JOIN worker w ON w.id_worker = s.id_worker
 WHERE s.id_ai_model = %(id_ai_model)s;

-- name: put_share
-- A worker's share, under the lock of `lock_pace`.
INSERT INTO ai_model_share (id_ai_model, id_worker, wanted, granted)
VALUES (%(id_ai_model)s, %(id_worker)s, %(wanted)s, %(granted)s)
    ON DUPLICATE KEY UPDATE wanted = %(wanted)s, granted = %(granted)s;

-- name: end_shares
-- Of workers that want nothing any more, or have died.
DELETE FROM ai_model_share WHERE id_ai_model = %(id_ai_model)s AND id_worker IN %(workers)s;

-- name: tell_pace
-- Limits as the provider names them, unless a lower one was learnt from refusals; and sending time for what was sent before.
UPDATE ai_model_pace FORCE INDEX (PRIMARY)
   SET requests_per_minute = IF(growth > 0, requests_per_minute, %(requests_per_minute)s),
       tokens_per_minute = %(tokens_per_minute)s,
       paced_until = GREATEST(paced_until, NOW(6)) + INTERVAL %(pay_us)s MICROSECOND
 WHERE id_ai_model = %(id_ai_model)s;

-- name: count_pace
-- The first guess of a limit that only refusals tell of: each worker adds what it got answered. Columns are set from left to right.
UPDATE ai_model_pace FORCE INDEX (PRIMARY)
   SET growth = IF(requests_per_minute IS NULL OR slowed_at < NOW(6) - INTERVAL %(forget_us)s MICROSECOND, %(growth)s, growth),
       requests_per_minute = CASE WHEN requests_per_minute IS NULL OR slowed_at < NOW(6) - INTERVAL %(forget_us)s MICROSECOND
                                  THEN %(answers)s
                                  WHEN growth IN %(growths)s THEN requests_per_minute + %(answers)s
                                  ELSE requests_per_minute END,
       slowed_at = GREATEST(COALESCE(slowed_at, NOW(6)), NOW(6) + INTERVAL %(pause_us)s MICROSECOND)
 WHERE id_ai_model = %(id_ai_model)s;

-- name: lower_pace
-- A refusal lowers a learnt limit, once for all workers that meet it in the same moment: the others' statements change nothing.
UPDATE ai_model_pace FORCE INDEX (PRIMARY)
   SET requests_per_minute = IF(slowed_at > NOW(6) - INTERVAL %(window_us)s MICROSECOND, requests_per_minute, %(requests_per_minute)s),
       growth = IF(slowed_at > NOW(6) - INTERVAL %(window_us)s MICROSECOND, growth, %(growth)s),
       slowed_at = IF(slowed_at > NOW(6) - INTERVAL %(window_us)s MICROSECOND, slowed_at, NOW(6) + INTERVAL %(pause_us)s MICROSECOND)
 WHERE id_ai_model = %(id_ai_model)s;

-- ===== limits of queues and task types =====

-- name: queue_limits
-- Limits of queues and task types, a handful: read every few seconds, so that a claim of what has none pays nothing.
SELECT queue, task_type, max_per_minute, max_in_flight, time_limit FROM queue_limit ORDER BY queue, task_type;

-- name: lock_queue_limit
-- Claims of what this limits go one after the other; before their items are locked, in the order of the key.
SELECT max_per_minute, max_in_flight, TIMESTAMPDIFF(MICROSECOND, NOW(6), paced_until) AS ahead_us
  FROM queue_limit FORCE INDEX (PRIMARY)
 WHERE queue = %(queue)s AND task_type = %(task_type)s
   FOR UPDATE;

-- name: in_flight_of_limit
-- Under that lock: what is in progress, counted from the items themselves, and no further than matters.
SELECT COUNT(*) AS items
  FROM (SELECT i.id_task_item
          FROM task t FORCE INDEX (k_task_runnable)
          STRAIGHT_JOIN task_item i FORCE INDEX (k_task_item_claim) ON i.id_task = t.id_task AND i.status_id = 2
         WHERE t.status_id IN (1, 4, 5) AND t.finished_at IS NULL AND t.lane <> 'batch'
           AND (%(any_queue)s OR t.queue = %(queue)s)
           AND (%(any_type)s OR t.task_type = %(task_type)s)
         LIMIT %(most)s) n;

-- name: pace_queue_limit
-- The rate is used up by as many steps as items were begun; what was not begun in time is lost but for a little.
UPDATE queue_limit FORCE INDEX (PRIMARY)
   SET paced_until = GREATEST(paced_until, NOW(6) - INTERVAL %(credit_us)s MICROSECOND)
                     + INTERVAL %(count)s * CEIL(%(minute_us)s / max_per_minute) MICROSECOND
 WHERE queue = %(queue)s AND task_type = %(task_type)s AND max_per_minute IS NOT NULL;

-- name: set_queue_limit
-- One row per queue and type; only what was named changes. A new rate begins anew.
INSERT INTO queue_limit (queue, task_type, max_per_minute, max_in_flight, time_limit)
VALUES (%(queue)s, %(task_type)s, %(max_per_minute)s, %(max_in_flight)s, %(time_limit)s)
    ON DUPLICATE KEY UPDATE
       paced_until = IF(%(with_per_minute)s, NOW(6), paced_until),
       max_per_minute = IF(%(with_per_minute)s, VALUES(max_per_minute), max_per_minute),
       max_in_flight = IF(%(with_in_flight)s, VALUES(max_in_flight), max_in_flight),
       time_limit = IF(%(with_time_limit)s, VALUES(time_limit), time_limit);

-- name: drop_empty_queue_limit
-- A row whose last limit was taken away says nothing any more.
DELETE FROM queue_limit
 WHERE queue = %(queue)s AND task_type = %(task_type)s AND max_per_minute IS NULL AND max_in_flight IS NULL AND time_limit IS NULL;

-- name: remove_queue_limit
-- All limits of a queue and type at once.
DELETE FROM queue_limit WHERE queue = %(queue)s AND task_type = %(task_type)s;

-- name: queue_reports
-- What is open in each queue, off the claim index alone but for the oldest pending item of each.
SELECT q.queue, q.tasks, q.pending, q.deferred, q.in_flight,
       (SELECT TIMESTAMPDIFF(MICROSECOND, i.created_at, NOW(6)) / 1000000
          FROM task_item i FORCE INDEX (PRIMARY) WHERE i.id_task_item = q.oldest) AS oldest_seconds
  FROM (SELECT t.queue, COUNT(DISTINCT t.id_task) AS tasks, SUM(i.status_id = 0) AS pending, SUM(i.status_id = 4) AS deferred,
               SUM(i.status_id = 2) AS in_flight, MIN(CASE WHEN i.status_id = 0 THEN i.id_task_item END) AS oldest
          FROM task t FORCE INDEX (k_task_runnable)
          STRAIGHT_JOIN task_item i FORCE INDEX (k_task_item_claim) ON i.id_task = t.id_task AND i.status_id IN (0, 2, 4)
         WHERE t.status_id IN (0, 1, 4)
         GROUP BY t.queue) q
 ORDER BY q.queue;

-- ===== looks: charts and metrics =====

-- name: open_tasks
-- How many tasks are open in each queue, off their index alone.
SELECT t.queue, t.status_id, COUNT(*) AS tasks
  FROM task t FORCE INDEX (k_task_runnable)
 WHERE t.status_id IN (0, 1, 4)
 GROUP BY t.status_id, t.queue;

-- name: open_spans
-- Where in the key the waiting items of each open task lie, from which follows how many there may be at the most: a few look-ups in
-- the claim index per task, however many items it has. The age is that of the first pending item, where it may be claimed now.
(SELECT t.id_task, t.queue, t.status_id,
        (SELECT i.id_task_item FROM task_item i FORCE INDEX (k_task_item_claim) WHERE i.id_task = t.id_task AND i.status_id = 0
          ORDER BY i.id_task, i.status_id, i.id_task_item LIMIT 1) AS first_pending,
        (SELECT i.id_task_item FROM task_item i FORCE INDEX (k_task_item_claim) WHERE i.id_task = t.id_task AND i.status_id = 0
          ORDER BY i.id_task DESC, i.status_id DESC, i.id_task_item DESC LIMIT 1) AS last_pending,
        (SELECT i.id_task_item FROM task_item i FORCE INDEX (k_task_item_claim) WHERE i.id_task = t.id_task AND i.status_id = 4
          ORDER BY i.id_task, i.status_id, i.id_task_item LIMIT 1) AS first_deferred,
        (SELECT i.id_task_item FROM task_item i FORCE INDEX (k_task_item_claim) WHERE i.id_task = t.id_task AND i.status_id = 4
          ORDER BY i.id_task DESC, i.status_id DESC, i.id_task_item DESC LIMIT 1) AS last_deferred,
        (SELECT TIMESTAMPDIFF(MICROSECOND, GREATEST(i.created_at, COALESCE(t.scheduled_at, i.created_at)), NOW(6)) / 1000000
           FROM task_item i FORCE INDEX (k_task_item_claim)
          WHERE i.id_task = t.id_task AND i.status_id = 0 AND t.status_id <> 4
            AND (t.scheduled_at IS NULL OR t.scheduled_at <= NOW(6))
            AND (SELECT d.after_id_task FROM task_dependency d FORCE INDEX (PRIMARY)
                   STRAIGHT_JOIN task p FORCE INDEX (PRIMARY) ON p.id_task = d.after_id_task
                  WHERE d.id_task = t.id_task AND p.status_id <> 2
                    AND (d.needs = 'success' OR p.status_id NOT IN (3, 5) OR p.finished_at IS NULL) LIMIT 1) IS NULL
          ORDER BY i.id_task, i.status_id, i.id_task_item LIMIT 1) AS oldest_seconds
   FROM task t FORCE INDEX (k_task_runnable)
  WHERE t.status_id = 0
  ORDER BY t.claim_order, t.id_task
  LIMIT 200)
UNION ALL
(SELECT t.id_task, t.queue, t.status_id,
        (SELECT i.id_task_item FROM task_item i FORCE INDEX (k_task_item_claim) WHERE i.id_task = t.id_task AND i.status_id = 0
          ORDER BY i.id_task, i.status_id, i.id_task_item LIMIT 1) AS first_pending,
        (SELECT i.id_task_item FROM task_item i FORCE INDEX (k_task_item_claim) WHERE i.id_task = t.id_task AND i.status_id = 0
          ORDER BY i.id_task DESC, i.status_id DESC, i.id_task_item DESC LIMIT 1) AS last_pending,
        (SELECT i.id_task_item FROM task_item i FORCE INDEX (k_task_item_claim) WHERE i.id_task = t.id_task AND i.status_id = 4
          ORDER BY i.id_task, i.status_id, i.id_task_item LIMIT 1) AS first_deferred,
        (SELECT i.id_task_item FROM task_item i FORCE INDEX (k_task_item_claim) WHERE i.id_task = t.id_task AND i.status_id = 4
          ORDER BY i.id_task DESC, i.status_id DESC, i.id_task_item DESC LIMIT 1) AS last_deferred,
        (SELECT TIMESTAMPDIFF(MICROSECOND, GREATEST(i.created_at, COALESCE(t.scheduled_at, i.created_at)), NOW(6)) / 1000000
           FROM task_item i FORCE INDEX (k_task_item_claim)
          WHERE i.id_task = t.id_task AND i.status_id = 0 AND t.status_id <> 4
            AND (t.scheduled_at IS NULL OR t.scheduled_at <= NOW(6))
            AND (SELECT d.after_id_task FROM task_dependency d FORCE INDEX (PRIMARY)
                   STRAIGHT_JOIN task p FORCE INDEX (PRIMARY) ON p.id_task = d.after_id_task
                  WHERE d.id_task = t.id_task AND p.status_id <> 2
                    AND (d.needs = 'success' OR p.status_id NOT IN (3, 5) OR p.finished_at IS NULL) LIMIT 1) IS NULL
          ORDER BY i.id_task, i.status_id, i.id_task_item LIMIT 1) AS oldest_seconds
   FROM task t FORCE INDEX (k_task_runnable)
  WHERE t.status_id = 1
  ORDER BY t.claim_order, t.id_task
  LIMIT 200)
UNION ALL
(SELECT t.id_task, t.queue, t.status_id,
        (SELECT i.id_task_item FROM task_item i FORCE INDEX (k_task_item_claim) WHERE i.id_task = t.id_task AND i.status_id = 0
          ORDER BY i.id_task, i.status_id, i.id_task_item LIMIT 1) AS first_pending,
        (SELECT i.id_task_item FROM task_item i FORCE INDEX (k_task_item_claim) WHERE i.id_task = t.id_task AND i.status_id = 0
          ORDER BY i.id_task DESC, i.status_id DESC, i.id_task_item DESC LIMIT 1) AS last_pending,
        (SELECT i.id_task_item FROM task_item i FORCE INDEX (k_task_item_claim) WHERE i.id_task = t.id_task AND i.status_id = 4
          ORDER BY i.id_task, i.status_id, i.id_task_item LIMIT 1) AS first_deferred,
        (SELECT i.id_task_item FROM task_item i FORCE INDEX (k_task_item_claim) WHERE i.id_task = t.id_task AND i.status_id = 4
          ORDER BY i.id_task DESC, i.status_id DESC, i.id_task_item DESC LIMIT 1) AS last_deferred,
        (SELECT TIMESTAMPDIFF(MICROSECOND, GREATEST(i.created_at, COALESCE(t.scheduled_at, i.created_at)), NOW(6)) / 1000000
           FROM task_item i FORCE INDEX (k_task_item_claim)
          WHERE i.id_task = t.id_task AND i.status_id = 0 AND t.status_id <> 4
            AND (t.scheduled_at IS NULL OR t.scheduled_at <= NOW(6))
            AND (SELECT d.after_id_task FROM task_dependency d FORCE INDEX (PRIMARY)
                   STRAIGHT_JOIN task p FORCE INDEX (PRIMARY) ON p.id_task = d.after_id_task
                  WHERE d.id_task = t.id_task AND p.status_id <> 2
                    AND (d.needs = 'success' OR p.status_id NOT IN (3, 5) OR p.finished_at IS NULL) LIMIT 1) IS NULL
          ORDER BY i.id_task, i.status_id, i.id_task_item LIMIT 1) AS oldest_seconds
   FROM task t FORCE INDEX (k_task_runnable)
  WHERE t.status_id = 4
  ORDER BY t.claim_order, t.id_task
  LIMIT 200);

-- name: count_waiting
-- The waiting items of tasks that have few, in two ranges each of the claim index.
SELECT id_task, status_id, COUNT(*) AS items
  FROM task_item FORCE INDEX (k_task_item_claim)
 WHERE id_task IN %(tasks)s AND status_id IN (0, 4)
 GROUP BY id_task, status_id;

-- name: sample_waiting
-- The latest items of a task that has many: from the range's end, as claims leave dead entries at its beginning.
SELECT COUNT(*) AS items, MIN(s.id_task_item) AS first
  FROM (SELECT id_task_item FROM task_item FORCE INDEX (k_task_item_claim)
         WHERE id_task = %(id_task)s AND status_id = %(status_id)s
         ORDER BY id_task DESC, status_id DESC, id_task_item DESC
         LIMIT %(size)s) s;

-- name: items_in_progress
-- What is being worked on in each queue: no more than the fleet has slots, and its batches rows.
SELECT t.queue, COUNT(*) AS items
  FROM task t FORCE INDEX (k_task_runnable)
  STRAIGHT_JOIN task_item i FORCE INDEX (k_task_item_claim) ON i.id_task = t.id_task AND i.status_id = 2
 WHERE t.status_id IN (1, 4, 5) AND t.finished_at IS NULL
 GROUP BY t.queue;

-- name: counter_sums
-- What all workers have counted, those too that are no longer there: a few hundred rows per living worker.
SELECT c.name, c.id_ai_model, c.label, c.value, m.name AS model
  FROM (SELECT name, id_ai_model, label, SUM(value) AS value FROM worker_counter GROUP BY name, id_ai_model, label) c
  LEFT JOIN ai_model m ON m.id_ai_model = c.id_ai_model
 ORDER BY c.name, c.id_ai_model, c.label;

-- name: minutes_since
-- What workers have done in the last minutes, for charts: one range of the key, a row per minute, worker and model.
SELECT w.minute_at, w.id_ai_model, m.name AS model, w.processed, w.failed, w.retried, w.tokens_input, w.tokens_output, w.cost, w.latencies
  FROM worker_minute w FORCE INDEX (PRIMARY)
  LEFT JOIN ai_model m ON m.id_ai_model = w.id_ai_model
 WHERE w.minute_at > %(since)s
 ORDER BY w.minute_at, w.id_worker, w.id_ai_model;

-- name: gauges
-- Single numbers for the metrics, each a look at few rows: schema, the fullest budget of ten thousand tasks, the latest schedule.
SELECT (SELECT MAX(version) FROM schema_migration) AS schema_version,
       (SELECT MAX(b.share)
          FROM (SELECT t.cost / t.budget AS share FROM task t FORCE INDEX (k_task_runnable)
                 WHERE t.status_id IN (1, 4) AND t.budget IS NOT NULL LIMIT 10000) b) AS budget_used,
       (SELECT TIMESTAMPDIFF(MICROSECOND, MIN(s.next_at), NOW(6)) / 1000000 FROM schedule s FORCE INDEX (k_schedule_due)
         WHERE s.is_active = 1 AND s.next_at <= NOW(6)) AS schedule_overdue;

-- ===== tasks: what people do with them =====

-- name: server_packet
-- The longest statement the server takes: a row larger than that cannot be sent.
SELECT @@max_allowed_packet AS bytes;

-- name: insert_task
-- With id_task NULL it makes an id; otherwise it writes the row under an id that was reserved before.
INSERT INTO task (id_task, id_ai_model, task_type, description, parameters, priority, scheduled_at, max_attempts, submit_key,
                  lane, pack, cache_seconds, budget, queue, id_prompt, id_task_group, result_seconds, personal_data)
VALUES (%(id_task)s, %(id_ai_model)s, %(task_type)s, %(description)s, %(parameters)s, %(priority)s, %(scheduled_at)s,
        %(max_attempts)s, %(submit_key)s, %(lane)s, %(pack)s, %(cache_seconds)s, %(budget)s, %(queue)s, %(id_prompt)s, %(id_task_group)s,
        %(result_seconds)s, %(personal_data)s);

-- name: insert_fallbacks
-- The further models of the task, in order; in its transaction.
INSERT INTO task_fallback (id_task, position, id_ai_model)
VALUES (%(id_task)s, %(position)s, %(id_ai_model)s);

-- name: insert_dependencies
-- What the task waits for; in its transaction.
INSERT INTO task_dependency (id_task, after_id_task, needs)
VALUES (%(id_task)s, %(after_id_task)s, %(needs)s);

-- name: insert_items
-- Nothing but placeholders in VALUES: many rows are joined into one statement.
INSERT INTO task_item (id_task, external_key, context_key, context, text_original)
VALUES (%(id_task)s, %(external_key)s, %(context_key)s, %(context)s, %(text_original)s);

-- name: task_of_key
-- Whether this submission is there already, from an earlier call or from a COMMIT whose answer was lost.
SELECT id_task FROM task WHERE submit_key = %(submit_key)s;

-- name: count_items
-- Off the claim index alone.
SELECT COUNT(*) AS items FROM task_item FORCE INDEX (k_task_item_claim) WHERE id_task = %(id_task)s;

-- name: task_state
-- How a task stands, without a lock.
SELECT status_id FROM task WHERE id_task = %(id_task)s;

-- name: lock_task
-- Before a person changes it. Items were locked before, never after: the commits' order.
SELECT status_id, budget, cost, records_processed FROM task WHERE id_task = %(id_task)s FOR UPDATE;

-- name: look_into_task
-- Under its lock: whether anything is in flight, open at all, cancelled, or there at all. Four look-ups of the claim index.
SELECT (SELECT id_task_item FROM task_item WHERE id_task = %(id_task)s AND status_id = 2 LIMIT 1) IS NOT NULL AS is_in_flight,
       (SELECT id_task_item FROM task_item WHERE id_task = %(id_task)s AND status_id = 0 LIMIT 1) IS NOT NULL
    OR (SELECT id_task_item FROM task_item WHERE id_task = %(id_task)s AND status_id = 4 LIMIT 1) IS NOT NULL AS is_waiting,
       (SELECT id_task_item FROM task_item WHERE id_task = %(id_task)s AND status_id = 5 LIMIT 1) IS NOT NULL AS has_cancelled,
       (SELECT id_task_item FROM task_item WHERE id_task = %(id_task)s LIMIT 1) IS NOT NULL AS has_items;

-- name: pause_task
-- A finished task can be paused only when somebody has put new items into it; the caller has looked. One that was paused for the day
-- does not go on by itself any more.
UPDATE task SET status_id = 4, status_reason = 'paused by a person', finished_at = NULL, expire_at = NULL, resume_at = NULL
 WHERE id_task = %(id_task)s AND status_id IN (0, 1, 2, 3, 4);

-- name: cancel_task
-- From here on no worker claims from it; its items follow in batches.
UPDATE task SET status_id = 5, status_reason = 'cancelled by a person', finished_at = NULL, expire_at = NULL
 WHERE id_task = %(id_task)s AND status_id <> 5;

-- name: resume_task
-- Back to where it was: not started, or in progress.
UPDATE task SET status_id = IF(started_at IS NULL, 0, 1), status_reason = NULL, finished_at = NULL, expire_at = NULL, resume_at = NULL
 WHERE id_task = %(id_task)s AND status_id IN (4, 5);

-- name: set_budget
-- Under the task's lock: what it may cost from now on.
UPDATE task SET budget = %(budget)s WHERE id_task = %(id_task)s;

-- name: set_priority
-- Workers see it at their next look for work.
UPDATE task SET priority = %(priority)s WHERE id_task = %(id_task)s;

-- name: items_in_status
-- The next batch of a verb on many items, off the claim index and without locks; what is done to it tests the status again.
SELECT id_task_item
  FROM task_item FORCE INDEX (k_task_item_claim)
 WHERE id_task = %(id_task)s AND status_id = %(status_id)s AND id_task_item > %(after)s
 ORDER BY id_task_item
 LIMIT %(size)s;

-- name: cancel_items
-- What waits is cancelled; what is in flight is still stored by its worker. The claim token stays, as at a rescue.
UPDATE task_item FORCE INDEX (PRIMARY)
   SET status_id = 5, available_at = NULL
 WHERE id_task_item IN %(items)s AND status_id IN (0, 4);

-- name: restore_items
-- Cancelled items wait again. Their task is still cancelled then, so that no worker finishes it half-way. What came back from a
-- batch because it was cancelled may go into another one, at that lane's price.
UPDATE task_item FORCE INDEX (PRIMARY)
   SET status_id = 0, is_single = 0
 WHERE id_task_item IN %(items)s AND status_id = 5;

-- name: failed_items_of_kind
-- The next batch of what failed for one kind of reason; which kind, stands in the row.
SELECT id_task_item
  FROM task_item FORCE INDEX (k_task_item_claim)
 WHERE id_task = %(id_task)s AND status_id = 3 AND id_task_item > %(after)s AND error_kind = %(error_kind)s
 ORDER BY id_task_item
 LIMIT %(size)s;

-- name: retry_items
-- Dead letters begin anew. Without their claim token no late result is taken; tokens and cost were paid and stay.
-- What was said of them went for a result that they no longer have.
UPDATE task_item FORCE INDEX (PRIMARY)
   SET status_id = 0, attempt = 0, lost_count = 0, refused = 0, claim_token = NULL, finished_at = NULL, error_kind = NULL,
       error_message = NULL, review_status_id = 0, text_reviewed = NULL, reviewed_by = NULL, reviewed_at = NULL
 WHERE id_task_item IN %(items)s AND id_task = %(id_task)s AND status_id = 3;

-- name: uncount_failed
-- The counter follows the items that were brought back, and a finished task goes on; a cancelled one must be resumed first.
UPDATE task
   SET records_failed = records_failed - LEAST(records_failed, %(items)s), finished_at = NULL, expire_at = NULL,
       status_id = IF(status_id IN (2, 3), 1, status_id)
 WHERE id_task = %(id_task)s AND status_id <> 5;

-- name: item_state
-- Why an item cannot be retried.
SELECT id_task, status_id FROM task_item WHERE id_task_item = %(id_task_item)s;

-- name: task_report
-- One task with its model; the seconds are the server's.
SELECT t.id_task, t.status_id, t.status_reason, t.task_type, t.description, t.priority, t.scheduled_at, t.max_attempts,
       t.records_processed, t.records_failed, t.tokens_input, t.tokens_output, t.cost, t.created_at, t.started_at, t.finished_at,
       TIMESTAMPDIFF(MICROSECOND, t.started_at, COALESCE(t.finished_at, NOW(6))) / 1000000 AS seconds,
       t.scheduled_at > NOW(6) AS is_ahead, m.name AS model, m.stopped_kind, m.stopped_reason, t.budget, t.resume_at, t.queue,
       IF(t.budget IS NULL, NULL, (SELECT SUM(i.reserved) FROM task_item i FORCE INDEX (k_task_item_claim)
                                    WHERE i.id_task = t.id_task AND i.status_id = 2)) AS reserved
  FROM task t
  JOIN ai_model m ON m.id_ai_model = t.id_ai_model
 WHERE t.id_task = %(id_task)s;

-- name: fallbacks_of_task
-- The further models of a task by their names, in order.
SELECT m.name
  FROM task_fallback f FORCE INDEX (PRIMARY)
  STRAIGHT_JOIN ai_model m FORCE INDEX (PRIMARY) ON m.id_ai_model = f.id_ai_model
 WHERE f.id_task = %(id_task)s
 ORDER BY f.position;

-- name: task_reports
-- A page of tasks, the newest first, read down the primary key.
SELECT t.id_task, t.status_id, t.status_reason, t.task_type, t.description, t.priority, t.scheduled_at, t.max_attempts,
       t.records_processed, t.records_failed, t.tokens_input, t.tokens_output, t.cost, t.created_at, t.started_at, t.finished_at,
       TIMESTAMPDIFF(MICROSECOND, t.started_at, COALESCE(t.finished_at, NOW(6))) / 1000000 AS seconds,
       t.scheduled_at > NOW(6) AS is_ahead, m.name AS model, m.stopped_kind, m.stopped_reason, t.budget, t.resume_at, t.queue,
       IF(t.budget IS NULL, NULL, (SELECT SUM(i.reserved) FROM task_item i FORCE INDEX (k_task_item_claim)
                                    WHERE i.id_task = t.id_task AND i.status_id = 2)) AS reserved
  FROM task t FORCE INDEX (PRIMARY)
  STRAIGHT_JOIN ai_model m ON m.id_ai_model = t.id_ai_model
 WHERE t.id_task < %(before)s
 ORDER BY t.id_task DESC
 LIMIT %(size)s;

-- name: dependencies_of_task
-- What a task waits for, and how that stands; a task that is not there any more keeps nobody waiting.
SELECT d.after_id_task, d.needs, p.status_id,
       p.id_task IS NULL OR p.status_id = 2
       OR (d.needs = 'end' AND p.status_id IN (3, 5) AND p.finished_at IS NOT NULL) AS is_met
  FROM task_dependency d FORCE INDEX (PRIMARY)
  LEFT JOIN task p FORCE INDEX (PRIMARY) ON p.id_task = d.after_id_task
 WHERE d.id_task = %(id_task)s
 ORDER BY d.after_id_task;

-- name: open_dependencies
-- For doctor: who waits for whom, where neither has ended. Only plain SQL can make a circle of these.
SELECT d.id_task, d.after_id_task
  FROM task_dependency d
  JOIN task t ON t.id_task = d.id_task AND t.finished_at IS NULL AND t.status_id <> 5
  JOIN task p ON p.id_task = d.after_id_task AND p.finished_at IS NULL
 LIMIT 10000;

-- name: task_counts
-- Items per status, off the claim index alone.
SELECT status_id, COUNT(*) AS items
  FROM task_item FORCE INDEX (k_task_item_claim)
 WHERE id_task = %(id_task)s
 GROUP BY status_id;

-- name: open_counts
-- The same for a page of tasks, but only what is open or cancelled: how many are done is in the tasks' own counters.
SELECT id_task, status_id, COUNT(*) AS items
  FROM task_item FORCE INDEX (k_task_item_claim)
 WHERE id_task IN %(tasks)s AND status_id IN (0, 2, 4, 5)
 GROUP BY id_task, status_id;

-- name: task_errors
-- Why items failed or wait, by kind, each with its first item as the example.
SELECT g.status_id, g.error_kind, g.items, i.id_task_item, i.error_message,
       TIMESTAMPDIFF(MICROSECOND, NOW(6), g.due_at) / 1000000 AS due_seconds
  FROM (SELECT status_id, error_kind, COUNT(*) AS items, MIN(id_task_item) AS id_task_item, MIN(available_at) AS due_at
          FROM task_item FORCE INDEX (k_task_item_claim)
         WHERE id_task = %(id_task)s AND status_id IN (3, 4)
         GROUP BY status_id, error_kind) g
  JOIN task_item i ON i.id_task_item = g.id_task_item
 ORDER BY g.status_id, g.items DESC;

-- name: workers
-- Who is there (batches are no processes), by the server's clock: a worker is late when it has missed a beat, lost when its lease is over.
SELECT id_worker, host, pid, version, mode, concurrency, in_flight, items_processed, items_failed, started_at, ended_at,
       TIMESTAMPDIFF(MICROSECOND, heartbeat_at, NOW(6)) / 1000000 AS silent_seconds,
       CASE WHEN lost_at IS NOT NULL THEN 'lost'
            WHEN ended_at IS NOT NULL THEN 'ended'
            WHEN lease_until < NOW(6) THEN 'lost'
            WHEN TIMESTAMPDIFF(MICROSECOND, heartbeat_at, NOW(6)) * 2 > TIMESTAMPDIFF(MICROSECOND, heartbeat_at, lease_until) THEN 'late'
            WHEN draining_at IS NOT NULL THEN 'draining'
            ELSE 'alive' END AS state
  FROM worker
 WHERE mode <> 'batch' AND (ended_at IS NULL OR (%(with_ended)s AND ended_at > NOW(6) - INTERVAL 1 DAY))
 ORDER BY id_worker;

-- name: model_reports
-- Each model with its limits, told or learnt, and what it has used today.
SELECT m.name, m.is_active, m.max_requests_per_minute, m.max_tokens_per_minute, m.max_in_flight, m.budget_per_day,
       p.requests_per_minute AS learnt_requests, p.tokens_per_minute AS learnt_tokens,
       m.stopped_kind, COALESCE(d.attempts, 0) AS attempts, COALESCE(d.tokens, 0) AS tokens, d.cost, UTC_DATE() AS day,
       COALESCE(f.items, 0) AS in_flight
  FROM ai_model m
  LEFT JOIN ai_model_pace p ON p.id_ai_model = m.id_ai_model
  LEFT JOIN (SELECT COALESCE(i.id_ai_model, t.id_ai_model) AS id_ai_model, COUNT(*) AS items
               FROM task t FORCE INDEX (k_task_runnable)
               STRAIGHT_JOIN task_item i FORCE INDEX (k_task_item_claim) ON i.id_task = t.id_task AND i.status_id = 2
              WHERE t.status_id IN (1, 4, 5) AND t.finished_at IS NULL
              GROUP BY COALESCE(i.id_ai_model, t.id_ai_model)) f ON f.id_ai_model = m.id_ai_model
  LEFT JOIN (SELECT id_ai_model, SUM(attempts) AS attempts, SUM(tokens_input + tokens_output) AS tokens, SUM(cost) AS cost
               FROM ai_model_day WHERE day = UTC_DATE() GROUP BY id_ai_model) d ON d.id_ai_model = m.id_ai_model
 ORDER BY m.id_ai_model;

-- name: stopped_models
-- Models that wait for somebody, and the items that wait with them.
SELECT name, stopped_kind, stopped_reason, stopped_at, TIMESTAMPDIFF(MICROSECOND, NOW(6), probe_at) / 1000000 AS probe_seconds
  FROM ai_model
 WHERE stopped_at IS NOT NULL
 ORDER BY id_ai_model;

-- name: task_steps
-- How far the items that are being worked on have come which take several calls. No more of them than the fleet holds.
SELECT COUNT(*) AS items, SUM(steps_done) AS done, SUM(steps_total) AS total
  FROM task_item FORCE INDEX (k_task_item_claim)
 WHERE id_task = %(id_task)s AND status_id = 2 AND steps_total > 1;

-- name: steps_of_items
-- The finished steps of a page of results, asked for by who wants them. Parts are gone when their items are done.
SELECT s.id_task_item, s.step, s.part, s.text, s.result, s.finished_at, m.name AS model, a.tokens_input, a.tokens_output, a.cost
  FROM task_item_step s FORCE INDEX (PRIMARY)
  LEFT JOIN task_attempt a FORCE INDEX (PRIMARY) ON a.operation_uuid = s.operation_uuid
  LEFT JOIN ai_model m FORCE INDEX (PRIMARY) ON m.id_ai_model = a.id_ai_model
 WHERE s.id_task_item IN %(items)s
 ORDER BY s.id_task_item, s.step, s.part;

-- name: results_of_status
-- A page of results in one status, in the order of the key.
SELECT id_task_item, external_key, status_id, text_original, text_corrected, change_summary, error_kind, error_message,
       tokens_input, tokens_output, cost, context, review_status_id, text_reviewed, reviewed_by, reviewed_at
  FROM task_item FORCE INDEX (k_task_item_claim)
 WHERE id_task = %(id_task)s AND status_id = %(status_id)s AND id_task_item > %(after)s
 ORDER BY id_task_item
 LIMIT %(size)s;

-- name: results_of_task
-- The same for all statuses: six short runs of the claim index, merged; sorting the task by its key would read all of it per page.
SELECT i.id_task_item, i.external_key, i.status_id, i.text_original, i.text_corrected, i.change_summary, i.error_kind,
       i.error_message, i.tokens_input, i.tokens_output, i.cost, i.context, i.review_status_id, i.text_reviewed,
       i.reviewed_by, i.reviewed_at
  FROM (
       (SELECT id_task_item FROM task_item FORCE INDEX (k_task_item_claim)
         WHERE id_task = %(id_task)s AND status_id = 0 AND id_task_item > %(after)s ORDER BY id_task_item LIMIT %(size)s)
       UNION ALL
       (SELECT id_task_item FROM task_item FORCE INDEX (k_task_item_claim)
         WHERE id_task = %(id_task)s AND status_id = 1 AND id_task_item > %(after)s ORDER BY id_task_item LIMIT %(size)s)
       UNION ALL
       (SELECT id_task_item FROM task_item FORCE INDEX (k_task_item_claim)
         WHERE id_task = %(id_task)s AND status_id = 2 AND id_task_item > %(after)s ORDER BY id_task_item LIMIT %(size)s)
       UNION ALL
       (SELECT id_task_item FROM task_item FORCE INDEX (k_task_item_claim)
         WHERE id_task = %(id_task)s AND status_id = 3 AND id_task_item > %(after)s ORDER BY id_task_item LIMIT %(size)s)
       UNION ALL
       (SELECT id_task_item FROM task_item FORCE INDEX (k_task_item_claim)
         WHERE id_task = %(id_task)s AND status_id = 4 AND id_task_item > %(after)s ORDER BY id_task_item LIMIT %(size)s)
       UNION ALL
       (SELECT id_task_item FROM task_item FORCE INDEX (k_task_item_claim)
         WHERE id_task = %(id_task)s AND status_id = 5 AND id_task_item > %(after)s ORDER BY id_task_item LIMIT %(size)s)
       ORDER BY id_task_item LIMIT %(size)s) page
  STRAIGHT_JOIN task_item i ON i.id_task_item = page.id_task_item
 ORDER BY i.id_task_item;


-- ===== review: what people say of results =====

-- name: items_to_review
-- A page of processed items in the order of their keys, off the claim index; the review is looked at in the row.
SELECT id_task_item, external_key, text_original, text_corrected, change_summary, review_status_id, text_reviewed, reviewed_by,
       reviewed_at
  FROM task_item FORCE INDEX (k_task_item_claim)
 WHERE id_task = %(id_task)s AND status_id = 1 AND id_task_item > %(after)s
   AND (%(review_status_id)s IS NULL OR review_status_id = %(review_status_id)s)
 ORDER BY id_task_item
 LIMIT %(size)s;

-- name: item_to_review
-- One item, whatever its status: the caller says what is wrong with it.
SELECT id_task_item, status_id, external_key, text_original, text_corrected, change_summary, review_status_id, text_reviewed,
       reviewed_by, reviewed_at
  FROM task_item
 WHERE id_task_item = %(id_task_item)s;

-- name: unreviewed_items
-- The next batch of those that nobody has said anything of; without locks, what is done to it looks again.
SELECT id_task_item
  FROM task_item FORCE INDEX (k_task_item_claim)
 WHERE id_task = %(id_task)s AND status_id = 1 AND id_task_item > %(after)s AND review_status_id = 0
 ORDER BY id_task_item
 LIMIT %(size)s;

-- name: items_of_span
-- A person names items by their ids; whether they can be reviewed is said before the first one is.
SELECT id_task_item, status_id
  FROM task_item FORCE INDEX (PRIMARY)
 WHERE id_task_item > %(after)s AND id_task_item <= %(last)s AND (%(id_task)s IS NULL OR id_task = %(id_task)s)
 ORDER BY id_task_item
 LIMIT %(size)s;

-- name: lock_to_review
-- By key and in its order, as the commits lock items. What was cleared when its time was over cannot be accepted any more.
SELECT id_task_item, status_id, review_status_id, text_reviewed, reviewed_by,
       text_corrected IS NULL AND result IS NULL AS is_cleared
  FROM task_item FORCE INDEX (PRIMARY)
 WHERE id_task_item IN %(items)s
 ORDER BY id_task_item
   FOR UPDATE;

-- name: review_items
-- The latest review stands in the item, under its lock; taken back, it leaves nothing there.
UPDATE task_item FORCE INDEX (PRIMARY)
   SET review_status_id = %(review_status_id)s, text_reviewed = %(text_reviewed)s,
       reviewed_by = IF(%(review_status_id)s = 0, NULL, %(reviewed_by)s), reviewed_at = IF(%(review_status_id)s = 0, NULL, NOW(6))
 WHERE id_task_item IN %(items)s;

-- name: record_reviews
-- Every review ever given is kept, in the transaction that gives it.
INSERT INTO task_item_review (id_task, id_task_item, review_status_id, text_reviewed, note, reviewed_by)
SELECT id_task, id_task_item, %(review_status_id)s, %(text_reviewed)s, %(note)s, %(reviewed_by)s
  FROM task_item FORCE INDEX (PRIMARY)
 WHERE id_task_item IN %(items)s;

-- name: tasks_under_way
-- For the overview: tasks that are worked on, or (status 0) that nobody has begun, in the order of the claim, off its own index.
SELECT id_task FROM task FORCE INDEX (k_task_runnable) WHERE status_id = %(status)s ORDER BY status_id, claim_order, id_task LIMIT %(size)s;

-- name: tasks_with_failures
-- Of the newest tasks those in which something failed: their keys first, off the primary key, then the rows.
SELECT t.id_task
  FROM (SELECT id_task FROM task FORCE INDEX (PRIMARY) ORDER BY id_task DESC LIMIT %(scan)s) s
  STRAIGHT_JOIN task t FORCE INDEX (PRIMARY) ON t.id_task = s.id_task
 WHERE t.records_failed > 0
 ORDER BY t.id_task DESC
 LIMIT %(size)s;

-- name: last_failures
-- The last items of one task that are in ERROR: from the end of their run of the claim index.
SELECT id_task_item, id_task, error_kind, LEFT(error_message, 300) AS error_message,
       TIMESTAMPDIFF(MICROSECOND, finished_at, NOW(6)) / 1000000 AS seconds
  FROM task_item FORCE INDEX (k_task_item_claim)
 WHERE id_task = %(id_task)s AND status_id = 3
 ORDER BY id_task DESC, status_id DESC, id_task_item DESC
 LIMIT %(size)s;

-- ===== browsing: what people look through in the dashboard; each bounded, however much there is =====

-- name: search_tasks
-- Among the newest tasks, so many of them: their keys first, off the primary key, then the rows. A text is looked for where people
-- have written; what they wrote as a number is a task's key, too.
SELECT t.id_task
  FROM (SELECT id_task FROM task FORCE INDEX (PRIMARY) WHERE id_task < %(before)s ORDER BY id_task DESC LIMIT %(scan)s) s
  STRAIGHT_JOIN task t FORCE INDEX (PRIMARY) ON t.id_task = s.id_task
  STRAIGHT_JOIN ai_model m FORCE INDEX (PRIMARY) ON m.id_ai_model = t.id_ai_model
 WHERE (%(status_id)s IS NULL OR t.status_id = %(status_id)s)
   AND (%(task_type)s IS NULL OR t.task_type = %(task_type)s)
   AND (%(model)s IS NULL OR m.name = %(model)s)
   AND (%(queue)s IS NULL OR t.queue = %(queue)s)
   AND (%(text)s IS NULL OR LOCATE(%(text)s, t.description) > 0 OR LOCATE(%(text)s, t.submit_key) > 0 OR t.id_task = %(id_task)s)
 ORDER BY t.id_task DESC
 LIMIT %(size)s;

-- name: end_of_search
-- Where a search of tasks goes on: the last one that it has looked at; nothing where there are no more.
SELECT id_task FROM task FORCE INDEX (PRIMARY) WHERE id_task < %(before)s ORDER BY id_task DESC LIMIT 1 OFFSET %(offset)s;

-- name: task_choices
-- What the filters offer: types and queues of the newest tasks.
SELECT DISTINCT t.task_type, t.queue
  FROM (SELECT id_task FROM task FORCE INDEX (PRIMARY) ORDER BY id_task DESC LIMIT %(scan)s) s
  STRAIGHT_JOIN task t FORCE INDEX (PRIMARY) ON t.id_task = s.id_task;

-- name: task_reports_of
-- Tasks by their keys, each with its model, the newest first.
SELECT t.id_task, t.status_id, t.status_reason, t.task_type, t.description, t.priority, t.scheduled_at, t.max_attempts,
       t.records_processed, t.records_failed, t.tokens_input, t.tokens_output, t.cost, t.created_at, t.started_at, t.finished_at,
       TIMESTAMPDIFF(MICROSECOND, t.started_at, COALESCE(t.finished_at, NOW(6))) / 1000000 AS seconds,
       t.scheduled_at > NOW(6) AS is_ahead, m.name AS model, m.stopped_kind, m.stopped_reason, t.budget, t.resume_at, t.queue,
       IF(t.budget IS NULL, NULL, (SELECT SUM(i.reserved) FROM task_item i FORCE INDEX (k_task_item_claim)
                                    WHERE i.id_task = t.id_task AND i.status_id = 2)) AS reserved
  FROM task t FORCE INDEX (PRIMARY)
  STRAIGHT_JOIN ai_model m FORCE INDEX (PRIMARY) ON m.id_ai_model = t.id_ai_model
 WHERE t.id_task IN %(tasks)s
 ORDER BY t.id_task DESC;

-- name: few_items
-- How many items of a task wait, are in progress, deferred or cancelled, as far as a short run of the claim index goes.
SELECT 0 AS status_id, COUNT(*) AS items FROM (SELECT 1 FROM task_item FORCE INDEX (k_task_item_claim)
        WHERE id_task = %(id_task)s AND status_id = 0 LIMIT %(most)s) pending
UNION ALL
SELECT 2, COUNT(*) FROM (SELECT 1 FROM task_item FORCE INDEX (k_task_item_claim)
        WHERE id_task = %(id_task)s AND status_id = 2 LIMIT %(most)s) in_progress
UNION ALL
SELECT 4, COUNT(*) FROM (SELECT 1 FROM task_item FORCE INDEX (k_task_item_claim)
        WHERE id_task = %(id_task)s AND status_id = 4 LIMIT %(most)s) deferred
UNION ALL
SELECT 5, COUNT(*) FROM (SELECT 1 FROM task_item FORCE INDEX (k_task_item_claim)
        WHERE id_task = %(id_task)s AND status_id = 5 LIMIT %(most)s) cancelled;

-- name: first_errors
-- Why items failed or wait, by kind, each with its first item as the example: of the first failed and the first deferred ones.
SELECT g.status_id, g.error_kind, g.items, i.id_task_item, i.error_message,
       TIMESTAMPDIFF(MICROSECOND, NOW(6), g.due_at) / 1000000 AS due_seconds
  FROM (SELECT r.status_id, r.error_kind, COUNT(*) AS items, MIN(r.id_task_item) AS id_task_item, MIN(r.available_at) AS due_at
          FROM ((SELECT status_id, error_kind, id_task_item, available_at FROM task_item FORCE INDEX (k_task_item_claim)
                  WHERE id_task = %(id_task)s AND status_id = 3 ORDER BY id_task_item LIMIT %(most)s)
                UNION ALL
                (SELECT status_id, error_kind, id_task_item, available_at FROM task_item FORCE INDEX (k_task_item_claim)
                  WHERE id_task = %(id_task)s AND status_id = 4 ORDER BY id_task_item LIMIT %(most)s)) r
         GROUP BY r.status_id, r.error_kind) g
  STRAIGHT_JOIN task_item i FORCE INDEX (PRIMARY) ON i.id_task_item = g.id_task_item
 ORDER BY g.status_id, g.items DESC;

-- name: matching_items
-- Items in one status that a filter lets through, by their keys alone, among the next so many of the claim index.
SELECT s.id_task_item
  FROM (SELECT id_task_item, review_status_id, error_kind FROM task_item FORCE INDEX (k_task_item_claim)
         WHERE id_task = %(id_task)s AND status_id = %(status_id)s AND id_task_item > %(after)s
         ORDER BY id_task_item LIMIT %(scan)s) s
 WHERE (%(review_status_id)s IS NULL OR s.review_status_id = %(review_status_id)s)
   AND (%(error_kind)s IS NULL OR s.error_kind = %(error_kind)s)
 ORDER BY s.id_task_item
 LIMIT %(size)s;

-- name: matching_items_before
-- The same downwards, from an item on.
SELECT s.id_task_item
  FROM (SELECT id_task_item, review_status_id FROM task_item FORCE INDEX (k_task_item_claim)
         WHERE id_task = %(id_task)s AND status_id = %(status_id)s AND id_task_item < %(before)s
         ORDER BY id_task DESC, status_id DESC, id_task_item DESC LIMIT %(scan)s) s
 WHERE (%(review_status_id)s IS NULL OR s.review_status_id = %(review_status_id)s)
 ORDER BY s.id_task_item DESC
 LIMIT %(size)s;

-- name: end_of_matching
-- Where a search of items goes on: the last one that it has looked at; nothing where there are no more.
SELECT id_task_item FROM task_item FORCE INDEX (k_task_item_claim)
 WHERE id_task = %(id_task)s AND status_id = %(status_id)s AND id_task_item > %(after)s
 ORDER BY id_task_item LIMIT 1 OFFSET %(offset)s;

-- name: next_items
-- A page of a task's items in any status, by their keys: six short runs of the claim index, merged.
(SELECT id_task_item FROM task_item FORCE INDEX (k_task_item_claim)
  WHERE id_task = %(id_task)s AND status_id = 0 AND id_task_item > %(after)s ORDER BY id_task_item LIMIT %(size)s)
UNION ALL
(SELECT id_task_item FROM task_item FORCE INDEX (k_task_item_claim)
  WHERE id_task = %(id_task)s AND status_id = 1 AND id_task_item > %(after)s ORDER BY id_task_item LIMIT %(size)s)
UNION ALL
(SELECT id_task_item FROM task_item FORCE INDEX (k_task_item_claim)
  WHERE id_task = %(id_task)s AND status_id = 2 AND id_task_item > %(after)s ORDER BY id_task_item LIMIT %(size)s)
UNION ALL
(SELECT id_task_item FROM task_item FORCE INDEX (k_task_item_claim)
  WHERE id_task = %(id_task)s AND status_id = 3 AND id_task_item > %(after)s ORDER BY id_task_item LIMIT %(size)s)
UNION ALL
(SELECT id_task_item FROM task_item FORCE INDEX (k_task_item_claim)
  WHERE id_task = %(id_task)s AND status_id = 4 AND id_task_item > %(after)s ORDER BY id_task_item LIMIT %(size)s)
UNION ALL
(SELECT id_task_item FROM task_item FORCE INDEX (k_task_item_claim)
  WHERE id_task = %(id_task)s AND status_id = 5 AND id_task_item > %(after)s ORDER BY id_task_item LIMIT %(size)s)
ORDER BY id_task_item LIMIT %(size)s;

-- name: item_lines
-- Items as they stand in a list: the beginnings of their texts, and how much of the text a correction has changed.
SELECT id_task_item, external_key, status_id, attempt, error_kind, LEFT(error_message, 300) AS error_message, cost,
       LEFT(text_original, %(characters)s) AS text_original, LEFT(text_corrected, %(characters)s) AS text_corrected,
       review_status_id, reviewed_by, JSON_EXTRACT(result, '$.changes.ratio') AS ratio
  FROM task_item FORCE INDEX (PRIMARY)
 WHERE id_task_item IN %(items)s
 ORDER BY id_task_item;

-- name: edit_ratios
-- How much of their texts corrections have changed: to look at the most edited ones first.
SELECT id_task_item, JSON_EXTRACT(result, '$.changes.ratio') AS ratio
  FROM task_item FORCE INDEX (PRIMARY)
 WHERE id_task_item IN %(items)s;

-- name: item_in_full
-- One item with its task, for the page that shows all of it; of texts so many characters, and how many there are.
SELECT i.id_task_item, i.id_task, i.status_id, i.attempt, i.lost_count, i.external_key, i.context_key, i.error_kind, i.error_message,
       i.created_at, i.finished_at, i.available_at, i.tokens_input, i.tokens_output, i.cost, i.steps_done, i.steps_total,
       LEFT(i.text_original, %(characters)s) AS text_original, CHAR_LENGTH(i.text_original) AS original_length,
       LEFT(i.text_corrected, %(characters)s) AS text_corrected, CHAR_LENGTH(i.text_corrected) AS corrected_length,
       LEFT(i.text_reviewed, %(characters)s) AS text_reviewed, CHAR_LENGTH(i.text_reviewed) AS reviewed_length,
       IF(LENGTH(i.context) > %(bytes)s, NULL, i.context) AS context, IF(LENGTH(i.result) > %(bytes)s, NULL, i.result) AS result,
       i.change_summary, i.review_status_id, i.reviewed_by, i.reviewed_at, t.task_type, t.max_attempts, t.status_id AS task_status_id,
       m.name AS model
  FROM task_item i FORCE INDEX (PRIMARY)
  STRAIGHT_JOIN task t FORCE INDEX (PRIMARY) ON t.id_task = i.id_task
  STRAIGHT_JOIN ai_model m FORCE INDEX (PRIMARY) ON m.id_ai_model = t.id_ai_model
 WHERE i.id_task_item = %(id_task_item)s;

-- name: attempts_of_item
-- The ledger of one item, in the order in which its attempts ended.
SELECT a.attempt, a.outcome, a.error_kind, a.error_message, a.tokens_input, a.tokens_output, a.tokens_cached, a.cost, a.latency_ms,
       a.finished_at, a.lane, a.step, m.name AS model
  FROM task_attempt a FORCE INDEX (k_task_attempt_item)
  LEFT JOIN ai_model m FORCE INDEX (PRIMARY) ON m.id_ai_model = a.id_ai_model
 WHERE a.id_task_item = %(id_task_item)s
 ORDER BY a.finished_at, a.attempt, a.step
 LIMIT %(most)s;

-- name: reviews_of_item
-- What people have said of one item, the latest first.
SELECT review_status_id, LEFT(text_reviewed, 2000) AS text_reviewed, note, reviewed_by, reviewed_at
  FROM task_item_review FORCE INDEX (k_task_item_review_item)
 WHERE id_task_item = %(id_task_item)s
 ORDER BY id_task_item_review DESC
 LIMIT %(most)s;

-- name: latest_verdict
-- Where a task's review was left off: two look-ups from the index's end, by verdict.
(SELECT id_task_item, id_task_item_review FROM task_item_review FORCE INDEX (k_task_item_review_task)
  WHERE id_task = %(id_task)s AND review_status_id = 1
  ORDER BY id_task DESC, review_status_id DESC, id_task_item_review DESC LIMIT 1)
UNION ALL
(SELECT id_task_item, id_task_item_review FROM task_item_review FORCE INDEX (k_task_item_review_task)
  WHERE id_task = %(id_task)s AND review_status_id = 2
  ORDER BY id_task DESC, review_status_id DESC, id_task_item_review DESC LIMIT 1)
ORDER BY id_task_item_review DESC;

-- name: ends_of_task
-- The first and the last pending item, off the claim index: between them lie samples.
SELECT (SELECT id_task_item FROM task_item FORCE INDEX (k_task_item_claim) WHERE id_task = %(id_task)s AND status_id = 0
         ORDER BY id_task, status_id, id_task_item LIMIT 1) AS first_item,
       (SELECT id_task_item FROM task_item FORCE INDEX (k_task_item_claim) WHERE id_task = %(id_task)s AND status_id = 0
         ORDER BY id_task DESC, status_id DESC, id_task_item DESC LIMIT 1) AS last_item;

-- name: task_in_words
-- What was asked for, beside the numbers: parameters, prompt, lane and the like, of one task.
SELECT t.id_ai_model, t.task_type, t.description, t.max_attempts, t.priority, t.status_id, t.budget, t.queue,
       t.parameters, t.lane, t.pack, t.cache_seconds, t.result_seconds, t.personal_data, t.expire_at, t.submit_key, t.id_prompt, p.version, p.origin,
       p.name AS prompt, g.name AS task_group, s.table_name AS source
  FROM task t
  LEFT JOIN prompt p ON p.id_prompt = t.id_prompt
  LEFT JOIN task_group g ON g.id_task_group = t.id_task_group
  LEFT JOIN task_source s ON s.id_task = t.id_task
 WHERE t.id_task = %(id_task)s;

-- ===== clients: who waits for results =====

-- name: item_states
-- What a client that waits for many items asks, some ten times a second for all of them: the primary key, and no text.
SELECT id_task_item, status_id FROM task_item FORCE INDEX (PRIMARY) WHERE id_task_item IN %(items)s;

-- name: item_results
-- Items with all that came out, when somebody waits for it. How many files there are spares most items the look for them.
SELECT i.id_task_item, i.id_task, i.status_id, i.external_key, i.context, i.context_key, i.text_original, i.text_corrected,
       i.change_summary, i.result, i.tokens_input, i.tokens_output, i.cost, i.error_kind, i.error_message, i.finished_at,
       i.review_status_id, i.text_reviewed, i.reviewed_by, i.reviewed_at,
       (SELECT COUNT(*) FROM task_item_file f FORCE INDEX (PRIMARY) WHERE f.id_task_item = i.id_task_item) AS files
  FROM task_item i FORCE INDEX (PRIMARY)
 WHERE i.id_task_item IN %(items)s
 ORDER BY i.id_task_item;

-- name: ids_of_task
-- The items of a task, off the claim index alone; those of a submission in the order in which they were given.
SELECT id_task_item FROM task_item FORCE INDEX (k_task_item_claim)
 WHERE id_task = %(id_task)s AND (%(any_status)s OR status_id = %(status_id)s)
 ORDER BY id_task_item;

-- name: changes_of_items
-- A page of the counts of changes that results carry: summed up by the program, since a sum over JSON takes a server seconds that
-- end in a time-out on a big task.
SELECT id_task_item, external_key, JSON_EXTRACT(result, '$.changes') AS changes
  FROM task_item FORCE INDEX (k_task_item_claim)
 WHERE id_task = %(id_task)s AND status_id = 1 AND id_task_item > %(after)s
 ORDER BY id_task_item
 LIMIT %(size)s;

-- name: model_names
-- What an application may read of the models.
SELECT id_ai_model, name, is_active FROM ai_model ORDER BY id_ai_model;


-- ===== sources: tables of others, which rows come from and results go back to =====
-- Names of these tables and their columns are written as Identifier, and %(where)s is the operator's own SQL (see literals.py).

-- name: source_columns
-- The column names of information_schema are in capitals on one kind of server; a user sees what it has rights on.
SELECT column_name AS name, data_type AS type, character_maximum_length AS length, is_nullable AS nullable,
       column_key AS role
  FROM information_schema.columns
 WHERE table_schema = %(schema_name)s AND table_name = %(table_name)s;

-- name: source_unique_key
-- An index on nothing but the whole key, which holds each value once.
SELECT index_name AS name
  FROM information_schema.statistics
 WHERE table_schema = %(schema_name)s AND table_name = %(table_name)s
 GROUP BY index_name
HAVING COUNT(*) = 1 AND MAX(non_unique) = 0 AND MAX(column_name = %(key_name)s) = 1 AND MAX(sub_part) IS NULL;

-- name: source_try
-- Reads nothing: the server looks at the names, the rights and the operator's clause.
SELECT %(key)s AS k, %(text)s AS t
  FROM %(schema)s.%(table)s
 WHERE (
%(where)s
       )
 LIMIT 0;

-- name: source_try_clause
-- The clause without the brackets that it gets everywhere else: one that closes them, and opens others, would undo what stands beside
-- it, and the paging would never end.
SELECT %(key)s AS k
  FROM %(schema)s.%(table)s
 WHERE
%(where)s
 LIMIT 0;

-- name: source_long_key
-- Only where the column's type allows keys that an item has no room for.
SELECT %(key)s AS k
  FROM %(schema)s.%(table)s
 WHERE CHAR_LENGTH(%(key)s) > %(longest)s AND (
%(where)s
       )
 LIMIT 1;

-- name: source_long_text
-- Only where the column's type allows texts that an item has no room for: told before the first row is taken, not after the last.
SELECT %(key)s AS k, OCTET_LENGTH(CONVERT(%(text)s USING utf8mb4)) AS size
  FROM %(schema)s.%(table)s
 WHERE OCTET_LENGTH(CONVERT(%(text)s USING utf8mb4)) > %(longest)s AND (
%(where)s
       )
 LIMIT 1;

-- name: source_sizes
-- How far the next page may go: sizes alone, so that a page of long texts never has to be held to be measured.
SELECT %(key)s AS k, COALESCE(OCTET_LENGTH(%(text)s), 0) AS size
  FROM %(schema)s.%(table)s
 WHERE (%(after)s IS NULL OR %(key)s > %(after)s) AND (
%(where)s
       )
 ORDER BY %(key)s
 LIMIT %(size)s;

-- name: source_page
-- A range of the key, in its own collation and order; without locks.
SELECT %(key)s AS source_key, %(text)s AS source_text, %(extra)s
  FROM %(schema)s.%(table)s
 WHERE (%(after)s IS NULL OR %(key)s > %(after)s) AND %(key)s <= %(last)s AND (
%(where)s
       )
 ORDER BY %(key)s
 LIMIT %(size)s;

-- name: source_update
-- The guard stands in the statement: whoever changes the row first wins, and the other one sees it. The text's hash is that of its
-- characters in UTF-8, whatever the column's own character set is.
UPDATE %(schema)s.%(table)s
   SET %(text)s = %(after_text)s
 WHERE %(key)s = %(value)s AND SHA2(CONVERT(%(text)s USING utf8mb4), 256) = %(before)s;

-- name: source_hash
-- What a row holds that the guard has kept from being written.
SELECT SHA2(CONVERT(%(text)s USING utf8mb4), 256) AS hash
  FROM %(schema)s.%(table)s
 WHERE %(key)s = %(value)s;

-- name: import_of_key
-- How far the import with this key has come, if there was one. Without a source: the task was made in another way.
SELECT t.id_task, s.url, s.table_name, s.key_column, s.text_column, s.where_clause, s.imported_through, s.rows_imported,
       s.rows_skipped, s.finished_at
  FROM task t LEFT JOIN task_source s ON s.id_task = t.id_task
 WHERE t.submit_key = %(submit_key)s;

-- name: source_of_task
-- A task without a source was not imported.
SELECT s.url, s.table_name, s.key_column, s.text_column, s.finished_at
  FROM task t LEFT JOIN task_source s ON s.id_task = t.id_task
 WHERE t.id_task = %(id_task)s;

-- name: hold_task
-- In the transaction that makes it, so that no worker ever sees it waiting.
UPDATE task SET status_id = 4, status_reason = %(reason)s WHERE id_task = %(id_task)s;

-- name: release_task
-- It is whole. Whoever has paused, resumed or cancelled it meanwhile is not overruled.
UPDATE task SET status_id = 0, status_reason = NULL WHERE id_task = %(id_task)s AND status_id = 4 AND status_reason = %(reason)s;

-- name: insert_source
-- Where the rows are; never a password.
INSERT INTO task_source (id_task, url, table_name, key_column, text_column, where_clause)
VALUES (%(id_task)s, %(url)s, %(table_name)s, %(key_column)s, %(text_column)s, %(where_clause)s);

-- name: lock_source
-- One import, and one record of an export, of a task at a time.
SELECT imported_through FROM task_source WHERE id_task = %(id_task)s FOR UPDATE;

-- name: advance_import
-- With the items of the page, in one transaction. Matches nothing when another process has come further.
UPDATE task_source
   SET imported_through = %(through)s, rows_imported = %(items)s, rows_skipped = %(skipped)s
 WHERE id_task = %(id_task)s AND imported_through <=> %(before)s AND finished_at IS NULL;

-- name: finish_import
-- From here on the same key adds nothing.
UPDATE task_source SET finished_at = NOW(6) WHERE id_task = %(id_task)s AND finished_at IS NULL;

-- name: accepted_items
-- A page of what may go back, with hashes instead of texts: most of it may have been written before. A result that was kept for a while
-- only has no target any more.
SELECT i.id_task_item, i.external_key, UNHEX(SHA2(i.text_original, 256)) AS original,
       UNHEX(SHA2(COALESCE(i.text_reviewed, i.text_corrected), 256)) AS target,
       OCTET_LENGTH(COALESCE(i.text_reviewed, i.text_corrected, '')) AS size, last.outcome, last.hash_after,
       written.hash_after AS written
  FROM task_item i FORCE INDEX (k_task_item_claim)
  LEFT JOIN task_item_export last ON last.id_task_item_export =
       (SELECT MAX(e.id_task_item_export) FROM task_item_export e FORCE INDEX (k_task_item_export_item)
         WHERE e.id_task_item = i.id_task_item)
  LEFT JOIN task_item_export written ON written.id_task_item_export =
       (SELECT MAX(w.id_task_item_export) FROM task_item_export w FORCE INDEX (k_task_item_export_item)
         WHERE w.id_task_item = i.id_task_item AND w.outcome = 'written')
 WHERE i.id_task = %(id_task)s AND i.status_id = 1 AND i.id_task_item > %(after)s AND i.review_status_id = 1
 ORDER BY i.id_task_item
 LIMIT %(size)s;

-- name: accepted_texts
-- Of those that have yet to be written, as they stand now.
SELECT id_task_item, COALESCE(text_reviewed, text_corrected)
  FROM task_item FORCE INDEX (PRIMARY)
 WHERE id_task_item IN %(items)s AND status_id = 1 AND review_status_id = 1;

-- name: latest_exports
-- What the audit says already; the same is not said twice. Joined from the few newest: as IN (SELECT …) MySQL reads all of the audit.
SELECT e.id_task_item, e.outcome, e.hash_before, e.hash_after, e.message
  FROM (SELECT MAX(id_task_item_export) AS id_task_item_export
          FROM task_item_export FORCE INDEX (k_task_item_export_item)
         WHERE id_task_item IN %(items)s
         GROUP BY id_task_item) newest
  STRAIGHT_JOIN task_item_export e FORCE INDEX (PRIMARY) ON e.id_task_item_export = newest.id_task_item_export;

-- name: insert_exports
-- The audit: after the source has committed, so that it never tells of what was not done.
INSERT INTO task_item_export (id_task, id_task_item, outcome, hash_before, hash_after, message, exported_by)
VALUES (%(id_task)s, %(id_task_item)s, %(outcome)s, %(hash_before)s, %(hash_after)s, %(message)s, %(exported_by)s);


-- ===== access: tokens and sessions of the web =====

-- name: insert_token
-- By a person. A name that was used before is refused by its key: what was reviewed under it would be another's.
INSERT INTO api_token (name, token_hash, scopes, expire_at)
VALUES (%(name)s, %(token_hash)s, %(scopes)s, UTC_TIMESTAMP(6) + INTERVAL %(seconds)s SECOND);

-- name: tokens
-- For people; few rows. Whether it is expired is for the database's clock to say.
SELECT id_api_token, name, CONCAT(scopes, '') AS scopes, created_at, expire_at, last_used_at, revoked_at,
       COALESCE(expire_at <= UTC_TIMESTAMP(6), 0) AS is_expired
  FROM api_token ORDER BY id_api_token;

-- name: revoke_token
-- At once for all instances of the web: they ask for the token with each request.
UPDATE api_token SET revoked_at = UTC_TIMESTAMP(6) WHERE name = %(name)s AND revoked_at IS NULL;

-- name: token_of_hash
-- Each request over HTTP, by a unique key. Who has been noted as its last use within a minute is not noted again.
SELECT id_api_token, name, CONCAT(scopes, '') AS scopes,
       COALESCE(last_used_at < UTC_TIMESTAMP(6) - INTERVAL 1 MINUTE, 1) AS is_stale
  FROM api_token
 WHERE token_hash = %(token_hash)s AND revoked_at IS NULL AND (expire_at IS NULL OR expire_at > UTC_TIMESTAMP(6));

-- name: token_of_session
-- Each request of a browser. A session ends with its token.
SELECT t.id_api_token, t.name, CONCAT(t.scopes, '') AS scopes,
       COALESCE(t.last_used_at < UTC_TIMESTAMP(6) - INTERVAL 1 MINUTE, 1) AS is_stale
  FROM web_session s
  JOIN api_token t ON t.id_api_token = s.id_api_token
 WHERE s.session_hash = %(session_hash)s AND s.expire_at > UTC_TIMESTAMP(6)
   AND t.revoked_at IS NULL AND (t.expire_at IS NULL OR t.expire_at > UTC_TIMESTAMP(6));

-- name: note_token_used
-- To the minute: a row that every request wrote would be the busiest of all.
UPDATE api_token SET last_used_at = UTC_TIMESTAMP(6) WHERE id_api_token = %(id_api_token)s;

-- name: insert_session
-- At a login: in the database and not in a process, so that any instance of the web knows it.
INSERT INTO web_session (session_hash, id_api_token, expire_at)
VALUES (%(session_hash)s, %(id_api_token)s, UTC_TIMESTAMP(6) + INTERVAL %(seconds)s SECOND);

-- name: delete_session
-- At a logout: the cookie is of no use from then on, whoever has kept it.
DELETE FROM web_session WHERE session_hash = %(session_hash)s;

-- name: delete_old_sessions
-- At each login, a few at a time.
DELETE FROM web_session WHERE expire_at <= UTC_TIMESTAMP(6) LIMIT 100;

-- name: count_web_failure
-- One statement for a wrong token, which also says how many there were in these ten minutes (none: it was the first). Nothing is counted
-- any more for an address that is over the limit.
INSERT INTO web_failure (address, minute_at, failures)
VALUES (%(address)s, FROM_UNIXTIME(UNIX_TIMESTAMP() DIV 600 * 600), 1)
    ON DUPLICATE KEY UPDATE failures = LAST_INSERT_ID(failures + 1);

-- name: delete_old_web_failures
-- At an address's first failure, a few at a time: this table is for now only.
DELETE FROM web_failure WHERE minute_at < UTC_TIMESTAMP() - INTERVAL 1 HOUR LIMIT 100;


-- name: forget_web_requests
-- A few at a time, with each request that brings a key.
DELETE FROM web_request WHERE expire_at < UTC_TIMESTAMP(6) LIMIT 100;

-- name: insert_web_request
-- Where the key is new; held by nobody yet.
INSERT INTO web_request (id_api_token, idempotency_key, digest, held_until, expire_at)
VALUES (%(id_api_token)s, %(idempotency_key)s, %(digest)s, UTC_TIMESTAMP(6), UTC_TIMESTAMP(6) + INTERVAL %(kept)s SECOND)
    ON DUPLICATE KEY UPDATE id_api_token = web_request.id_api_token;

-- name: lock_web_request
-- How it stands. Free is one that nobody has begun, or whose process has been silent for too long.
SELECT digest, status, headers, body, COALESCE(held_until <= UTC_TIMESTAMP(6), 0) AS is_free
  FROM web_request FORCE INDEX (PRIMARY)
 WHERE id_api_token = %(id_api_token)s AND idempotency_key = %(idempotency_key)s
   FOR UPDATE;

-- name: hold_web_request
-- From here on the same request, sent again, is told to wait.
UPDATE web_request SET held_until = UTC_TIMESTAMP(6) + INTERVAL %(held)s SECOND
 WHERE id_api_token = %(id_api_token)s AND idempotency_key = %(idempotency_key)s;

-- name: end_web_request
-- The answer, for whoever asks again.
UPDATE web_request SET status = %(status)s, headers = %(headers)s, body = %(body)s, held_until = NULL
 WHERE id_api_token = %(id_api_token)s AND idempotency_key = %(idempotency_key)s;

-- name: drop_web_request
-- It came to nothing, and may be made anew; not where another has made it meanwhile.
DELETE FROM web_request
 WHERE id_api_token = %(id_api_token)s AND idempotency_key = %(idempotency_key)s AND status IS NULL;


-- ===== runs that the web asks for =====

-- name: insert_run_request
-- Before its process is started, which reads here what it is to do.
INSERT INTO run_request (id_api_token, filters, max_items, host)
VALUES (%(id_api_token)s, %(filters)s, %(max_items)s, %(host)s);

-- name: note_run_process
-- For people who look for it on that host.
UPDATE run_request SET pid = %(pid)s WHERE id_run_request = %(id_run_request)s;

-- name: begin_run_request
-- By its worker, which has just begun; again when it had to begin anew under another id.
UPDATE run_request SET id_worker = %(id_worker)s, started_at = COALESCE(started_at, UTC_TIMESTAMP(6))
 WHERE id_run_request = %(id_run_request)s;

-- name: end_run_request
-- By the run itself, and by the web where that could not; whoever comes first has said it.
UPDATE run_request
   SET exit_code = %(exit_code)s, summary = %(summary)s, message = %(message)s, ended_at = UTC_TIMESTAMP(6)
 WHERE id_run_request = %(id_run_request)s AND ended_at IS NULL;

-- name: run_request
-- How it stands. Dead is one whose worker has ended without a word or lost its lease, or that was never heard of.
SELECT r.id_run_request, r.filters, r.max_items, r.host, r.pid, r.id_worker, r.exit_code, r.summary, r.message, r.created_at,
       r.started_at, r.ended_at,
       CASE WHEN r.ended_at IS NOT NULL THEN IF(r.exit_code IS NULL, 'died', 'ended')
            WHEN r.id_worker IS NULL AND r.created_at > UTC_TIMESTAMP(6) - INTERVAL 1 MINUTE THEN 'requested'
            WHEN w.ended_at > UTC_TIMESTAMP(6) - INTERVAL 15 SECOND THEN 'running'
            WHEN w.ended_at IS NULL AND w.lease_until >= UTC_TIMESTAMP(6) THEN 'running'
            ELSE 'died' END AS state
  FROM run_request r
  LEFT JOIN worker w ON w.id_worker = r.id_worker
 WHERE r.id_run_request = %(id_run_request)s;


-- ===== pruning: what has ended long ago goes, in small transactions =====
-- Selections read an index alone, without locks; what is then deleted is named by key, locked and looked at again.

-- name: prune_before
-- The end of what goes, by the database's clock, once for a whole run.
SELECT NOW(6) - INTERVAL %(seconds)s SECOND AS age, NOW(6) - INTERVAL %(minutes_seconds)s SECOND AS minutes_age;

-- name: prune_tasks_page
-- Up the key, from the oldest: after a page with none that was made before the time in question comes no other.
SELECT id_task, task_type, created_at < %(before)s AS is_old, status_id IN (2, 3, 5) AND finished_at < %(before)s AS is_over
  FROM task FORCE INDEX (PRIMARY)
 WHERE id_task > %(after)s
 ORDER BY id_task
 LIMIT %(size)s;

-- name: prune_look
-- Whether something still hangs on tasks that have ended. Open items: an application has inserted them since. Whoever waits for a task
-- that is gone waits no more, also where it had failed. A group's callback tells of all its tasks.
SELECT t.id_task,
       t.status_id <> 5 AND (SELECT i.id_task_item FROM task_item i FORCE INDEX (k_task_item_claim)
                              WHERE i.id_task = t.id_task AND i.status_id = 0 LIMIT 1) IS NOT NULL
       OR (SELECT i.id_task_item FROM task_item i FORCE INDEX (k_task_item_claim)
            WHERE i.id_task = t.id_task AND i.status_id = 2 LIMIT 1) IS NOT NULL
       OR t.status_id <> 5 AND (SELECT i.id_task_item FROM task_item i FORCE INDEX (k_task_item_claim)
                                 WHERE i.id_task = t.id_task AND i.status_id = 4 LIMIT 1) IS NOT NULL
       OR (SELECT b.id_batch FROM batch b FORCE INDEX (k_batch_task)
            WHERE b.id_task = t.id_task AND b.ended_at IS NULL LIMIT 1) IS NOT NULL AS is_open,
       (SELECT w.id_task FROM task_dependency d FORCE INDEX (k_task_dependency_after)
          STRAIGHT_JOIN task w FORCE INDEX (PRIMARY) ON w.id_task = d.id_task
         WHERE d.after_id_task = t.id_task AND w.status_id NOT IN (2, 3) LIMIT 1) IS NOT NULL AS is_waited_for,
       (SELECT g.id_task_group FROM task_group g FORCE INDEX (PRIMARY)
         WHERE g.id_task_group = t.id_task_group AND g.ended_at IS NULL) IS NOT NULL AS is_in_open_group,
       (SELECT s.id_task FROM task_source s FORCE INDEX (PRIMARY) WHERE s.id_task = t.id_task) IS NOT NULL AS has_source
  FROM task t FORCE INDEX (PRIMARY)
 WHERE t.id_task IN %(tasks)s;

-- name: prune_items
-- The items of a few tasks, off the claim index alone, in its order.
SELECT id_task, id_task_item
  FROM task_item FORCE INDEX (k_task_item_claim)
 WHERE id_task IN %(tasks)s
 ORDER BY id_task, status_id, id_task_item
 LIMIT %(size)s;

-- name: lock_pruned_items
-- Items first, tasks after them, as in a commit: nobody waits for us while we wait for him. With what the counters are to lose.
SELECT id_task_item, id_task, status_id, tokens_input, tokens_output, cost
  FROM task_item FORCE INDEX (PRIMARY)
 WHERE id_task_item IN %(items)s
 ORDER BY id_task_item
   FOR UPDATE;

-- name: lock_pruned_tasks
-- Those that are still over: whoever brings one back afterwards waits, and finds what is left of it.
SELECT id_task
  FROM task FORCE INDEX (PRIMARY)
 WHERE id_task IN %(tasks)s AND status_id IN (2, 3, 5) AND finished_at < %(before)s
 ORDER BY id_task
   FOR UPDATE;

-- name: paths_of_items
-- Files of theirs that lie in a folder.
SELECT path FROM task_item_file FORCE INDEX (PRIMARY) WHERE id_task_item IN %(items)s AND path IS NOT NULL;

-- name: prune_rejected_facts
-- A fact out of a rejected result is drawn by nobody as long as the item says so, and goes with it. Others are the subject's, and stay.
DELETE f
  FROM JSON_TABLE(%(rows)s, '$[*]' COLUMNS (id BIGINT UNSIGNED PATH '$.id')) r
  STRAIGHT_JOIN task_item i FORCE INDEX (PRIMARY) ON i.id_task_item = r.id AND i.review_status_id = 2
  STRAIGHT_JOIN context_fact f FORCE INDEX (k_context_fact_newest) ON f.context_key = i.context_key AND f.id_task_item = i.id_task_item;

-- name: prune_attempts
-- The ledger of these items; what a model's day has cost stays in ai_model_day.
DELETE a
  FROM JSON_TABLE(%(rows)s, '$[*]' COLUMNS (id BIGINT UNSIGNED PATH '$.id')) r
  STRAIGHT_JOIN task_attempt a FORCE INDEX (k_task_attempt_item) ON a.id_task_item = r.id;

-- name: prune_reviews
-- The history of their reviews.
DELETE v
  FROM JSON_TABLE(%(rows)s, '$[*]' COLUMNS (id BIGINT UNSIGNED PATH '$.id')) r
  STRAIGHT_JOIN task_item_review v FORCE INDEX (k_task_item_review_item) ON v.id_task_item = r.id;

-- name: prune_exports
-- The audit of their exports.
DELETE e
  FROM JSON_TABLE(%(rows)s, '$[*]' COLUMNS (id BIGINT UNSIGNED PATH '$.id')) r
  STRAIGHT_JOIN task_item_export e FORCE INDEX (k_task_item_export_item) ON e.id_task_item = r.id;

-- name: prune_these_items
-- The items themselves, after what hangs on them.
DELETE i
  FROM JSON_TABLE(%(rows)s, '$[*]' COLUMNS (id BIGINT UNSIGNED PATH '$.id')) r
  STRAIGHT_JOIN task_item i FORCE INDEX (PRIMARY) ON i.id_task_item = r.id;

-- name: uncount_pruned
-- The counters of a task that is only half gone say what is left of it: they equal its items at any moment.
UPDATE JSON_TABLE(%(rows)s, '$[*]' COLUMNS (
         id BIGINT UNSIGNED PATH '$.id', processed INT UNSIGNED PATH '$.pr', failed INT UNSIGNED PATH '$.fa',
         tokens_input BIGINT UNSIGNED PATH '$.ti', tokens_output BIGINT UNSIGNED PATH '$.to', cost DECIMAL(18,9) PATH '$.co')) r
STRAIGHT_JOIN task t FORCE INDEX (PRIMARY) ON t.id_task = r.id
   SET t.records_processed = t.records_processed - LEAST(t.records_processed, r.processed),
       t.records_failed = t.records_failed - LEAST(t.records_failed, r.failed),
       t.tokens_input = t.tokens_input - LEAST(t.tokens_input, r.tokens_input),
       t.tokens_output = t.tokens_output - LEAST(t.tokens_output, r.tokens_output),
       t.cost = t.cost - COALESCE(r.cost, 0);

-- name: tasks_without_items
-- Of these the ones that are quite empty.
SELECT t.id_task
  FROM task t FORCE INDEX (PRIMARY)
 WHERE t.id_task IN %(tasks)s
   AND (SELECT i.id_task_item FROM task_item i FORCE INDEX (k_task_item_claim) WHERE i.id_task = t.id_task LIMIT 1) IS NULL;

-- name: prune_fallbacks
-- What belongs to a task alone goes with it.
DELETE f
  FROM JSON_TABLE(%(rows)s, '$[*]' COLUMNS (id BIGINT UNSIGNED PATH '$.id')) r
  STRAIGHT_JOIN task_fallback f FORCE INDEX (PRIMARY) ON f.id_task = r.id;

-- name: prune_dependencies
-- What it had waited for.
DELETE d
  FROM JSON_TABLE(%(rows)s, '$[*]' COLUMNS (id BIGINT UNSIGNED PATH '$.id')) r
  STRAIGHT_JOIN task_dependency d FORCE INDEX (PRIMARY) ON d.id_task = r.id;

-- name: prune_dependents
-- And who had waited for it, and has ended.
DELETE d
  FROM JSON_TABLE(%(rows)s, '$[*]' COLUMNS (id BIGINT UNSIGNED PATH '$.id')) r
  STRAIGHT_JOIN task_dependency d FORCE INDEX (k_task_dependency_after) ON d.after_id_task = r.id;

-- name: prune_sources
-- Where it was imported from.
DELETE s
  FROM JSON_TABLE(%(rows)s, '$[*]' COLUMNS (id BIGINT UNSIGNED PATH '$.id')) r
  STRAIGHT_JOIN task_source s FORCE INDEX (PRIMARY) ON s.id_task = r.id;

-- name: prune_batches
-- Its batches, all of which have ended.
DELETE b
  FROM JSON_TABLE(%(rows)s, '$[*]' COLUMNS (id BIGINT UNSIGNED PATH '$.id')) r
  STRAIGHT_JOIN batch b FORCE INDEX (k_batch_task) ON b.id_task = r.id;

-- name: prune_these_tasks
-- The tasks themselves, last: a run that was cut short finds them again.
DELETE t
  FROM JSON_TABLE(%(rows)s, '$[*]' COLUMNS (id BIGINT UNSIGNED PATH '$.id')) r
  STRAIGHT_JOIN task t FORCE INDEX (PRIMARY) ON t.id_task = r.id;

-- name: prune_count
-- What would go with these tasks: counted off indexes, for --dry-run.
SELECT (SELECT COUNT(*) FROM task_item i FORCE INDEX (k_task_item_claim) WHERE i.id_task IN %(tasks)s) AS task_item,
       (SELECT COUNT(*) FROM task_item i FORCE INDEX (k_task_item_claim)
          STRAIGHT_JOIN task_attempt a FORCE INDEX (k_task_attempt_item) ON a.id_task_item = i.id_task_item
         WHERE i.id_task IN %(tasks)s) AS task_attempt,
       (SELECT COUNT(*) FROM task_item i FORCE INDEX (k_task_item_claim)
          STRAIGHT_JOIN task_item_step s FORCE INDEX (PRIMARY) ON s.id_task_item = i.id_task_item
         WHERE i.id_task IN %(tasks)s) AS task_item_step,
       (SELECT COUNT(*) FROM task_item i FORCE INDEX (k_task_item_claim)
          STRAIGHT_JOIN task_item_file f FORCE INDEX (PRIMARY) ON f.id_task_item = i.id_task_item
         WHERE i.id_task IN %(tasks)s) AS task_item_file,
       (SELECT COUNT(*) FROM task_item i FORCE INDEX (k_task_item_claim)
          STRAIGHT_JOIN task_item_review v FORCE INDEX (k_task_item_review_item) ON v.id_task_item = i.id_task_item
         WHERE i.id_task IN %(tasks)s) AS task_item_review,
       (SELECT COUNT(*) FROM task_item i FORCE INDEX (k_task_item_claim)
          STRAIGHT_JOIN task_item_export e FORCE INDEX (k_task_item_export_item) ON e.id_task_item = i.id_task_item
         WHERE i.id_task IN %(tasks)s) AS task_item_export;

-- name: prune_groups_page
-- Groups that have ended long ago, with all of their tasks gone and nobody to be told of it any more.
SELECT g.id_task_group,
       g.ended_at < %(before)s
       AND (SELECT t.id_task FROM task t FORCE INDEX (k_task_group) WHERE t.id_task_group = g.id_task_group LIMIT 1) IS NULL
       AND (SELECT c.due_at FROM callback c FORCE INDEX (u_callback_group) WHERE c.id_task_group = g.id_task_group) IS NULL AS is_over
  FROM task_group g FORCE INDEX (PRIMARY)
 WHERE g.id_task_group > %(after)s
 ORDER BY g.id_task_group
 LIMIT %(size)s;

-- name: prune_groups
-- Not one that was given a task since the look.
DELETE g
  FROM JSON_TABLE(%(rows)s, '$[*]' COLUMNS (id BIGINT UNSIGNED PATH '$.id')) r
  STRAIGHT_JOIN task_group g FORCE INDEX (PRIMARY) ON g.id_task_group = r.id
  LEFT JOIN task t FORCE INDEX (k_task_group) ON t.id_task_group = g.id_task_group
 WHERE t.id_task IS NULL;

-- name: prune_callbacks
-- Delivered or given up, of groups that are gone by now.
DELETE c
  FROM JSON_TABLE(%(rows)s, '$[*]' COLUMNS (id BIGINT UNSIGNED PATH '$.id')) r
  STRAIGHT_JOIN callback c FORCE INDEX (u_callback_group) ON c.id_task_group = r.id
  LEFT JOIN task_group g FORCE INDEX (PRIMARY) ON g.id_task_group = r.id
 WHERE g.id_task_group IS NULL;

-- name: ended_workers
-- Rows of workers that ended long ago: no item names one of them as its owner, and no lease can come back.
SELECT id_worker FROM worker FORCE INDEX (k_worker_lease) WHERE ended_at < %(before)s ORDER BY ended_at LIMIT %(size)s;

-- name: prune_shares
-- A share counts as long as its worker's lease.
DELETE s
  FROM ai_model m
  STRAIGHT_JOIN ai_model_share s FORCE INDEX (PRIMARY) ON s.id_ai_model = m.id_ai_model
 WHERE s.id_worker IN %(workers)s;

-- name: prune_workers
-- Once what they had counted is added up.
DELETE FROM worker WHERE id_worker IN %(workers)s AND ended_at IS NOT NULL;

-- name: prune_minutes
-- The charts' past, from its beginning.
DELETE FROM worker_minute WHERE minute_at < %(before)s ORDER BY minute_at, id_worker, id_ai_model LIMIT %(size)s;

-- name: prune_sessions
-- Logins that have expired long ago.
DELETE FROM web_session WHERE expire_at < %(before)s ORDER BY expire_at LIMIT %(size)s;

-- name: prune_requests
-- Answers that nobody will ask for again.
DELETE FROM web_request WHERE expire_at < %(before)s ORDER BY expire_at LIMIT %(size)s;

-- name: prune_failures
-- Wrong tokens count for minutes.
DELETE FROM web_failure WHERE minute_at < %(before)s ORDER BY minute_at LIMIT %(size)s;

-- name: prune_tokens
-- Of no use any more since then; few, so that the table is read whole.
DELETE FROM api_token WHERE (revoked_at < %(before)s OR expire_at < %(before)s) LIMIT %(size)s;

-- name: prune_runs
-- What was asked for over HTTP and has ended.
DELETE FROM run_request WHERE ended_at < %(before)s ORDER BY ended_at LIMIT %(size)s;

-- name: prune_dead_runs
-- And what never will: nothing was heard of it since.
DELETE FROM run_request WHERE ended_at IS NULL AND created_at < %(before)s
   AND (id_worker IS NULL OR id_worker NOT IN (SELECT id_worker FROM worker WHERE ended_at IS NULL)) LIMIT %(size)s;

-- name: schedules_with_fires
-- Also those that were removed; the ends of ranges of the key.
SELECT DISTINCT id_schedule FROM schedule_fire;

-- name: prune_fires
-- Of one schedule, but the last that made a task, which the list shows. That a time was fired is only asked while it is due.
DELETE FROM schedule_fire WHERE id_schedule = %(id_schedule)s AND due_at < %(before)s AND due_at < %(last)s ORDER BY due_at LIMIT %(size)s;

-- name: last_fire
-- The last that made a task; without one nothing is kept.
SELECT due_at FROM schedule_fire FORCE INDEX (PRIMARY) WHERE id_schedule = %(id_schedule)s AND id_task IS NOT NULL
 ORDER BY due_at DESC LIMIT 1;

-- name: prune_answers_page
-- Keys of answers, and whether the item that holds them is gone; a walk over the whole of the cache's key.
SELECT c.cache_key, i.id_task_item IS NULL AND c.stored_at < %(before)s AS is_over
  FROM result_cache c FORCE INDEX (PRIMARY)
  LEFT JOIN task_item i FORCE INDEX (PRIMARY) ON i.id_task_item = c.id_task_item
 WHERE c.cache_key > %(after)s
 ORDER BY c.cache_key
 LIMIT %(size)s;

-- name: prune_answers
-- Not one that was found anew since the look.
DELETE c FROM result_cache c FORCE INDEX (PRIMARY) WHERE c.cache_key IN %(keys)s AND c.stored_at < %(before)s;

-- name: prune_attempts_page
-- Attempts at items that are gone, as a person has deleted them: keys begin with the time, and the walk ends at the age.
SELECT a.operation_uuid, i.id_task_item IS NULL AND a.finished_at < %(before)s AS is_over
  FROM task_attempt a FORCE INDEX (PRIMARY)
  LEFT JOIN task_item i FORCE INDEX (PRIMARY) ON i.id_task_item = a.id_task_item
 WHERE a.operation_uuid > %(after)s AND a.operation_uuid < %(until)s
 ORDER BY a.operation_uuid
 LIMIT %(size)s;

-- name: prune_these_attempts
-- Rows of the ledger that no item stands for, by key. By the keys alone, both servers would read a small table whole.
DELETE a FROM task_attempt a FORCE INDEX (PRIMARY) WHERE a.operation_uuid IN %(operations)s AND a.finished_at < %(before)s;

-- name: prune_count_rest
-- What would go of the rest, for --dry-run.
SELECT (SELECT COUNT(*) FROM worker FORCE INDEX (k_worker_lease) WHERE ended_at < %(before)s) AS worker,
       (SELECT COUNT(*) FROM worker_minute WHERE minute_at < %(minutes_before)s) AS worker_minute,
       (SELECT COUNT(*) FROM web_session WHERE expire_at < %(before)s) AS web_session,
       (SELECT COUNT(*) FROM web_request WHERE expire_at < %(before)s) AS web_request,
       (SELECT COUNT(*) FROM web_failure WHERE minute_at < %(before)s) AS web_failure,
       (SELECT COUNT(*) FROM api_token WHERE revoked_at < %(before)s OR expire_at < %(before)s) AS api_token,
       (SELECT COUNT(*) FROM run_request WHERE ended_at < %(before)s) AS run_request,
       (SELECT COUNT(*) FROM schedule_fire f WHERE f.due_at < %(before)s
           AND f.due_at < COALESCE((SELECT MAX(l.due_at) FROM schedule_fire l FORCE INDEX (PRIMARY)
                                     WHERE l.id_schedule = f.id_schedule AND l.id_task IS NOT NULL), %(before)s)) AS schedule_fire;

-- ===== health =====

-- name: server_variables
-- As this session sees them, not as the server was set up: a proxy in between may have swallowed what we asked for.
SHOW SESSION VARIABLES WHERE Variable_name IN
  ('version', 'version_comment', 'transaction_isolation', 'tx_isolation', 'sql_mode', 'max_allowed_packet', 'time_zone',
   'character_set_client', 'autocommit');

-- name: server_cipher
-- Empty when the connection is not encrypted.
SHOW SESSION STATUS WHERE Variable_name = 'Ssl_cipher';

-- name: server_clock
-- UTC, whatever the session's time zone is.
SELECT UTC_TIMESTAMP(6) AS now;

-- name: orphan_tasks
-- The DISTINCT reads only the ends of k_task_item_claim's ranges, so millions of items cost as little as their tasks.
SELECT used.id_task FROM (SELECT DISTINCT id_task FROM task_item) AS used
  LEFT JOIN task ON task.id_task = used.id_task
 WHERE task.id_task IS NULL ORDER BY used.id_task LIMIT 20;
