-- One fleet, one budget: pacing and shares of a model's limits, budgets, fallbacks, lanes, the result cache, batches.
-- Only additions: workers of the version before go on beside it. Safe to run again: MySQL knows no ADD COLUMN IF NOT EXISTS, so
-- each ALTER TABLE, which is done as a whole or not at all, is made only where its first column is not there yet.

SET @change = IF((SELECT COUNT(*) FROM information_schema.columns
                   WHERE table_schema = DATABASE() AND table_name = 'ai_model' AND column_name = 'budget_per_day') > 0, 'DO 0',
  'ALTER TABLE ai_model
     ADD COLUMN budget_per_day DECIMAL(18,9) NULL,
     ADD CONSTRAINT c_ai_model_budget CHECK (budget_per_day > 0)');
PREPARE change_table FROM @change;
EXECUTE change_table;
DEALLOCATE PREPARE change_table;

SET @change = IF((SELECT COUNT(*) FROM information_schema.columns
                   WHERE table_schema = DATABASE() AND table_name = 'task' AND column_name = 'lane') > 0, 'DO 0',
  'ALTER TABLE task
     ADD COLUMN lane VARCHAR(10) CHARACTER SET ascii COLLATE ascii_bin NOT NULL DEFAULT ''online'',
     ADD COLUMN pack TINYINT UNSIGNED NOT NULL DEFAULT 1,
     ADD COLUMN cache_seconds INT UNSIGNED NOT NULL DEFAULT 2592000,
     ADD COLUMN budget DECIMAL(18,9) NULL,
     ADD COLUMN resume_at DATETIME(6) NULL,
     ADD CONSTRAINT c_task_lane CHECK (lane IN (''online'', ''flex'', ''batch'')),
     ADD CONSTRAINT c_task_pack CHECK (pack BETWEEN 1 AND 100),
     ADD CONSTRAINT c_task_budget CHECK (budget > 0)');
PREPARE change_table FROM @change;
EXECUTE change_table;
DEALLOCATE PREPARE change_table;

SET @change = IF((SELECT COUNT(*) FROM information_schema.columns
                   WHERE table_schema = DATABASE() AND table_name = 'task_item' AND column_name = 'reserved') > 0, 'DO 0',
  'ALTER TABLE task_item
     ADD COLUMN reserved DECIMAL(18,9) NULL,
     ADD COLUMN id_ai_model INT UNSIGNED NULL,
     ADD COLUMN refused TINYINT UNSIGNED NOT NULL DEFAULT 0,
     ADD COLUMN is_single TINYINT UNSIGNED NOT NULL DEFAULT 0');
PREPARE change_table FROM @change;
EXECUTE change_table;
DEALLOCATE PREPARE change_table;

SET @change = IF((SELECT COUNT(*) FROM information_schema.columns
                   WHERE table_schema = DATABASE() AND table_name = 'task_attempt' AND column_name = 'lane') > 0, 'DO 0',
  'ALTER TABLE task_attempt
     ADD COLUMN lane VARCHAR(10) CHARACTER SET ascii COLLATE ascii_bin NOT NULL DEFAULT ''online''');
PREPARE change_table FROM @change;
EXECUTE change_table;
DEALLOCATE PREPARE change_table;

CREATE TABLE IF NOT EXISTS task_fallback (
  id_task     BIGINT UNSIGNED NOT NULL,
  position    TINYINT UNSIGNED NOT NULL,
  id_ai_model INT UNSIGNED NOT NULL,
  PRIMARY KEY (id_task, position),
  KEY k_task_fallback_model (id_ai_model),
  CONSTRAINT f_task_fallback_ai_model FOREIGN KEY (id_ai_model) REFERENCES ai_model (id_ai_model),
  CONSTRAINT c_task_fallback_position CHECK (position >= 1)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_unicode_520_ci;

CREATE TABLE IF NOT EXISTS ai_model_pace (
  id_ai_model         INT UNSIGNED NOT NULL,
  paced_until         DATETIME(6) NOT NULL DEFAULT (UTC_TIMESTAMP(6)),
  requests_per_minute INT UNSIGNED NULL,
  tokens_per_minute   INT UNSIGNED NULL,
  growth              DOUBLE NOT NULL DEFAULT 0,
  slowed_at           DATETIME(6) NULL,
  PRIMARY KEY (id_ai_model)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_unicode_520_ci;

CREATE TABLE IF NOT EXISTS ai_model_share (
  id_ai_model INT UNSIGNED NOT NULL,
  id_worker   BIGINT UNSIGNED NOT NULL,
  wanted      INT UNSIGNED NOT NULL,
  granted     INT UNSIGNED NOT NULL,
  PRIMARY KEY (id_ai_model, id_worker)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_unicode_520_ci;

CREATE TABLE IF NOT EXISTS ai_model_day (
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

CREATE TABLE IF NOT EXISTS result_cache (
  cache_key    BINARY(32) NOT NULL,
  id_task_item BIGINT UNSIGNED NOT NULL,
  id_worker    BIGINT UNSIGNED NULL,
  stored_at    DATETIME(6) NULL,
  PRIMARY KEY (cache_key),
  -- In flight with an owner, or stored without one.
  CONSTRAINT c_result_cache_owner CHECK ((stored_at IS NULL) = (id_worker IS NOT NULL))
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_unicode_520_ci;

CREATE TABLE IF NOT EXISTS batch (
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

INSERT IGNORE INTO schema_migration (version, name) VALUES (2, 'budget_and_lanes');
