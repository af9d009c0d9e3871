-- AI Worker: four users who may do what they need and no more. For a DBA to read, adapt and run, after the first `migrate`:
--
--   * replace the passwords;
--   * replace '%' by the hosts that they come from, and add REQUIRE SSL where that is a network;
--   * replace `ai_worker.` by the database's name, if it is another one.
--
-- Every statement may be repeated. A test runs each user's verbs with these very grants, on MySQL and on MariaDB.
--
-- Not here: the person who runs `ai-worker migrate`, `model add`, `rekey` and the like needs a user with all rights on the
-- database, which no machine that only works has to know.

-- ===== ai_worker: the workers (`ai-worker daemon`, `run`) =====

CREATE USER IF NOT EXISTS ai_worker@'%' IDENTIFIED BY 'CHANGE-ME-worker-1';

GRANT SELECT ON ai_worker.schema_migration TO ai_worker@'%';
GRANT SELECT ON ai_worker.task_status TO ai_worker@'%';
GRANT SELECT ON ai_worker.task_item_status TO ai_worker@'%';
GRANT SELECT ON ai_worker.review_status TO ai_worker@'%';
-- It reads the encrypted keys, but can only stop a model and let it go again.
GRANT SELECT, UPDATE (stopped_kind, stopped_reason, stopped_at, probe_at) ON ai_worker.ai_model TO ai_worker@'%';
-- What a task is for stays as the application wrote it; so does every item's original text.
GRANT SELECT, UPDATE (status_id, status_reason, started_at, finished_at, records_processed, records_failed,
                      tokens_input, tokens_output, cost, resume_at, id_prompt, expire_at) ON ai_worker.task TO ai_worker@'%';
GRANT SELECT ON ai_worker.task_fallback TO ai_worker@'%';
GRANT SELECT, UPDATE (status_id, attempt, lost_count, id_worker, claim_token, available_at, finished_at, tokens_input, tokens_output,
                      cost, error_kind, error_message, text_corrected, change_summary, result, reserved, id_ai_model, refused, is_single,
                      steps_done, steps_total)
  ON ai_worker.task_item TO ai_worker@'%';
-- The ledger is written, not changed; an attempt that was booked as lost is replaced when its result comes after all.
GRANT SELECT, INSERT, DELETE ON ai_worker.task_attempt TO ai_worker@'%';
GRANT SELECT, INSERT, UPDATE ON ai_worker.worker TO ai_worker@'%';
-- What the fleet shares: limits, what a day has cost, answers, batches.
GRANT SELECT, INSERT, UPDATE ON ai_worker.ai_model_pace TO ai_worker@'%';
GRANT SELECT, INSERT, UPDATE, DELETE ON ai_worker.ai_model_share TO ai_worker@'%';
GRANT SELECT, INSERT, UPDATE ON ai_worker.ai_model_day TO ai_worker@'%';
GRANT SELECT, INSERT, UPDATE, DELETE ON ai_worker.result_cache TO ai_worker@'%';
GRANT SELECT, INSERT, UPDATE ON ai_worker.batch TO ai_worker@'%';
-- The prompts that ship with the program are made known to all; steps, files and facts are results.
GRANT SELECT, INSERT ON ai_worker.prompt TO ai_worker@'%';
GRANT SELECT, INSERT, UPDATE, DELETE ON ai_worker.task_item_step TO ai_worker@'%';
GRANT SELECT, INSERT, UPDATE, DELETE ON ai_worker.task_item_file TO ai_worker@'%';
GRANT SELECT, INSERT ON ai_worker.context_fact TO ai_worker@'%';
GRANT SELECT ON ai_worker.task_item_review TO ai_worker@'%';
GRANT SELECT, UPDATE (paced_until) ON ai_worker.queue_limit TO ai_worker@'%';
GRANT SELECT, INSERT ON ai_worker.task_dependency TO ai_worker@'%';
GRANT SELECT, UPDATE (ended_at) ON ai_worker.task_group TO ai_worker@'%';
GRANT SELECT, INSERT, UPDATE ON ai_worker.callback TO ai_worker@'%';
-- A schedule that is due makes a task with its items.
GRANT SELECT, UPDATE (next_at, message) ON ai_worker.schedule TO ai_worker@'%';
GRANT SELECT, INSERT ON ai_worker.schedule_fire TO ai_worker@'%';
GRANT INSERT ON ai_worker.task TO ai_worker@'%';
GRANT INSERT ON ai_worker.task_item TO ai_worker@'%';
-- What it counts: its own rows only; at its end its counters are added to those of workers that are no longer there.
GRANT SELECT, INSERT, UPDATE ON ai_worker.worker_minute TO ai_worker@'%';
GRANT SELECT, INSERT, UPDATE, DELETE ON ai_worker.worker_counter TO ai_worker@'%';
-- `ai-worker run` on behalf of the web.
GRANT SELECT, UPDATE (id_worker, exit_code, summary, message, started_at, ended_at) ON ai_worker.run_request TO ai_worker@'%';

