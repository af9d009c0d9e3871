-- AI Worker: the whole present schema in one piece, for reading and for a new database.
-- A test proves it equal to what the files in migrations/ make one after the other; those are what `ai-worker migrate` applies.
-- Runs unchanged on MySQL 8.0.19+ and MariaDB 10.6+. All times are UTC, from the server's own clock.

CREATE TABLE schema_migration (
  version    INT UNSIGNED NOT NULL,
  name       VARCHAR(100) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  -- SHA-256 of the file, in hex; NULL after the plain client applied it, until `ai-worker migrate` has compared it.
  checksum   CHAR(64) CHARACTER SET ascii COLLATE ascii_bin NULL,
  applied_at DATETIME(6) NOT NULL DEFAULT (UTC_TIMESTAMP(6)),
  -- Programs written for the schema of this version, or a later one, can work with what this migration made.
  compatible_from INT UNSIGNED NOT NULL DEFAULT 1,
  PRIMARY KEY (version)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_unicode_520_ci;

CREATE TABLE task_status (
  status_id TINYINT UNSIGNED NOT NULL,
  name      VARCHAR(20) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  PRIMARY KEY (status_id),
  UNIQUE KEY u_task_status_name (name)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_unicode_520_ci;

INSERT INTO task_status (status_id, name) VALUES
  (0, 'NEW'), (1, 'IN_PROGRESS'), (2, 'COMPLETED'), (3, 'ERROR'), (4, 'PAUSED'), (5, 'CANCELLED');

CREATE TABLE task_item_status (
  status_id TINYINT UNSIGNED NOT NULL,
  name      VARCHAR(20) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  PRIMARY KEY (status_id),
  UNIQUE KEY u_task_item_status_name (name)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_unicode_520_ci;

INSERT INTO task_item_status (status_id, name) VALUES
  (0, 'PENDING'), (1, 'PROCESSED'), (2, 'IN_PROGRESS'), (3, 'ERROR'), (4, 'DEFERRED'), (5, 'CANCELLED');

CREATE TABLE review_status (
  status_id TINYINT UNSIGNED NOT NULL,
  name      VARCHAR(20) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  PRIMARY KEY (status_id),
  UNIQUE KEY u_review_status_name (name)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_unicode_520_ci;

INSERT INTO review_status (status_id, name) VALUES (0, 'UNREVIEWED'), (1, 'ACCEPTED'), (2, 'REJECTED');

CREATE TABLE ai_model (
  id_ai_model             INT UNSIGNED NOT NULL AUTO_INCREMENT,
  name                    VARCHAR(100) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
  provider                VARCHAR(50) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  model                   VARCHAR(200) NULL,
  base_url                VARCHAR(500) NULL,
  api_key_encrypted       VARBINARY(2048) NULL,
  options                 JSON NULL,
  max_requests_per_minute INT UNSIGNED NULL,
  max_tokens_per_minute   INT UNSIGNED NULL,
  max_in_flight           INT UNSIGNED NULL,
  price_input             DECIMAL(14,6) NULL,
  price_cached            DECIMAL(14,6) NULL,
  price_output            DECIMAL(14,6) NULL,
  is_active               TINYINT UNSIGNED NOT NULL DEFAULT 1,
  stopped_kind            VARCHAR(32) CHARACTER SET ascii COLLATE ascii_bin NULL,
  stopped_reason          VARCHAR(1000) NULL,
  stopped_at              DATETIME(6) NULL,
  probe_at                DATETIME(6) NULL,
  created_at              DATETIME(6) NOT NULL DEFAULT (UTC_TIMESTAMP(6)),
  budget_per_day          DECIMAL(18,9) NULL,
  PRIMARY KEY (id_ai_model),
  UNIQUE KEY u_ai_model_name (name),
  CONSTRAINT c_ai_model_active CHECK (is_active IN (0, 1)),
  -- A stopped model always says why, since when, and when it will be tried again.
  CONSTRAINT c_ai_model_stopped CHECK (
    (stopped_at IS NULL AND stopped_kind IS NULL AND stopped_reason IS NULL AND probe_at IS NULL)
    OR (stopped_at IS NOT NULL AND stopped_kind IS NOT NULL AND stopped_reason IS NOT NULL AND probe_at IS NOT NULL)),
  CONSTRAINT c_ai_model_budget CHECK (budget_per_day > 0)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_unicode_520_ci;

CREATE TABLE task (
  id_task           BIGINT UNSIGNED NOT NULL AUTO_INCREMENT,
  id_ai_model       INT UNSIGNED NOT NULL,
  task_type         VARCHAR(50) CHARACTER SET ascii COLLATE ascii_bin NOT NULL DEFAULT 'correction',
  description       TEXT NULL,
  parameters        JSON NULL,
  status_id         TINYINT UNSIGNED NOT NULL DEFAULT 0,
  status_reason     VARCHAR(500) NULL,
  priority          SMALLINT NOT NULL DEFAULT 0,
  -- The claim reads "highest priority first, then oldest" off an ascending index, also where descending ones are ignored.
  claim_order       SMALLINT GENERATED ALWAYS AS (-priority) STORED,
  scheduled_at      DATETIME(6) NULL,
  max_attempts      TINYINT UNSIGNED NOT NULL DEFAULT 3,
  submit_key        VARCHAR(190) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NULL,
  records_processed INT UNSIGNED NOT NULL DEFAULT 0,
  records_failed    INT UNSIGNED NOT NULL DEFAULT 0,
  tokens_input      BIGINT UNSIGNED NOT NULL DEFAULT 0,
  tokens_output     BIGINT UNSIGNED NOT NULL DEFAULT 0,
  cost              DECIMAL(18,9) NULL,
  created_at        DATETIME(6) NOT NULL DEFAULT (UTC_TIMESTAMP(6)),
  started_at        DATETIME(6) NULL,
  finished_at       DATETIME(6) NULL,
  lane              VARCHAR(10) CHARACTER SET ascii COLLATE ascii_bin NOT NULL DEFAULT 'online',
  pack              TINYINT UNSIGNED NOT NULL DEFAULT 1,
  cache_seconds     INT UNSIGNED NOT NULL DEFAULT 2592000,
  budget            DECIMAL(18,9) NULL,
  resume_at         DATETIME(6) NULL,
  queue             VARCHAR(50) CHARACTER SET ascii COLLATE ascii_bin NOT NULL DEFAULT 'default',
  id_prompt         INT UNSIGNED NULL,
  id_task_group     INT UNSIGNED NULL,
  result_seconds    INT UNSIGNED NULL,
  expire_at         DATETIME(6) NULL,
  -- Nothing for a task of no group, whose place in the index then stays the same when it ends.
  ended_in_group    TINYINT UNSIGNED GENERATED ALWAYS AS (IF(id_task_group IS NULL, NULL, finished_at IS NOT NULL)) STORED,
  -- No CHECK: one would have copied the table when the column was added.
  personal_data     ENUM('off', 'mask', 'block') CHARACTER SET ascii COLLATE ascii_general_ci NOT NULL DEFAULT 'off',
  PRIMARY KEY (id_task),
  UNIQUE KEY u_task_submit_key (submit_key),
  KEY k_task_model (id_ai_model),
  KEY k_task_runnable (status_id, claim_order, id_task, queue),
  KEY k_task_group (id_task_group, ended_in_group),
  KEY k_task_expire (expire_at),
  CONSTRAINT f_task_ai_model FOREIGN KEY (id_ai_model) REFERENCES ai_model (id_ai_model),
  CONSTRAINT f_task_status FOREIGN KEY (status_id) REFERENCES task_status (status_id),
  CONSTRAINT c_task_priority CHECK (priority > -32768),
  CONSTRAINT c_task_max_attempts CHECK (max_attempts >= 1),
  -- COMPLETED and ERROR are ends; NEW and IN_PROGRESS are not; a paused or cancelled task may still have items in flight.
  CONSTRAINT c_task_finished CHECK (
    (status_id IN (2, 3) AND finished_at IS NOT NULL)
    OR (status_id IN (0, 1, 4) AND finished_at IS NULL)
    OR status_id = 5),
  CONSTRAINT c_task_lane CHECK (lane IN ('online', 'flex', 'batch')),
  CONSTRAINT c_task_pack CHECK (pack BETWEEN 1 AND 100),
  CONSTRAINT c_task_budget CHECK (budget > 0)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_unicode_520_ci;

-- No foreign key to `task` or `worker`: checking one takes a shared lock on the parent row, which would make every INSERT of
-- an application wait for the commit that is updating the task's counters, and every claim wait for the heartbeat.
-- No foreign key to `task_item_status`: a CHECK says the same without a lookup at each change of status.
CREATE TABLE task_item (
  id_task_item     BIGINT UNSIGNED NOT NULL AUTO_INCREMENT,
  id_task          BIGINT UNSIGNED NOT NULL,
  status_id        TINYINT UNSIGNED NOT NULL DEFAULT 0,
  attempt          SMALLINT UNSIGNED NOT NULL DEFAULT 0,
  lost_count       SMALLINT UNSIGNED NOT NULL DEFAULT 0,
  review_status_id TINYINT UNSIGNED NOT NULL DEFAULT 0,
  id_worker        BIGINT UNSIGNED NULL,
  claim_token      BINARY(16) NULL,
  available_at     DATETIME(6) NULL,
  tokens_input     INT UNSIGNED NOT NULL DEFAULT 0,
  tokens_output    INT UNSIGNED NOT NULL DEFAULT 0,
  cost             DECIMAL(18,9) NULL,
  created_at       DATETIME(6) NOT NULL DEFAULT (UTC_TIMESTAMP(6)),
  finished_at      DATETIME(6) NULL,
  external_key     VARCHAR(190) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NULL,
  error_kind       VARCHAR(32) CHARACTER SET ascii COLLATE ascii_bin NULL,
  error_message    VARCHAR(1000) NULL,
  text_original    MEDIUMTEXT NOT NULL,
  context          JSON NULL,
  text_corrected   MEDIUMTEXT NULL,
  change_summary   TEXT NULL,
  result           JSON NULL,
  reserved         DECIMAL(18,9) NULL,
  id_ai_model      INT UNSIGNED NULL,
  refused          TINYINT UNSIGNED NOT NULL DEFAULT 0,
  is_single        TINYINT UNSIGNED NOT NULL DEFAULT 0,
  context_key      VARCHAR(190) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NULL,
  steps_done       SMALLINT UNSIGNED NOT NULL DEFAULT 0,
  steps_total      SMALLINT UNSIGNED NOT NULL DEFAULT 1,
  text_reviewed    MEDIUMTEXT NULL,
  reviewed_by      VARCHAR(190) NULL,
  reviewed_at      DATETIME(6) NULL,
  PRIMARY KEY (id_task_item),
  KEY k_task_item_claim (id_task, status_id, id_task_item),
  KEY k_task_item_due (available_at),
  KEY k_task_item_context (context_key, id_task_item),
  CONSTRAINT c_task_item_status CHECK (status_id <= 5),
  CONSTRAINT c_task_item_review CHECK (review_status_id <= 2),
  -- In progress means: owned by a worker, under a claim, in an attempt; and nothing else is owned.
  CONSTRAINT c_task_item_owner CHECK (
    (status_id = 2 AND id_worker IS NOT NULL AND claim_token IS NOT NULL AND attempt > 0)
    OR (status_id <> 2 AND id_worker IS NULL)),
  -- Only deferred rows carry a due time, so that the due index holds nothing else.
  CONSTRAINT c_task_item_due CHECK ((status_id = 4) = (available_at IS NOT NULL)),
  CONSTRAINT c_task_item_finished CHECK (status_id NOT IN (1, 3) OR finished_at IS NOT NULL),
  CONSTRAINT c_task_item_lost CHECK (lost_count <= attempt)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_unicode_520_ci;

-- The ledger: one row per attempt that ended, with what it cost. It outlives the item, so no foreign key.
CREATE TABLE task_attempt (
  operation_uuid   BINARY(16) NOT NULL,
  id_task          BIGINT UNSIGNED NOT NULL,
  id_task_item     BIGINT UNSIGNED NOT NULL,
  attempt          SMALLINT UNSIGNED NOT NULL,
  id_worker        BIGINT UNSIGNED NULL,
  id_ai_model      INT UNSIGNED NOT NULL,
  outcome          VARCHAR(16) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  error_kind       VARCHAR(32) CHARACTER SET ascii COLLATE ascii_bin NULL,
  error_message    VARCHAR(1000) NULL,
  tokens_input     INT UNSIGNED NOT NULL DEFAULT 0,
  tokens_output    INT UNSIGNED NOT NULL DEFAULT 0,
  tokens_cached    INT UNSIGNED NOT NULL DEFAULT 0,
  tokens_reasoning INT UNSIGNED NOT NULL DEFAULT 0,
  cost             DECIMAL(18,9) NULL,
  latency_ms       INT UNSIGNED NULL,
  finished_at      DATETIME(6) NOT NULL DEFAULT (UTC_TIMESTAMP(6)),
  lane             VARCHAR(10) CHARACTER SET ascii COLLATE ascii_bin NOT NULL DEFAULT 'online',
  step             SMALLINT UNSIGNED NULL,
  PRIMARY KEY (operation_uuid),
  KEY k_task_attempt_item (id_task_item),
  CONSTRAINT c_task_attempt_outcome CHECK (outcome IN ('processed', 'retry', 'failed', 'postponed', 'lost'))
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_unicode_520_ci;

CREATE TABLE worker (
  id_worker       BIGINT UNSIGNED NOT NULL AUTO_INCREMENT,
  host            VARCHAR(255) NOT NULL,
  pid             INT UNSIGNED NOT NULL,
  version         VARCHAR(50) NOT NULL,
  mode            VARCHAR(10) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  concurrency     INT UNSIGNED NOT NULL,
  in_flight       INT UNSIGNED NOT NULL DEFAULT 0,
  items_processed BIGINT UNSIGNED NOT NULL DEFAULT 0,
  items_failed    BIGINT UNSIGNED NOT NULL DEFAULT 0,
  started_at      DATETIME(6) NOT NULL DEFAULT (UTC_TIMESTAMP(6)),
  heartbeat_at    DATETIME(6) NOT NULL DEFAULT (UTC_TIMESTAMP(6)),
  lease_until     DATETIME(6) NOT NULL,
  lost_at         DATETIME(6) NULL,
  ended_at        DATETIME(6) NULL,
  draining_at     DATETIME(6) NULL,
  PRIMARY KEY (id_worker),
  KEY k_worker_lease (ended_at, lease_until)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_unicode_520_ci;

-- The further models of a task, in order: tried when those before them are stopped or have refused an item.
CREATE TABLE task_fallback (
  id_task     BIGINT UNSIGNED NOT NULL,
  position    TINYINT UNSIGNED NOT NULL,
  id_ai_model INT UNSIGNED NOT NULL,
  PRIMARY KEY (id_task, position),
  KEY k_task_fallback_model (id_ai_model),
  CONSTRAINT f_task_fallback_ai_model FOREIGN KEY (id_ai_model) REFERENCES ai_model (id_ai_model),
  CONSTRAINT c_task_fallback_position CHECK (position >= 1)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_unicode_520_ci;

-- The fleet's sending time of a model: leased up to `paced_until`. Beside `ai_model`, whose rows every INSERT of a task locks.
CREATE TABLE ai_model_pace (
  id_ai_model         INT UNSIGNED NOT NULL,
  paced_until         DATETIME(6) NOT NULL DEFAULT (UTC_TIMESTAMP(6)),
  requests_per_minute INT UNSIGNED NULL,
  tokens_per_minute   INT UNSIGNED NULL,
  growth              DOUBLE NOT NULL DEFAULT 0,
  slowed_at           DATETIME(6) NULL,
  PRIMARY KEY (id_ai_model)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_unicode_520_ci;

-- How many of a model's calls in flight each worker may have; a row counts as long as its worker's lease.
CREATE TABLE ai_model_share (
  id_ai_model INT UNSIGNED NOT NULL,
  id_worker   BIGINT UNSIGNED NOT NULL,
  wanted      INT UNSIGNED NOT NULL,
  granted     INT UNSIGNED NOT NULL,
  PRIMARY KEY (id_ai_model, id_worker)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_unicode_520_ci;

-- What a model has used per UTC day, in sixteen parts, so that the fleet's commits do not queue for one row.
CREATE TABLE ai_model_day (
  id_ai_model      INT UNSIGNED NOT NULL,
  day              DATE NOT NULL,
  shard            TINYINT UNSIGNED NOT NULL,
  attempts         INT UNSIGNED NOT NULL DEFAULT 0,
  tokens_input     BIGINT UNSIGNED NOT NULL DEFAULT 0,
  tokens_output    BIGINT UNSIGNED NOT NULL DEFAULT 0,
  tokens_cached    BIGINT UNSIGNED NOT NULL DEFAULT 0,
  tokens_reasoning BIGINT UNSIGNED NOT NULL DEFAULT 0,
  cost             DECIMAL(18,9) NULL,
  PRIMARY KEY (id_ai_model, day, shard)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_unicode_520_ci;

-- Which item holds the answer to a piece of work, or is just getting it.
CREATE TABLE result_cache (
  cache_key    BINARY(32) NOT NULL,
  id_task_item BIGINT UNSIGNED NOT NULL,
  id_worker    BIGINT UNSIGNED NULL,
  stored_at    DATETIME(6) NULL,
  PRIMARY KEY (cache_key),
  -- In flight with an owner, or stored without one.
  CONSTRAINT c_result_cache_owner CHECK ((stored_at IS NULL) = (id_worker IS NOT NULL))
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_unicode_520_ci;

-- What was handed in at a provider's batch API. Its items belong to a `worker` row of mode `batch`, under whose lease they stand.
CREATE TABLE batch (
  id_batch          BIGINT UNSIGNED NOT NULL AUTO_INCREMENT,
  batch_key         CHAR(36) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  id_task           BIGINT UNSIGNED NOT NULL,
  id_ai_model       INT UNSIGNED NOT NULL,
  id_worker         BIGINT UNSIGNED NOT NULL,
  state             VARCHAR(16) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  provider_batch_id VARCHAR(255) CHARACTER SET ascii COLLATE ascii_bin NULL,
  items             INT UNSIGNED NOT NULL DEFAULT 0,
  failures          SMALLINT UNSIGNED NOT NULL DEFAULT 0,
  message           VARCHAR(1000) NULL,
  id_holder         BIGINT UNSIGNED NULL,
  held_until        DATETIME(6) NULL,
  poll_at           DATETIME(6) NOT NULL DEFAULT (UTC_TIMESTAMP(6)),
  created_at        DATETIME(6) NOT NULL DEFAULT (UTC_TIMESTAMP(6)),
  submitted_at      DATETIME(6) NULL,
  cancelled_at      DATETIME(6) NULL,
  ended_at          DATETIME(6) NULL,
  PRIMARY KEY (id_batch),
  UNIQUE KEY u_batch_key (batch_key),
  KEY k_batch_open (ended_at, poll_at),
  KEY k_batch_task (id_task),
  CONSTRAINT c_batch_state CHECK (state IN ('collecting', 'submitting', 'submitted', 'storing', 'done')),
  CONSTRAINT c_batch_submitted CHECK (state NOT IN ('submitted', 'storing') OR provider_batch_id IS NOT NULL),
  CONSTRAINT c_batch_holder CHECK ((id_holder IS NULL) = (held_until IS NULL)),
  CONSTRAINT c_batch_ended CHECK ((state = 'done') = (ended_at IS NOT NULL))
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_unicode_520_ci;

CREATE TABLE prompt (
  id_prompt  INT UNSIGNED NOT NULL AUTO_INCREMENT,
  name       VARCHAR(50) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  version    INT UNSIGNED NOT NULL,
  origin     VARCHAR(10) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  -- A team's own goes before what ships with the program: 2 pushed, 1 from a folder, 0 shipped.
  precedence TINYINT UNSIGNED GENERATED ALWAYS AS (CASE origin WHEN 'pushed' THEN 2 WHEN 'folder' THEN 1 ELSE 0 END) STORED,
  is_active  TINYINT UNSIGNED NOT NULL DEFAULT 1,
  digest     BINARY(32) NOT NULL,
  source     MEDIUMTEXT NOT NULL,
  created_by VARCHAR(190) NULL,
  created_at DATETIME(6) NOT NULL DEFAULT (UTC_TIMESTAMP(6)),
  PRIMARY KEY (id_prompt),
  UNIQUE KEY u_prompt_digest (name, origin, digest),
  KEY k_prompt_current (name, is_active, precedence, id_prompt),
  CONSTRAINT c_prompt_origin CHECK (origin IN ('shipped', 'folder', 'pushed')),
  CONSTRAINT c_prompt_active CHECK (is_active IN (0, 1))
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_unicode_520_ci;

CREATE TABLE task_item_step (
  id_task_item   BIGINT UNSIGNED NOT NULL,
  step           SMALLINT UNSIGNED NOT NULL,
  part           SMALLINT UNSIGNED NOT NULL DEFAULT 0,
  digest         BINARY(32) NOT NULL,
  operation_uuid BINARY(16) NOT NULL,
  result         JSON NOT NULL,
  text           MEDIUMTEXT NULL,
  finished_at    DATETIME(6) NOT NULL DEFAULT (UTC_TIMESTAMP(6)),
  PRIMARY KEY (id_task_item, step, part),
  CONSTRAINT f_task_item_step_item FOREIGN KEY (id_task_item) REFERENCES task_item (id_task_item) ON DELETE CASCADE
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_unicode_520_ci;

CREATE TABLE task_item_file (
  id_task_item BIGINT UNSIGNED NOT NULL,
  position     SMALLINT UNSIGNED NOT NULL,
  mime_type    VARCHAR(100) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  size         INT UNSIGNED NOT NULL,
  sha256       BINARY(32) NOT NULL,
  width        INT UNSIGNED NULL,
  height       INT UNSIGNED NULL,
  content      LONGBLOB NULL,
  path         VARCHAR(1000) NULL,
  thumbnail    MEDIUMBLOB NULL,
  created_at   DATETIME(6) NOT NULL DEFAULT (UTC_TIMESTAMP(6)),
  PRIMARY KEY (id_task_item, position),
  CONSTRAINT f_task_item_file_item FOREIGN KEY (id_task_item) REFERENCES task_item (id_task_item) ON DELETE CASCADE,
  -- Here, or in a folder.
  CONSTRAINT c_task_item_file_place CHECK ((content IS NULL) <> (path IS NULL))
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_unicode_520_ci;

CREATE TABLE context_fact (
  id_context_fact BIGINT UNSIGNED NOT NULL AUTO_INCREMENT,
  context_key     VARCHAR(190) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
  fact            VARCHAR(2000) NOT NULL,
  digest          BINARY(32) GENERATED ALWAYS AS (UNHEX(SHA2(fact, 256))) STORED,
  id_task_item    BIGINT UNSIGNED NULL,
  created_at      DATETIME(6) NOT NULL DEFAULT (UTC_TIMESTAMP(6)),
  PRIMARY KEY (id_context_fact),
  UNIQUE KEY u_context_fact (context_key, digest),
  KEY k_context_fact_newest (context_key, id_context_fact)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_unicode_520_ci;

CREATE TABLE queue_limit (
  queue          VARCHAR(50) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  task_type      VARCHAR(50) CHARACTER SET ascii COLLATE ascii_bin NOT NULL DEFAULT '',
  max_per_minute INT UNSIGNED NULL,
  max_in_flight  INT UNSIGNED NULL,
  time_limit     INT UNSIGNED NULL,
  paced_until    DATETIME(6) NOT NULL DEFAULT (UTC_TIMESTAMP(6)),
  PRIMARY KEY (queue, task_type),
  CONSTRAINT c_queue_limit CHECK (max_per_minute > 0 AND max_in_flight > 0 AND time_limit > 0)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_unicode_520_ci;

CREATE TABLE task_dependency (
  id_task       BIGINT UNSIGNED NOT NULL,
  after_id_task BIGINT UNSIGNED NOT NULL,
  needs         VARCHAR(10) CHARACTER SET ascii COLLATE ascii_bin NOT NULL DEFAULT 'success',
  PRIMARY KEY (id_task, after_id_task),
  KEY k_task_dependency_after (after_id_task),
  CONSTRAINT c_task_dependency_needs CHECK (needs IN ('success', 'end')),
  CONSTRAINT c_task_dependency_self CHECK (id_task <> after_id_task)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_unicode_520_ci;

CREATE TABLE task_group (
  id_task_group    INT UNSIGNED NOT NULL AUTO_INCREMENT,
  name             VARCHAR(190) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
  callback_url     VARCHAR(1000) NULL,
  secret_encrypted VARBINARY(2048) NULL,
  created_at       DATETIME(6) NOT NULL DEFAULT (UTC_TIMESTAMP(6)),
  closed_at        DATETIME(6) NULL,
  ended_at         DATETIME(6) NULL,
  PRIMARY KEY (id_task_group),
  UNIQUE KEY u_task_group_name (name),
  KEY k_task_group_open (ended_at, closed_at),
  CONSTRAINT c_task_group_ended CHECK (ended_at IS NULL OR closed_at IS NOT NULL)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_unicode_520_ci;

CREATE TABLE callback (
  id_callback   BIGINT UNSIGNED NOT NULL AUTO_INCREMENT,
  id_task_group INT UNSIGNED NOT NULL,
  body          JSON NOT NULL,
  attempts      SMALLINT UNSIGNED NOT NULL DEFAULT 0,
  due_at        DATETIME(6) NULL DEFAULT (UTC_TIMESTAMP(6)),
  delivered_at  DATETIME(6) NULL,
  failed_at     DATETIME(6) NULL,
  last_status   SMALLINT UNSIGNED NULL,
  last_error    VARCHAR(1000) NULL,
  created_at    DATETIME(6) NOT NULL DEFAULT (UTC_TIMESTAMP(6)),
  PRIMARY KEY (id_callback),
  UNIQUE KEY u_callback_group (id_task_group),
  KEY k_callback_due (due_at),
  -- It is due, was delivered, or was given up.
  CONSTRAINT c_callback_end CHECK ((due_at IS NOT NULL) + (delivered_at IS NOT NULL) + (failed_at IS NOT NULL) = 1)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_unicode_520_ci;

CREATE TABLE schedule (
  id_schedule    INT UNSIGNED NOT NULL AUTO_INCREMENT,
  name           VARCHAR(100) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
  cron           VARCHAR(100) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  time_zone      VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL DEFAULT 'UTC',
  missed         VARCHAR(10) CHARACTER SET ascii COLLATE ascii_bin NOT NULL DEFAULT 'once',
  is_active      TINYINT UNSIGNED NOT NULL DEFAULT 1,
  id_ai_model    INT UNSIGNED NOT NULL,
  task_type      VARCHAR(50) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  description    TEXT NULL,
  parameters     JSON NULL,
  priority       SMALLINT NOT NULL DEFAULT 0,
  queue          VARCHAR(50) CHARACTER SET ascii COLLATE ascii_bin NOT NULL DEFAULT 'default',
  max_attempts   TINYINT UNSIGNED NOT NULL DEFAULT 3,
  lane           VARCHAR(10) CHARACTER SET ascii COLLATE ascii_bin NOT NULL DEFAULT 'online',
  budget         DECIMAL(18,9) NULL,
  result_seconds INT UNSIGNED NULL,
  items          JSON NOT NULL,
  -- NULL: it never fires again, or what it says cannot be worked out; `message` says which.
  next_at        DATETIME(6) NULL,
  message        VARCHAR(1000) NULL,
  created_at     DATETIME(6) NOT NULL DEFAULT (UTC_TIMESTAMP(6)),
  personal_data  ENUM('off', 'mask', 'block') CHARACTER SET ascii COLLATE ascii_general_ci NOT NULL DEFAULT 'off',
  PRIMARY KEY (id_schedule),
  UNIQUE KEY u_schedule_name (name),
  KEY k_schedule_due (is_active, next_at),
  CONSTRAINT f_schedule_ai_model FOREIGN KEY (id_ai_model) REFERENCES ai_model (id_ai_model),
  CONSTRAINT c_schedule_missed CHECK (missed IN ('once', 'all', 'skip')),
  CONSTRAINT c_schedule_active CHECK (is_active IN (0, 1)),
  CONSTRAINT c_schedule_lane CHECK (lane IN ('online', 'flex', 'batch')),
  CONSTRAINT c_schedule_budget CHECK (budget > 0)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_unicode_520_ci;

CREATE TABLE schedule_fire (
  id_schedule INT UNSIGNED NOT NULL,
  due_at      DATETIME(6) NOT NULL,
  id_task     BIGINT UNSIGNED NULL,
  fired_at    DATETIME(6) NOT NULL DEFAULT (UTC_TIMESTAMP(6)),
  PRIMARY KEY (id_schedule, due_at)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_unicode_520_ci;

CREATE TABLE task_item_review (
  id_task_item_review BIGINT UNSIGNED NOT NULL AUTO_INCREMENT,
  id_task             BIGINT UNSIGNED NOT NULL,
  id_task_item        BIGINT UNSIGNED NOT NULL,
  review_status_id    TINYINT UNSIGNED NOT NULL,
  text_reviewed       MEDIUMTEXT NULL,
  note                VARCHAR(1000) NULL,
  reviewed_by         VARCHAR(190) NOT NULL,
  reviewed_at         DATETIME(6) NOT NULL DEFAULT (UTC_TIMESTAMP(6)),
  PRIMARY KEY (id_task_item_review),
  KEY k_task_item_review_task (id_task, review_status_id, id_task_item_review),
  KEY k_task_item_review_item (id_task_item),
  CONSTRAINT c_task_item_review_status CHECK (review_status_id <= 2)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_unicode_520_ci;

CREATE TABLE task_source (
  id_task         BIGINT UNSIGNED NOT NULL,
  url             VARCHAR(1000) NULL,
  table_name      VARCHAR(130) NOT NULL,
  key_column      VARCHAR(64) NOT NULL,
  text_column     VARCHAR(64) NOT NULL,
  where_clause    TEXT NULL,
  imported_through VARCHAR(190) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NULL,
  rows_imported   BIGINT UNSIGNED NOT NULL DEFAULT 0,
  rows_skipped    BIGINT UNSIGNED NOT NULL DEFAULT 0,
  started_at      DATETIME(6) NOT NULL DEFAULT (UTC_TIMESTAMP(6)),
  finished_at     DATETIME(6) NULL,
  PRIMARY KEY (id_task)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_unicode_520_ci;

CREATE TABLE task_item_export (
  id_task_item_export BIGINT UNSIGNED NOT NULL AUTO_INCREMENT,
  id_task             BIGINT UNSIGNED NOT NULL,
  id_task_item        BIGINT UNSIGNED NOT NULL,
  outcome             VARCHAR(10) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  hash_before         BINARY(32) NOT NULL,
  hash_after          BINARY(32) NOT NULL,
  message             VARCHAR(1000) NULL,
  exported_by         VARCHAR(190) NOT NULL,
  exported_at         DATETIME(6) NOT NULL DEFAULT (UTC_TIMESTAMP(6)),
  PRIMARY KEY (id_task_item_export),
  KEY k_task_item_export_item (id_task_item),
  KEY k_task_item_export_task (id_task, outcome, id_task_item),
  CONSTRAINT c_task_item_export_outcome CHECK (outcome IN ('written', 'unchanged', 'conflict', 'missing', 'failed'))
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_unicode_520_ci;

CREATE TABLE api_token (
  id_api_token INT UNSIGNED NOT NULL AUTO_INCREMENT,
  name         VARCHAR(100) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
  token_hash   BINARY(32) NOT NULL,
  scopes       SET('read', 'run', 'review', 'admin') NOT NULL,
  created_at   DATETIME(6) NOT NULL DEFAULT (UTC_TIMESTAMP(6)),
  expire_at    DATETIME(6) NULL,
  last_used_at DATETIME(6) NULL,
  revoked_at   DATETIME(6) NULL,
  PRIMARY KEY (id_api_token),
  UNIQUE KEY u_api_token_name (name),
  UNIQUE KEY u_api_token_hash (token_hash)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_unicode_520_ci;

-- Who is logged in to the dashboard, with the rights of a token. In the database, so that any instance of the web knows them.
CREATE TABLE web_session (
  session_hash BINARY(32) NOT NULL,
  id_api_token INT UNSIGNED NOT NULL,
  created_at   DATETIME(6) NOT NULL DEFAULT (UTC_TIMESTAMP(6)),
  expire_at    DATETIME(6) NOT NULL,
  PRIMARY KEY (session_hash),
  KEY k_web_session_token (id_api_token),
  KEY k_web_session_expire (expire_at),
  CONSTRAINT f_web_session_token FOREIGN KEY (id_api_token) REFERENCES api_token (id_api_token) ON DELETE CASCADE
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_unicode_520_ci;

-- Answers to requests that carried an Idempotency-Key: sent again, the request gets the same one.
CREATE TABLE web_request (
  id_api_token    INT UNSIGNED NOT NULL,
  idempotency_key VARCHAR(190) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
  digest          BINARY(32) NOT NULL,
  -- NULL while the first one is at work; after `held_until` it is taken for dead.
  status          SMALLINT UNSIGNED NULL,
  headers         JSON NULL,
  body            MEDIUMTEXT NULL,
  held_until      DATETIME(6) NULL,
  created_at      DATETIME(6) NOT NULL DEFAULT (UTC_TIMESTAMP(6)),
  expire_at       DATETIME(6) NOT NULL,
  PRIMARY KEY (id_api_token, idempotency_key),
  KEY k_web_request_expire (expire_at),
  CONSTRAINT c_web_request_held CHECK ((status IS NULL) = (held_until IS NOT NULL))
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_unicode_520_ci;

-- Wrong tokens by address and minute: who tries too many is refused, by every instance of the web.
CREATE TABLE web_failure (
  address   VARCHAR(45) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  minute_at DATETIME NOT NULL,
  failures  INT UNSIGNED NOT NULL,
  PRIMARY KEY (address, minute_at),
  KEY k_web_failure_minute (minute_at)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_unicode_520_ci;

-- What was asked for by POST /task/run: done by an `ai-worker run` of its own.
CREATE TABLE run_request (
  id_run_request BIGINT UNSIGNED NOT NULL AUTO_INCREMENT,
  id_api_token   INT UNSIGNED NULL,
  filters        JSON NOT NULL,
  max_items      INT UNSIGNED NULL,
  host           VARCHAR(255) NULL,
  pid            INT UNSIGNED NULL,
  id_worker      BIGINT UNSIGNED NULL,
  exit_code      SMALLINT NULL,
  summary        JSON NULL,
  message        VARCHAR(1000) NULL,
  created_at     DATETIME(6) NOT NULL DEFAULT (UTC_TIMESTAMP(6)),
  started_at     DATETIME(6) NULL,
  ended_at       DATETIME(6) NULL,
  PRIMARY KEY (id_run_request),
  KEY k_run_request_ended (ended_at)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_unicode_520_ci;

-- What each worker did in each minute, per model: the charts. Written by the worker itself, a few rows with its heartbeat.
CREATE TABLE worker_minute (
  minute_at        DATETIME NOT NULL,
  id_worker        BIGINT UNSIGNED NOT NULL,
  id_ai_model      INT UNSIGNED NOT NULL,
  processed        INT UNSIGNED NOT NULL DEFAULT 0,
  failed           INT UNSIGNED NOT NULL DEFAULT 0,
  retried          INT UNSIGNED NOT NULL DEFAULT 0,
  tokens_input     BIGINT UNSIGNED NOT NULL DEFAULT 0,
  tokens_output    BIGINT UNSIGNED NOT NULL DEFAULT 0,
  cost             DECIMAL(18,9) NULL,
  -- Attempts by how long they took: an array of counts, one per bucket of `ai_worker.counts.LATENCY_BUCKETS`.
  latencies        JSON NULL,
  PRIMARY KEY (minute_at, id_worker, id_ai_model)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_unicode_520_ci;

-- A worker's counters since its start, for Prometheus; `id_worker` 0 holds the sums of workers whose rows were pruned.
CREATE TABLE worker_counter (
  id_worker   BIGINT UNSIGNED NOT NULL,
  name        VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  id_ai_model INT UNSIGNED NOT NULL DEFAULT 0,
  label       VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL DEFAULT '',
  value       DOUBLE NOT NULL,
  PRIMARY KEY (id_worker, name, id_ai_model, label)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_unicode_520_ci;

INSERT INTO schema_migration (version, name) VALUES (1, 'core'), (2, 'budget_and_lanes'), (3, 'library_and_review'), (4, 'web_and_metrics'),
  (5, 'personal_data');
