-- Organisations, projects and keys: the owner of every row, from the first migration on.

create table organizations (
    id         text collate "C" primary key,   -- 'org-…'
    slug       text not null unique            -- the organisation's word in the names of tuned models
               check (slug ~ '^[A-Za-z0-9_.-]{1,64}$'),
    created_at timestamptz not null default clock_timestamp()  -- when the row was inserted
);

create table projects (
    id              text collate "C" primary key,                     -- 'proj_…'
    organization_id text collate "C" not null references organizations, -- the owner
    name            text not null,                                    -- for people
    last_claim_at   timestamptz,  -- when the project last got a worker; decides whose turn it is
    created_at      timestamptz not null default clock_timestamp()    -- when the row was inserted
);

create table api_keys (
    id            text collate "C" primary key,                -- 'key_…', the public part
    project_id    text collate "C" not null references projects, -- what the key opens
    kind          text not null check (kind in ('project', 'worker')), -- public API, or internal API
    name          text not null,                               -- for people
    secret_sha256 bytea not null unique check (octet_length(secret_sha256) = 32), -- never the secret
    last_four     text not null check (char_length(last_four) <= 4), -- to tell keys apart
    created_at    timestamptz not null default clock_timestamp(), -- when the row was inserted
    revoked_at    timestamptz                                  -- set once: the key opens nothing any more
);
create index api_keys_project on api_keys (project_id, created_at desc, id desc);

insert into organizations (id, slug) values ('org-default', 'personal');
insert into projects (id, organization_id, name) values ('proj_default', 'org-default', 'Default');
