-- Reports: does a job's tuned model answer held-out rows better than the model that it was tuned from?
--
-- A report's row is the queue item, as a run of an evaluation is. A server claims it for a while and renews the
-- claim; a claim that ran out is taken by the next server, which makes the report from its beginning.

create table reports (
    job_id      text collate "C" primary key references jobs on delete cascade, -- the job; it has one report
    project_id  text collate "C" not null references projects, -- the owner
    status      text not null default 'pending'              -- of the making
                check (status in ('pending', 'in_progress', 'completed', 'failed')),
    wish        jsonb not null                               -- what was asked for: rows, few_shot, seed
                check (jsonb_typeof(wish) = 'object'),
    answers     integer not null default 0 check (answers >= 0), -- answers that there are so far
    wanted      integer check (wanted >= 0),                 -- answers that there will be, once rows are chosen
    content     json,                                        -- the report; set on completion
    error       jsonb,                                       -- {code, message}; set on failure
    fence       bigint not null default 0,                   -- grows with every claim and every new wish
    claim_until timestamptz,                                 -- end of the present claim
    run_after   timestamptz not null default clock_timestamp(), -- not to be claimed before (back-off)
    crashes     integer not null default 0,                  -- claims in a row that ran out
    created_at  timestamptz not null default clock_timestamp(), -- when this report was asked for
    finished_at timestamptz,                                 -- when it was completed or failed

    constraint reports_claim_only_in_progress check (claim_until is null or status = 'in_progress'),
    constraint reports_content_exactly_when_completed check ((status = 'completed') = (content is not null)),
    constraint reports_error_exactly_when_failed check ((status = 'failed') = (error is not null)),
    constraint reports_finished_exactly_when_ended
        check ((status in ('completed', 'failed')) = (finished_at is not null))
);
create index reports_open on reports (run_after, created_at) where status in ('pending', 'in_progress');
