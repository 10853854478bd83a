-- Content: files, base models, and blobs that nothing refers to.

create table files (
    id             text collate "C" primary key,                -- 'file-…'
    project_id     text collate "C" not null references projects, -- the owner
    filename       text not null,                               -- as uploaded; metadata, never a path
    purpose        text not null,                               -- 'fine-tune', 'fine-tune-results', …
    bytes          bigint not null check (bytes >= 0),          -- size of the stored content
    sha256         text not null check (sha256 ~ '^[0-9a-f]{64}$'), -- of the content, hexadecimal
    status         text not null default 'processed'            -- clients poll until 'processed'
                   check (status in ('uploaded', 'processed', 'error')),
    status_details text,                                        -- why the status is 'error'
    created_at     timestamptz not null default clock_timestamp(), -- when the content was complete
    expires_at     timestamptz                                  -- after this the file may be removed
);
create index files_project on files (project_id, created_at desc, id desc);
create index files_expiry on files (expires_at) where expires_at is not null;

create table base_models (
    id           text collate "C" primary key,                -- the name under which it answers
    project_id   text collate "C" not null references projects, -- who registered it; part of its blobs' paths
    shared       boolean not null default true,               -- whether all projects may use it
    upload_id    text collate "C" not null unique,            -- part of its blobs' paths, never reused
    digest       text not null check (digest ~ '^[0-9a-f]{64}$'), -- hash over the manifest, hexadecimal
    architecture text not null,                               -- 'llama', …
    parameters   bigint not null check (parameters > 0),      -- number of weights
    files        jsonb not null check (jsonb_array_length(files) > 0), -- manifest: [{name, bytes, sha256}]
    created_at   timestamptz not null default clock_timestamp() -- when it was registered
);

-- A row is written before a blob is uploaded and removed by the transaction that makes the blob visible, so an
-- upload that was broken off, even by the death of the process, leaves something to clean up by.
create table garbage (
    path         text collate "C" primary key,                -- of the blob
    project_id   text collate "C" not null references projects, -- the owner of the blob
    reason       text not null,                               -- 'upload', 'deleted', 'superseded'
    delete_after timestamptz not null,                        -- the blob may be removed from then on
    created_at   timestamptz not null default clock_timestamp() -- when the row was inserted
);
create index garbage_due on garbage (delete_after);
