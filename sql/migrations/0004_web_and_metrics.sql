-- Access over HTTP: tokens, sessions, repeated requests; what workers count; who is draining.
-- Only additions: workers of the version before go on beside it, uncounted. Safe to run again, see 0002.

SET @change = IF((SELECT COUNT(*) FROM information_schema.columns
                   WHERE table_schema = DATABASE() AND table_name = 'worker' AND column_name = 'draining_at') > 0, 'DO 0',
  'ALTER TABLE worker
     ADD COLUMN draining_at DATETIME(6) NULL');
PREPARE change_table FROM @change;
EXECUTE change_table;
DEALLOCATE PREPARE change_table;

SET @change = IF((SELECT COUNT(*) FROM information_schema.columns
                   WHERE table_schema = DATABASE() AND table_name = 'schema_migration' AND column_name = 'compatible_from') > 0, 'DO 0',
  'ALTER TABLE schema_migration
     ADD COLUMN compatible_from INT UNSIGNED NOT NULL DEFAULT 1');
PREPARE change_table FROM @change;
EXECUTE change_table;
DEALLOCATE PREPARE change_table;

CREATE TABLE IF NOT EXISTS api_token (
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
CREATE TABLE IF NOT EXISTS web_session (
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
CREATE TABLE IF NOT EXISTS web_request (
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
CREATE TABLE IF NOT EXISTS web_failure (
  address   VARCHAR(45) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  minute_at DATETIME NOT NULL,
  failures  INT UNSIGNED NOT NULL,
  PRIMARY KEY (address, minute_at),
  KEY k_web_failure_minute (minute_at)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_unicode_520_ci;

-- What was asked for by POST /task/run: done by an `ai-worker run` of its own.
CREATE TABLE IF NOT EXISTS run_request (
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
CREATE TABLE IF NOT EXISTS worker_minute (
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
CREATE TABLE IF NOT EXISTS worker_counter (
  id_worker   BIGINT UNSIGNED NOT NULL,
  name        VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  id_ai_model INT UNSIGNED NOT NULL DEFAULT 0,
  label       VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL DEFAULT '',
  value       DOUBLE NOT NULL,
  PRIMARY KEY (id_worker, name, id_ai_model, label)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_unicode_520_ci;

INSERT IGNORE INTO schema_migration (version, name) VALUES (4, 'web_and_metrics');
