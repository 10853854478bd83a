-- Evaluations: graders over a data source; their runs; and one row for every item that a run has judged.
--
-- The columns of type json keep what the user sent as it was sent, with its order of keys.

create table evals (
    id                 text collate "C" primary key,                -- 'eval_…'
    project_id         text collate "C" not null references projects, -- the owner
    name               text not null,                               -- the user's word; may be empty
    data_source_config json not null                                -- as the API shows it: type, schema, …
                       check (json_typeof(data_source_config) = 'object'),
    testing_criteria   json not null                                -- the graders
                       check (json_typeof(testing_criteria) = 'array'),
    metadata           jsonb check (jsonb_typeof(metadata) = 'object'), -- the user's pairs
    created_at         timestamptz not null default clock_timestamp(), -- when the row was inserted
    updated_at         timestamptz not null default clock_timestamp()  -- when name or metadata last changed
);
create index evals_created on evals (project_id, created_at, id);
create index evals_updated on evals (project_id, updated_at, id);

-- A run's row is the queue item, as a job's is. A server claims it for a while and renews the claim; `fence`
-- tells a claim from the one before it, and everything that a claim writes is refused once it is not the present
-- one. Items are recorded in the order of the data source, so `total` also says where the next claim goes on.
create table eval_runs (
    id          text collate "C" primary key,                -- 'evalrun_…'
    project_id  text collate "C" not null references projects, -- the owner
    eval_id     text collate "C" not null references evals on delete cascade, -- what is evaluated
    status      text not null default 'queued'               -- the API's own words
                check (status in ('queued', 'in_progress', 'completed', 'failed', 'canceled')),
    name        text not null,                               -- the user's word
    model       text not null,                               -- the model that is asked; empty if none is
    data_source json not null                                -- as the user sent it
                check (json_typeof(data_source) = 'object'),
    source_file text collate "C",                            -- file id of the rows; may dangle after the end
    metadata    jsonb check (jsonb_typeof(metadata) = 'object'), -- the user's pairs
    items       integer check (items >= 0),                  -- rows in the data source, once they are counted
    total       integer not null default 0,                  -- items recorded so far
    passed      integer not null default 0 check (passed >= 0),  -- of these, those that passed every grader
    failed      integer not null default 0 check (failed >= 0),  -- those that did not
    errored     integer not null default 0 check (errored >= 0), -- those that could not be judged
    tallies     jsonb not null default '{}',                 -- per grader: passed, failed; per model: usage
    error       jsonb,                                       -- {code, message}; set on failure
    fence       bigint not null default 0,                   -- grows with every claim, never reused
    claimed_at  timestamptz,                                 -- begin of the latest claim; decides whose turn it is
    claim_until timestamptz,                                 -- end of the present claim
    run_after   timestamptz not null default clock_timestamp(), -- not to be claimed before (back-off)
    crashes     integer not null default 0,                  -- claims in a row that ran out without any progress
    created_at  timestamptz not null default clock_timestamp(), -- when the row was inserted
    finished_at timestamptz,                                 -- when it reached a terminal status

    constraint eval_runs_counts_add_up check (total = passed + failed + errored),
    constraint eval_runs_claim_only_in_progress check (claim_until is null or status = 'in_progress'),
    constraint eval_runs_error_exactly_when_failed check ((status = 'failed') = (error is not null)),
    constraint eval_runs_finished_exactly_when_terminal
        check ((status in ('completed', 'failed', 'canceled')) = (finished_at is not null))
) with (fillfactor = 80);
create index eval_runs_list on eval_runs (eval_id, created_at, id);
create index eval_runs_by_status on eval_runs (eval_id, status, created_at, id);
create index eval_runs_open on eval_runs (project_id, created_at, id) where status in ('queued', 'in_progress');
create index eval_runs_files on eval_runs (source_file)
    where source_file is not null and status in ('queued', 'in_progress');

-- Terminal is terminal, and counters never go back, whatever statement comes along.
create function eval_runs_guard() returns trigger language plpgsql as $$
begin
    if new.status is distinct from old.status
       and (old.status, new.status) not in (
        ('queued', 'in_progress'), ('queued', 'failed'), ('queued', 'canceled'),
        ('in_progress', 'completed'), ('in_progress', 'failed'), ('in_progress', 'canceled')) then
        raise exception 'eval run % cannot go from % to %', old.id, old.status, new.status
            using errcode = 'check_violation', constraint = 'eval_runs_transition';
    end if;
    if new.fence < old.fence or new.total < old.total then
        raise exception 'eval run %: a counter went back', old.id
            using errcode = 'check_violation', constraint = 'eval_runs_counters_grow';
    end if;
    return new;
end $$;
create trigger eval_runs_guard before update on eval_runs for each row execute function eval_runs_guard();

create table eval_output_items (
    run_id          text collate "C" not null references eval_runs on delete cascade, -- the run
    item            integer not null check (item >= 0),      -- place of the row in the data source, from 0
    project_id      text collate "C" not null references projects, -- the owner
    id              text collate "C" not null unique,        -- 'outputitem_…'
    fence           bigint not null,                         -- the claim that recorded it
    status          text not null check (status in ('pass', 'fail', 'error')), -- the verdict of all graders
    datasource_item json not null,                           -- the row
    results         json not null,                           -- what each grader said
    sample          json not null,                           -- what the model was asked and answered
    created_at      timestamptz not null default clock_timestamp(), -- when it was recorded
    primary key (run_id, item)
);
create index eval_output_items_by_status on eval_output_items (run_id, status, item);
