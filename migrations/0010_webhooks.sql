-- Webhooks: endpoints that want to hear of events, and one delivery for every event and endpoint that wants it.
--
-- The outbox keeps the events. It is written in the transaction that ends a job or a run of an evaluation, and
-- so are the deliveries: an end without its message cannot be.

alter table outbox
    alter column job_id drop not null,
    add column eval_run_id text collate "C", -- the run that has ended; may dangle, a run can be deleted
    drop column delivered_at, -- was never set: each delivery has a state of its own
    add constraint outbox_one_subject check (num_nonnulls(job_id, eval_run_id) = 1);
create unique index outbox_eval_run on outbox (eval_run_id, type) where eval_run_id is not null;
create index outbox_age on outbox (created_at);

-- An endpoint's row is its queue: a server claims it for a while, sends one delivery, and says how it went. So an
-- endpoint gets one request at a time. `fence` tells a claim from the one before it, and what a server says is
-- refused once its claim is not the present one.
create table webhook_endpoints (
    id               text collate "C" primary key,                -- 'whe_…'
    project_id       text collate "C" not null references projects, -- the owner
    name             text not null,                               -- the user's word
    url              text not null,                               -- where deliveries go
    event_types      text[] not null                              -- the events that it wants
                     check (cardinality(event_types) > 0),
    secret           text not null,                               -- 'whsec_…'; plain, since it has to sign
    old_secret       text,                                        -- signs too, for a while after a rotation
    old_secret_until timestamptz,                                 -- the end of that while
    disabled_at      timestamptz,                                 -- since when nothing is sent
    disabled_reason  text,                                        -- why, for people
    failures         integer not null default 0 check (failures >= 0), -- failed attempts in a row, of any delivery
    rest_until       timestamptz not null default clock_timestamp(), -- after failures: nothing is sent before
    fence            bigint not null default 0,                   -- grows with every claim, never reused
    claimed_at       timestamptz,                                 -- begin of the latest claim; decides whose turn it is
    claim_until      timestamptz,                                 -- end of the present claim
    created_at       timestamptz not null default clock_timestamp(), -- when the row was inserted
    updated_at       timestamptz not null default clock_timestamp(), -- when the user last changed it, or its secret

    constraint webhook_endpoints_old_secret_ends check ((old_secret is null) = (old_secret_until is null)),
    constraint webhook_endpoints_disabled_for_a_reason check ((disabled_at is null) = (disabled_reason is null))
);
create index webhook_endpoints_list on webhook_endpoints (project_id, created_at, id);

create table webhook_deliveries (
    id              text collate "C" primary key,                -- 'whd_…'
    project_id      text collate "C" not null references projects, -- the owner
    endpoint_id     text collate "C" not null references webhook_endpoints on delete cascade, -- the receiver
    event_id        text collate "C" not null references outbox on delete cascade, -- what it is told
    status          text not null default 'pending' check (status in ('pending', 'delivered', 'failed')), -- how it is
    tries           integer not null default 0 check (tries >= 0), -- attempts since it was last made pending
    next_attempt_at timestamptz default clock_timestamp(),       -- not to be sent before; only while pending
    attempts        jsonb not null default '[]'                  -- {at, status_code, error, duration_ms}, oldest first
                    check (jsonb_typeof(attempts) = 'array'),
    created_at      timestamptz not null default clock_timestamp(), -- when the row was inserted
    finished_at     timestamptz,                                 -- when it was delivered, or given up
    unique (endpoint_id, event_id),

    constraint webhook_deliveries_next_exactly_while_pending
        check ((status = 'pending') = (next_attempt_at is not null)),
    constraint webhook_deliveries_finished_exactly_when_not_pending
        check ((status = 'pending') = (finished_at is null))
);
create index webhook_deliveries_due on webhook_deliveries (endpoint_id, next_attempt_at) where status = 'pending';
create index webhook_deliveries_list on webhook_deliveries (endpoint_id, created_at, id);
create index webhook_deliveries_age on webhook_deliveries (finished_at) where finished_at is not null;
create index webhook_deliveries_event on webhook_deliveries (event_id);
