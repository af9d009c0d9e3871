-- Every statement that AI Worker sends, by name, with its reason. Runs unchanged on MySQL 8.0.16+ and MariaDB 10.6+.
-- Parameters are written %(name)s; a literal percent sign is doubled. Read with DB_Description.md beside it.

-- name: ping
-- Whether the server answers.
SELECT 1 AS answer;
