-- What is deleted is forgotten by its id; a project may have created many files within a day, and files are
-- deleted often.
create index idempotency_object on idempotency (project_id, operation, object_id);
