-- What jobs carry beyond training: integrations, deletion, what estimates of time need; and requests that may come
-- twice.

alter table job_details
    add column integrations jsonb not null default '[]' check (jsonb_typeof(integrations) = 'array'); -- as shown

-- A deleted job leaves its row behind: its models stay usable, and what was used stays counted.
alter table jobs
    add column deleted_at     timestamptz,                            -- since then no user sees it
    add column planned_tokens bigint check (planned_tokens >= 0),     -- to be trained in all; set by validation
    add constraint jobs_deleted_only_when_terminal
        check (deleted_at is null or status in ('succeeded', 'failed', 'cancelled'));
drop index jobs_project;
create index jobs_project on jobs (project_id, created_at desc, id desc) where deleted_at is null;
-- How fast a model's latest jobs were.
create index jobs_speed on jobs (base_model, finished_at desc) where status = 'succeeded';

-- Lists of jobs without metadata, of which there may be few.
create index job_details_plain on job_details (project_id, job_id) where metadata is null;

-- One row per request that may come a second time: by its client's own key, or by the content of its body.
create table idempotency (
    project_id     text collate "C" not null references projects, -- whose request it was
    operation      text not null,                            -- what is created: 'fine_tuning.job', …
    key            text not null check (char_length(key) between 1 and 300), -- the client's, or made from the body
    request_sha256 bytea not null check (octet_length(request_sha256) = 32), -- of the request
    object_id      text collate "C" not null,                -- what the first request created
    created_at     timestamptz not null default clock_timestamp(), -- when it did; kept for a day
    primary key (project_id, operation, key)
);
create index idempotency_created on idempotency (created_at);
