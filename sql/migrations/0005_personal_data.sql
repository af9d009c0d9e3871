-- Whether a task's items may leave the house with what identifies a person in them.
-- Only additions, with a default. But a worker of the version before, which does not know the column, sends texts as they are:
-- ask for 'mask' or 'block' once every worker has been upgraded. Safe to run again, see 0002.
-- ENUM and no CHECK: both servers add such a column without copying the table.

SET @change = IF((SELECT COUNT(*) FROM information_schema.columns
                   WHERE table_schema = DATABASE() AND table_name = 'task' AND column_name = 'personal_data') > 0, 'DO 0',
  'ALTER TABLE task
     ADD COLUMN personal_data ENUM(''off'', ''mask'', ''block'') CHARACTER SET ascii COLLATE ascii_general_ci NOT NULL DEFAULT ''off''');
PREPARE change_table FROM @change;
EXECUTE change_table;
DEALLOCATE PREPARE change_table;

SET @change = IF((SELECT COUNT(*) FROM information_schema.columns
                   WHERE table_schema = DATABASE() AND table_name = 'schedule' AND column_name = 'personal_data') > 0, 'DO 0',
  'ALTER TABLE schedule
     ADD COLUMN personal_data ENUM(''off'', ''mask'', ''block'') CHARACTER SET ascii COLLATE ascii_general_ci NOT NULL DEFAULT ''off''');
PREPARE change_table FROM @change;
EXECUTE change_table;
DEALLOCATE PREPARE change_table;

INSERT IGNORE INTO schema_migration (version, name) VALUES (5, 'personal_data');