-- ===== ai_worker_web: what a person may do with tasks (the web; `ai-worker status`, `results`, `retry`, `pause`, …) =====

CREATE USER IF NOT EXISTS ai_worker_web@'%' IDENTIFIED BY 'CHANGE-ME-web-1';

GRANT SELECT ON ai_worker.schema_migration TO ai_worker_web@'%';
GRANT SELECT ON ai_worker.task_status TO ai_worker_web@'%';
GRANT SELECT ON ai_worker.task_item_status TO ai_worker_web@'%';
GRANT SELECT ON ai_worker.review_status TO ai_worker_web@'%';
-- All of a model but its key.
GRANT SELECT (id_ai_model, name, provider, model, base_url, options, max_requests_per_minute, max_tokens_per_minute, max_in_flight,
              price_input, price_cached, price_output, budget_per_day, is_active, stopped_kind, stopped_reason, stopped_at, probe_at,
              created_at)
  ON ai_worker.ai_model TO ai_worker_web@'%';
GRANT SELECT, INSERT, UPDATE (status_id, status_reason, priority, scheduled_at, finished_at, records_failed, resume_at, budget, expire_at)
  ON ai_worker.task TO ai_worker_web@'%';
-- It brings items back and reviews them; it does not write results.
GRANT SELECT, INSERT, UPDATE (status_id, attempt, lost_count, refused, is_single, claim_token, available_at, finished_at, error_kind, error_message,
                              review_status_id, text_reviewed, reviewed_by, reviewed_at) ON ai_worker.task_item TO ai_worker_web@'%';
GRANT SELECT, INSERT ON ai_worker.task_fallback TO ai_worker_web@'%';
GRANT SELECT ON ai_worker.task_attempt TO ai_worker_web@'%';
GRANT SELECT ON ai_worker.ai_model_pace TO ai_worker_web@'%';
GRANT SELECT ON ai_worker.ai_model_share TO ai_worker_web@'%';
GRANT SELECT ON ai_worker.ai_model_day TO ai_worker_web@'%';
GRANT SELECT ON ai_worker.batch TO ai_worker_web@'%';
GRANT SELECT ON ai_worker.worker TO ai_worker_web@'%';
GRANT SELECT ON ai_worker.prompt TO ai_worker_web@'%';
GRANT SELECT ON ai_worker.task_item_step TO ai_worker_web@'%';
GRANT SELECT ON ai_worker.task_item_file TO ai_worker_web@'%';
GRANT SELECT ON ai_worker.context_fact TO ai_worker_web@'%';
GRANT SELECT, INSERT ON ai_worker.task_item_review TO ai_worker_web@'%';
GRANT SELECT, INSERT ON ai_worker.task_item_export TO ai_worker_web@'%';
GRANT SELECT, INSERT, UPDATE ON ai_worker.task_source TO ai_worker_web@'%';
GRANT SELECT, INSERT ON ai_worker.task_dependency TO ai_worker_web@'%';
GRANT SELECT (id_task_group, name, callback_url, created_at, closed_at, ended_at), INSERT, UPDATE (closed_at)
  ON ai_worker.task_group TO ai_worker_web@'%';
GRANT SELECT ON ai_worker.callback TO ai_worker_web@'%';
GRANT SELECT ON ai_worker.queue_limit TO ai_worker_web@'%';
GRANT SELECT ON ai_worker.schedule TO ai_worker_web@'%';
GRANT SELECT ON ai_worker.schedule_fire TO ai_worker_web@'%';
-- It knows tokens by their hashes, and cannot make any.
GRANT SELECT, UPDATE (last_used_at) ON ai_worker.api_token TO ai_worker_web@'%';
GRANT SELECT, INSERT, DELETE ON ai_worker.web_session TO ai_worker_web@'%';
GRANT SELECT, INSERT, UPDATE, DELETE ON ai_worker.web_request TO ai_worker_web@'%';
GRANT SELECT, INSERT, UPDATE, DELETE ON ai_worker.web_failure TO ai_worker_web@'%';
GRANT SELECT, INSERT, UPDATE ON ai_worker.run_request TO ai_worker_web@'%';
GRANT SELECT ON ai_worker.worker_minute TO ai_worker_web@'%';
GRANT SELECT ON ai_worker.worker_counter TO ai_worker_web@'%';

-- ===== ai_worker_app: the application that inserts rows and reads results =====

CREATE USER IF NOT EXISTS ai_worker_app@'%' IDENTIFIED BY 'CHANGE-ME-app-1';

GRANT SELECT ON ai_worker.schema_migration TO ai_worker_app@'%';
GRANT SELECT ON ai_worker.task_status TO ai_worker_app@'%';
GRANT SELECT ON ai_worker.task_item_status TO ai_worker_app@'%';
GRANT SELECT ON ai_worker.review_status TO ai_worker_app@'%';
-- Enough to choose a model by its name, and to see whether it has been stopped.
GRANT SELECT (id_ai_model, name, provider, model, is_active, stopped_kind, stopped_reason, stopped_at)
  ON ai_worker.ai_model TO ai_worker_app@'%';
