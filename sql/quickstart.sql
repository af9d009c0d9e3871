-- What an application does to have rows processed, in plain SQL: `ai-worker quickstart` runs this file as it is.
-- Try it by hand as well: mysql ai_worker < sql/quickstart.sql; ai-worker run

-- Once: a model to work with. This one corrects spelling without a network and without an API key.
INSERT INTO ai_model (name, provider)
SELECT 'offline', 'offline' FROM task_status WHERE status_id = 0 AND NOT EXISTS (SELECT * FROM ai_model WHERE name = 'offline');

-- A task says what is to be done ...
INSERT INTO task (id_ai_model, description)
SELECT id_ai_model, 'Correct the spelling' FROM ai_model WHERE name = 'offline';

SET @id_task = LAST_INSERT_ID();

-- ... and its items to what. The results appear in text_corrected.
INSERT INTO task_item (id_task, text_original) VALUES
  (@id_task, 'The goverment will definately announce the desicion tommorow.'),
  (@id_task, 'I recieved your adress seperately, thank you.'),
  (@id_task, 'It ocurred to me that the calender was wrong untill yesterday.'),
  (@id_task, 'Their new restaraunt has an excelent reputation.'),
  (@id_task, 'We beleive this is neccessary for the enviroment.'),
  (@id_task, 'This sentence has no mistakes at all.'),
  (@id_task, 'Napewno przyjdę jutro, dziękuje za zaproszenie.'),
  (@id_task, 'Ta ksiązka jest bardzo ciekawa, polecam ją wszyskim.'),
  (@id_task, 'Żeczywiście trzeba to zrobić inaczej niż dotychczas.'),
  (@id_task, 'Dzieci bawiły się w ogrudku przed domem.'),
  (@id_task, 'Wogóle nie wiem, skąd sie wzięła ta pomyłka.'),
  (@id_task, 'To zdanie nie zawiera żadnych błędów.');
