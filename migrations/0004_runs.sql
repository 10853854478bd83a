-- What runs leave behind: events, metrics, checkpoints, models, usage; and who runs them.

create table events (
    job_id     text collate "C" not null references jobs on delete cascade, -- the job
    seq        bigint not null check (seq > 0),              -- 1, 2, 3, … within the job, without gaps
    project_id text collate "C" not null references projects, -- the owner
    id         text collate "C" not null unique,             -- 'ftevent-…'
    fence      bigint not null,                              -- the job's fence when it was written
    level      text not null check (level in ('info', 'warn', 'error')), -- for people
    type       text not null check (type in ('message', 'metrics')),     -- what data holds
    message    text not null,                                -- the API's own text
    data       jsonb,                                        -- metrics, or {}
    created_at timestamptz not null default clock_timestamp(), -- when it was written
    primary key (job_id, seq)
);

create table step_metrics (
    job_id      text collate "C" not null references jobs on delete cascade, -- the job
    step        bigint not null check (step > 0),              -- 1-based
    project_id  text collate "C" not null references projects, -- the owner
    fence       bigint not null,                               -- the lease that reported it last
    metrics     jsonb not null,                                -- the whole report of the step
    recorded_at timestamptz not null default clock_timestamp(), -- when that report arrived
    primary key (job_id, step)
);

create table checkpoints (
    id              text collate "C" primary key,                -- 'ftckpt_…'; never reused, part of the path
    project_id      text collate "C" not null references projects, -- the owner
    job_id          text collate "C" not null references jobs on delete cascade, -- the job
    step            bigint not null check (step >= 0),           -- steps done when it was written
    kind            text not null check (kind in ('resume', 'epoch', 'final')), -- what it is for
    state           text not null default 'writing'              -- only a committed one exists for users
                    check (state in ('writing', 'committed', 'corrupt', 'garbage')),
    fence           bigint not null,                             -- the lease that wrote it
    prefix          text collate "C" not null unique,            -- of its blobs' paths
    files           jsonb not null check (jsonb_array_length(files) > 0), -- manifest: [{name, bytes, sha256}]
    manifest_sha256 text not null check (manifest_sha256 ~ '^[0-9a-f]{64}$'), -- over the manifest
    trained_tokens  bigint not null check (trained_tokens >= 0), -- tokens since the start of the job
    metrics         jsonb not null,                              -- of its step
    model           text collate "C" unique,                     -- the model that it is, if it is one
    created_at      timestamptz not null default clock_timestamp(), -- when it was announced
    committed_at    timestamptz,                                 -- when all files were stored and verified

    constraint checkpoints_committed_has_time
        check (state <> 'committed' or committed_at is not null),
    constraint checkpoints_model_is_committed
        check (model is null or state = 'committed')
);
create index checkpoints_job on checkpoints (job_id, step desc, id desc);

create table models (
    id            text collate "C" primary key,                -- 'ft:base:org:suffix:8chars…'
    project_id    text collate "C" not null references projects, -- the owner
    kind          text not null check (kind in ('tuned', 'checkpoint')), -- result of a job, or of an epoch
    base_model    text not null,                               -- name of the base model
    job_id        text collate "C" not null references jobs,   -- the job that made it
    checkpoint_id text collate "C" not null unique references checkpoints, -- whose files it consists of
    digest        text not null check (digest ~ '^[0-9a-f]{64}$'), -- over the adapter's manifest
    files         jsonb not null check (jsonb_array_length(files) > 0), -- the adapter: [{name, bytes, sha256}]
    created_at    timestamptz not null default clock_timestamp() -- when it could first answer
);
create index models_project on models (project_id, created_at desc, id desc);
create index models_job on models (job_id);

create table usage (
    job_id     text collate "C" not null references jobs,    -- the job
    from_step  bigint not null check (from_step >= 0),       -- steps before this tile
    to_step    bigint not null,                              -- steps after it
    project_id text collate "C" not null references projects, -- who pays
    fence      bigint not null,                              -- the lease that did the work
    tokens     bigint not null check (tokens >= 0),          -- trained between the two steps
    created_at timestamptz not null default clock_timestamp(), -- when the checkpoint was committed
    primary key (job_id, from_step),
    constraint usage_tile_has_length check (to_step > from_step)
);

-- Written in the transaction that ends a job, to be delivered at least once.
create table outbox (
    id           text collate "C" primary key,                -- 'evt_…'; the receiver's key against doubles
    project_id   text collate "C" not null references projects, -- the owner
    job_id       text collate "C" not null references jobs,   -- the job
    type         text not null,                               -- 'fine_tuning.job.succeeded', …
    payload      jsonb not null,                              -- thin: ids and status
    created_at   timestamptz not null default clock_timestamp(), -- when the job ended
    delivered_at timestamptz,                                 -- set once every receiver has it
    unique (job_id, type)
);
create index outbox_waiting on outbox (created_at, id) where delivered_at is null;

create table workers (
    id            text collate "C" primary key,                -- chosen by the worker process and slot
    project_id    text collate "C" references projects,        -- null: it serves all projects
    warm_model    text,                                        -- the base model that it has loaded
    first_seen_at timestamptz not null default clock_timestamp(), -- its first call
    seen_at       timestamptz not null default clock_timestamp()  -- its latest claim, give or take 10 s
);
