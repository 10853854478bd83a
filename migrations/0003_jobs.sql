-- The jobs. A row is the queue item: there is no second record of a job's state anywhere.
--
-- The narrow row changes with every heartbeat; what is wide and rarely changes lies in job_details. There is
-- deliberately no index on lease_until: with one, no heartbeat could be a heap-only update.

create table jobs (
    id               text collate "C" primary key,                -- 'ftjob-…'
    project_id       text collate "C" not null references projects, -- the owner
    status           text not null default 'validating_files'     -- the API's own words
                     check (status in ('validating_files', 'queued', 'running', 'paused',
                                       'succeeded', 'failed', 'cancelled')),
    desired          text not null default 'run'                  -- what the user wants of it
                     check (desired in ('run', 'pause', 'cancel')),
    base_model       text not null,                               -- name of the base model
    priority         smallint not null default 0,                 -- higher first, within the project
    run_after        timestamptz not null default clock_timestamp(), -- not to be claimed before (back-off)
    validating_until timestamptz,                                 -- end of the present claim to validate
    fence            bigint not null default 0,                   -- grows with every claim, never reused
    lease_token      uuid,                                        -- secret of the present lease
    ended_lease      uuid,       -- the last lease that its worker ended itself; answers repeated calls
    worker_id        text,                                        -- who holds the lease
    lease_until      timestamptz,                                 -- the reaper may act some time after this
    heartbeat_at     timestamptz,                                 -- last sign of life
    heartbeat_step   bigint not null default 0,                   -- the engine's step counter at that time
    reports_seq      bigint not null default 0,                   -- reports recorded in the present lease
    attempts         integer not null default 0,                  -- claims by workers so far
    crashes          integer not null default 0,                  -- bad ends in a row without progress
    committed_step   bigint not null default 0,                   -- the highest step in a committed checkpoint
    committed_tokens bigint not null default 0,                   -- tokens trained up to that step
    event_seq        bigint not null default 0,                   -- number of the last event
    version          bigint not null default 0,                   -- grows with every change
    trained_tokens   bigint check (trained_tokens >= 0),          -- of the tuned model
    fine_tuned_model text,                                        -- name of the tuned model
    error_code       text,                                        -- why it failed; the rest is in job_details
    created_at       timestamptz not null default clock_timestamp(), -- when the row was inserted
    started_at       timestamptz,                                 -- when the first step began
    finished_at      timestamptz,                                 -- when it reached a terminal status

    constraint jobs_lease_exactly_while_running
        check ((status = 'running') = (lease_token is not null)),
    constraint jobs_lease_whole_or_absent
        check (num_nonnulls(lease_token, worker_id, lease_until, heartbeat_at) in (0, 4)),
    constraint jobs_claim_only_while_validating
        check (validating_until is null or status = 'validating_files'),
    constraint jobs_finished_exactly_when_terminal
        check ((status in ('succeeded', 'failed', 'cancelled')) = (finished_at is not null)),
    constraint jobs_model_exactly_when_succeeded
        check ((status = 'succeeded') = (fine_tuned_model is not null)),
    constraint jobs_tokens_exactly_when_succeeded
        check ((status = 'succeeded') = (trained_tokens is not null)),
    constraint jobs_error_exactly_when_failed
        check ((status = 'failed') = (error_code is not null)),
    constraint jobs_cancelled_exactly_when_desired
        check ((status = 'cancelled') = (desired = 'cancel')),
    constraint jobs_waiting_is_desired
        check (status not in ('validating_files', 'queued') or desired = 'run'),
    constraint jobs_paused_is_desired
        check (status <> 'paused' or desired = 'pause')
) with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 200);

create index jobs_claim on jobs (project_id, priority desc, run_after, id) where status = 'queued';
create index jobs_validation on jobs (run_after, id) where status = 'validating_files';
create index jobs_running on jobs (project_id, id) where status = 'running';
create index jobs_project on jobs (project_id, created_at desc, id desc);

create table job_details (
    job_id          text collate "C" primary key references jobs on delete cascade, -- the job
    project_id      text collate "C" not null references projects, -- the owner
    method          text not null check (method in ('supervised', 'dpo', 'reinforcement')), -- of training
    training_file   text not null,                 -- file id; may dangle once the job has ended
    validation_file text,                          -- file id; may dangle once the job has ended
    suffix          text,                          -- the user's word in the tuned model's name
    seed            bigint not null check (seed between 0 and 4294967295), -- of everything random
    metadata        jsonb check (jsonb_typeof(metadata) = 'object'), -- the user's pairs
    hyperparameters jsonb not null,                -- as requested: values or 'auto'
    options         jsonb not null,                -- as requested in our extension object
    resolved        jsonb,                         -- every hyperparameter as a value; set by validation
    dataset         jsonb,                         -- what validation found out about the files
    result_files    text[] not null default '{}',  -- file ids; set on success
    error           jsonb                          -- {code, param, message}; set on failure
);
create index job_details_metadata on job_details using gin (metadata jsonb_path_ops);

-- Legal transitions and counters that never go back, whatever statement comes along.
create function jobs_guard() returns trigger language plpgsql as $$
begin
    if new.status is distinct from old.status
       and (old.status, new.status) not in (
        ('validating_files', 'queued'), ('validating_files', 'failed'), ('validating_files', 'cancelled'),
        ('queued', 'running'), ('queued', 'paused'), ('queued', 'failed'), ('queued', 'cancelled'),
        ('running', 'queued'), ('running', 'paused'), ('running', 'succeeded'), ('running', 'failed'),
        ('running', 'cancelled'),
        ('paused', 'queued'), ('paused', 'failed'), ('paused', 'cancelled')) then
        raise exception 'job % cannot go from % to %', old.id, old.status, new.status
            using errcode = 'check_violation', constraint = 'jobs_transition';
    end if;
    if new.lease_token is distinct from old.lease_token and new.lease_token is not null
       and new.fence <= old.fence then
        raise exception 'job %: a new lease needs a higher fence', old.id
            using errcode = 'check_violation', constraint = 'jobs_fence_grows';
    end if;
    if new.fence < old.fence or new.event_seq < old.event_seq
       or new.committed_step < old.committed_step or new.committed_tokens < old.committed_tokens then
        raise exception 'job %: a counter went back', old.id
            using errcode = 'check_violation', constraint = 'jobs_counters_grow';
    end if;
    if new.project_id <> old.project_id then
        raise exception 'job %: a job never changes its project', old.id
            using errcode = 'check_violation', constraint = 'jobs_project_stays';
    end if;
    new.version := old.version + 1;
    return new;
end $$;
create trigger jobs_guard before update on jobs for each row execute function jobs_guard();
