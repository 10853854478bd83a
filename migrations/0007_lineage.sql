-- Lineage: what a job starts from, what a model was tuned from, and who else may use a model.

-- A job that goes on from a tuned model. The start stays for as long as the job has not ended.
alter table job_details
    add column start_model      text collate "C",  -- name of the tuned model to go on from; null: the base
    add column start_checkpoint text collate "C",  -- whose files it consists of; may dangle once the job has ended
    add constraint job_details_start_whole_or_absent
        check (num_nonnulls(start_model, start_checkpoint) in (0, 2));
create index job_details_start on job_details (start_checkpoint) where start_checkpoint is not null;

alter table models
    add column parent       text collate "C",  -- the model that it was tuned from: the base, or a tuned one
    add column trained_with jsonb;             -- every hyperparameter of the job that made it, as a value
update models m set parent = m.base_model,
    trained_with = (select d.resolved from job_details d where d.job_id = m.job_id);
alter table models alter column parent set not null;

alter table base_models
    add column context_length bigint check (context_length > 0);  -- tokens that it reads, if its files say so

-- Models that other projects of the organisation may use.
create table checkpoint_permissions (
    id         text collate "C" primary key,                  -- 'cp_…'
    project_id text collate "C" not null references projects, -- the owner of the model, who gave it
    model      text collate "C" not null references models on delete cascade, -- what may be used
    grantee_id text collate "C" not null references projects, -- the project that may use it
    created_at timestamptz not null default clock_timestamp(), -- when it was given
    unique (model, grantee_id)
);
create index checkpoint_permissions_grantee on checkpoint_permissions (grantee_id, model);
create index checkpoint_permissions_model on checkpoint_permissions (model, created_at desc, id desc);
