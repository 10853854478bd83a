-- Chat completions that their users asked to keep (store: true), for a limited time.

create table completions (
    id         text collate "C" primary key,                -- 'chatcmpl-…'; later ones sort after earlier ones
    project_id text collate "C" not null references projects, -- the owner
    model      text not null,                               -- as the request named it
    metadata   jsonb not null default '{}'                  -- the user's pairs, text to text
               check (jsonb_typeof(metadata) = 'object'),
    request    jsonb not null,                              -- messages, tools and sampling values, as they came
    completion jsonb not null,                              -- the answer, as it was given
    created_at timestamptz not null default clock_timestamp() -- when it was kept
);
create index completions_project on completions (project_id, id);
create index completions_age on completions (created_at);
create index completions_metadata on completions using gin (metadata jsonb_path_ops);
