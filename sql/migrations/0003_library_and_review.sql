-- Prompt library, context, steps, files, queues, schedules, dependencies, groups, review, sources and exports.
-- Only additions, to the index k_task_runnable too: workers of the version before go on beside it. `task` is copied for its generated
-- column, and not written to for as long as that takes. Safe to run again, see 0002.

SET @change = IF((SELECT COUNT(*) FROM information_schema.columns
                   WHERE table_schema = DATABASE() AND table_name = 'task' AND column_name = 'queue') > 0, 'DO 0',
  'ALTER TABLE task
     ADD COLUMN queue VARCHAR(50) CHARACTER SET ascii COLLATE ascii_bin NOT NULL DEFAULT ''default'',
     ADD COLUMN id_prompt INT UNSIGNED NULL,
     ADD COLUMN id_task_group INT UNSIGNED NULL,
     ADD COLUMN result_seconds INT UNSIGNED NULL,
     ADD COLUMN expire_at DATETIME(6) NULL,
     ADD COLUMN ended_in_group TINYINT UNSIGNED
       GENERATED ALWAYS AS (IF(id_task_group IS NULL, NULL, finished_at IS NOT NULL)) STORED,
     DROP KEY k_task_runnable,
     ADD KEY k_task_runnable (status_id, claim_order, id_task, queue),
     ADD KEY k_task_group (id_task_group, ended_in_group),
     ADD KEY k_task_expire (expire_at)');
PREPARE change_table FROM @change;
EXECUTE change_table;
DEALLOCATE PREPARE change_table;

SET @change = IF((SELECT COUNT(*) FROM information_schema.columns
                   WHERE table_schema = DATABASE() AND table_name = 'task_item' AND column_name = 'context_key') > 0, 'DO 0',
  'ALTER TABLE task_item
     ADD COLUMN context_key VARCHAR(190) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NULL,
     ADD COLUMN steps_done SMALLINT UNSIGNED NOT NULL DEFAULT 0,
     ADD COLUMN steps_total SMALLINT UNSIGNED NOT NULL DEFAULT 1,
     ADD COLUMN text_reviewed MEDIUMTEXT NULL,
     ADD COLUMN reviewed_by VARCHAR(190) NULL,
     ADD COLUMN reviewed_at DATETIME(6) NULL,
     ADD KEY k_task_item_context (context_key, id_task_item)');
PREPARE change_table FROM @change;
EXECUTE change_table;
DEALLOCATE PREPARE change_table;

SET @change = IF((SELECT COUNT(*) FROM information_schema.columns
                   WHERE table_schema = DATABASE() AND table_name = 'task_attempt' AND column_name = 'step') > 0, 'DO 0',
  'ALTER TABLE task_attempt
     ADD COLUMN step SMALLINT UNSIGNED NULL');
PREPARE change_table FROM @change;
EXECUTE change_table;
DEALLOCATE PREPARE change_table;

CREATE TABLE IF NOT EXISTS prompt (
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

CREATE TABLE IF NOT EXISTS task_item_step (
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

CREATE TABLE IF NOT EXISTS task_item_file (
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

CREATE TABLE IF NOT EXISTS context_fact (
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

CREATE TABLE IF NOT EXISTS queue_limit (
  queue          VARCHAR(50) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  task_type      VARCHAR(50) CHARACTER SET ascii COLLATE ascii_bin NOT NULL DEFAULT '',
  max_per_minute INT UNSIGNED NULL,
  max_in_flight  INT UNSIGNED NULL,
  time_limit     INT UNSIGNED NULL,
  paced_until    DATETIME(6) NOT NULL DEFAULT (UTC_TIMESTAMP(6)),
  PRIMARY KEY (queue, task_type),
  CONSTRAINT c_queue_limit CHECK (max_per_minute > 0 AND max_in_flight > 0 AND time_limit > 0)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_unicode_520_ci;

CREATE TABLE IF NOT EXISTS task_dependency (
  id_task       BIGINT UNSIGNED NOT NULL,
  after_id_task BIGINT UNSIGNED NOT NULL,
  needs         VARCHAR(10) CHARACTER SET ascii COLLATE ascii_bin NOT NULL DEFAULT 'success',
  PRIMARY KEY (id_task, after_id_task),
  KEY k_task_dependency_after (after_id_task),
  CONSTRAINT c_task_dependency_needs CHECK (needs IN ('success', 'end')),
  CONSTRAINT c_task_dependency_self CHECK (id_task <> after_id_task)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_unicode_520_ci;

CREATE TABLE IF NOT EXISTS task_group (
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

CREATE TABLE IF NOT EXISTS callback (
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

CREATE TABLE IF NOT EXISTS schedule (
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
  PRIMARY KEY (id_schedule),
  UNIQUE KEY u_schedule_name (name),
  KEY k_schedule_due (is_active, next_at),
  CONSTRAINT f_schedule_ai_model FOREIGN KEY (id_ai_model) REFERENCES ai_model (id_ai_model),
  CONSTRAINT c_schedule_missed CHECK (missed IN ('once', 'all', 'skip')),
  CONSTRAINT c_schedule_active CHECK (is_active IN (0, 1)),
  CONSTRAINT c_schedule_lane CHECK (lane IN ('online', 'flex', 'batch')),
  CONSTRAINT c_schedule_budget CHECK (budget > 0)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_unicode_520_ci;

CREATE TABLE IF NOT EXISTS schedule_fire (
  id_schedule INT UNSIGNED NOT NULL,
  due_at      DATETIME(6) NOT NULL,
  id_task     BIGINT UNSIGNED NULL,
  fired_at    DATETIME(6) NOT NULL DEFAULT (UTC_TIMESTAMP(6)),
  PRIMARY KEY (id_schedule, due_at)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_unicode_520_ci;

CREATE TABLE IF NOT EXISTS task_item_review (
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

CREATE TABLE IF NOT EXISTS task_source (
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

CREATE TABLE IF NOT EXISTS task_item_export (
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

INSERT IGNORE INTO schema_migration (version, name) VALUES (3, 'library_and_review');