-- It can say what is to be done, and cannot say that it was done. The Python client writes a task under an id that it reserved.
GRANT SELECT, INSERT (id_task, id_ai_model, task_type, description, parameters, priority, scheduled_at, max_attempts, submit_key,
                      lane, pack, cache_seconds, budget, queue, id_prompt, id_task_group, result_seconds, personal_data)
  ON ai_worker.task TO ai_worker_app@'%';
GRANT SELECT ON ai_worker.prompt TO ai_worker_app@'%';
GRANT SELECT, INSERT ON ai_worker.task_fallback TO ai_worker_app@'%';
GRANT SELECT, INSERT (id_task, text_original, context, context_key, external_key) ON ai_worker.task_item TO ai_worker_app@'%';
GRANT SELECT, INSERT ON ai_worker.task_dependency TO ai_worker_app@'%';
GRANT SELECT (id_task_group, name, callback_url, created_at, closed_at, ended_at), INSERT (name, callback_url), UPDATE (closed_at)
  ON ai_worker.task_group TO ai_worker_app@'%';
GRANT SELECT ON ai_worker.callback TO ai_worker_app@'%';
GRANT SELECT, INSERT (context_key, fact), DELETE ON ai_worker.context_fact TO ai_worker_app@'%';
GRANT SELECT ON ai_worker.task_item_step TO ai_worker_app@'%';
GRANT SELECT ON ai_worker.task_item_file TO ai_worker_app@'%';

-- ===== ai_worker_prune: the machine that deletes what ended long ago (`ai-worker prune`, and nothing else) =====

CREATE USER IF NOT EXISTS ai_worker_prune@'%' IDENTIFIED BY 'CHANGE-ME-prune-1';

GRANT SELECT ON ai_worker.schema_migration TO ai_worker_prune@'%';
GRANT SELECT (id_ai_model) ON ai_worker.ai_model TO ai_worker_prune@'%';
-- It deletes whole rows. Of what is left of a task it changes the counters alone.
GRANT SELECT, DELETE, UPDATE (records_processed, records_failed, tokens_input, tokens_output, cost) ON ai_worker.task TO ai_worker_prune@'%';
GRANT SELECT, DELETE ON ai_worker.task_item TO ai_worker_prune@'%';
GRANT SELECT, DELETE ON ai_worker.task_item_step TO ai_worker_prune@'%';
GRANT SELECT (id_task_item, position, path), DELETE ON ai_worker.task_item_file TO ai_worker_prune@'%';
GRANT SELECT, DELETE ON ai_worker.task_item_review TO ai_worker_prune@'%';
GRANT SELECT, DELETE ON ai_worker.task_item_export TO ai_worker_prune@'%';
GRANT SELECT, DELETE ON ai_worker.task_attempt TO ai_worker_prune@'%';
GRANT SELECT, DELETE ON ai_worker.task_fallback TO ai_worker_prune@'%';
GRANT SELECT, DELETE ON ai_worker.task_dependency TO ai_worker_prune@'%';
GRANT SELECT (id_task), DELETE ON ai_worker.task_source TO ai_worker_prune@'%';
GRANT SELECT, DELETE ON ai_worker.batch TO ai_worker_prune@'%';
GRANT SELECT (id_task_group, ended_at), DELETE ON ai_worker.task_group TO ai_worker_prune@'%';
GRANT SELECT (id_callback, id_task_group, due_at), DELETE ON ai_worker.callback TO ai_worker_prune@'%';
GRANT SELECT (id_context_fact, context_key, id_task_item), DELETE ON ai_worker.context_fact TO ai_worker_prune@'%';
GRANT SELECT, DELETE ON ai_worker.result_cache TO ai_worker_prune@'%';
GRANT SELECT, DELETE ON ai_worker.schedule_fire TO ai_worker_prune@'%';
GRANT SELECT, DELETE ON ai_worker.worker TO ai_worker_prune@'%';
GRANT SELECT, DELETE ON ai_worker.ai_model_share TO ai_worker_prune@'%';
GRANT SELECT, DELETE ON ai_worker.worker_minute TO ai_worker_prune@'%';
-- What old workers have counted is added up, not lost.
GRANT SELECT, INSERT, UPDATE, DELETE ON ai_worker.worker_counter TO ai_worker_prune@'%';
-- No token, session or answer can it read.
GRANT SELECT (id_api_token, expire_at, revoked_at), DELETE ON ai_worker.api_token TO ai_worker_prune@'%';
GRANT SELECT (id_api_token, expire_at), DELETE ON ai_worker.web_session TO ai_worker_prune@'%';
GRANT SELECT (id_api_token, idempotency_key, expire_at), DELETE ON ai_worker.web_request TO ai_worker_prune@'%';
GRANT SELECT, DELETE ON ai_worker.web_failure TO ai_worker_prune@'%';
GRANT SELECT (id_run_request, id_worker, created_at, ended_at), DELETE ON ai_worker.run_request TO ai_worker_prune@'%';
