-- Uploads: content that comes in parts. The parts are blobs, and stay the content of the file that they become:
-- completing an upload reads and hashes them, and copies nothing.

create table uploads (
    id                 text collate "C" primary key,                -- 'upload_…'
    project_id         text collate "C" not null references projects, -- the owner
    filename           text not null,                               -- of the file to be; metadata, never a path
    purpose            text not null,                               -- of the file to be
    mime_type          text not null,                               -- as announced; nothing depends on it
    bytes              bigint not null check (bytes >= 0),          -- announced size of the whole content
    file_expires_after interval,                                    -- life of the file to be; none: it stays
    status             text not null default 'pending'              -- the API's own words
                       check (status in ('pending', 'completed', 'cancelled', 'expired')),
    file_id            text collate "C",                            -- the file that it became; may dangle
    md5                text check (md5 ~ '^[0-9a-f]{32}$'),         -- of the content, if it was to be checked
    created_at         timestamptz not null default clock_timestamp(), -- when the row was inserted
    expires_at         timestamptz not null,                        -- no part and no completion after this
    ended_at           timestamptz,                                 -- when it ceased to be pending
    remove_after       timestamptz,                                 -- the row may go then; set when nothing needs it

    constraint uploads_ended_exactly_when_not_pending
        check ((status = 'pending') = (ended_at is null)),
    constraint uploads_file_exactly_when_completed
        check ((status = 'completed') = (file_id is not null)),
    constraint uploads_pending_stays
        check (status <> 'pending' or remove_after is null)
);
create index uploads_pending on uploads (expires_at) where status = 'pending';
create index uploads_removable on uploads (remove_after) where remove_after is not null;

create table upload_parts (
    id         text collate "C" primary key,                  -- 'part_…'
    project_id text collate "C" not null references projects, -- the owner
    upload_id  text collate "C" not null references uploads,  -- what it is a part of
    bytes      bigint not null check (bytes >= 0),            -- size of the stored content
    sha256     text not null check (sha256 ~ '^[0-9a-f]{64}$'), -- of the part's content, hexadecimal
    position   integer check (position >= 0),                 -- its place in the file; set by the completion
    created_at timestamptz not null default clock_timestamp(), -- when the content was complete

    constraint upload_parts_one_a_place unique (upload_id, position)
);

-- The upload whose parts are the file's content; none: the content is one blob of the file's own.
alter table files add column upload_id text collate "C"
    constraint files_one_an_upload unique references uploads;

-- An upload ends once and for all, whatever statement comes along.
create function uploads_guard() returns trigger language plpgsql as $$
begin
    if old.status <> 'pending' and (new.status <> old.status or new.file_id is distinct from old.file_id) then
        raise exception 'upload % cannot go from % to %', old.id, old.status, new.status
            using errcode = 'check_violation', constraint = 'uploads_transition';
    end if;
    if new.project_id <> old.project_id then
        raise exception 'upload %: an upload never changes its project', old.id
            using errcode = 'check_violation', constraint = 'uploads_project_stays';
    end if;
    return new;
end $$;
create trigger uploads_guard before update on uploads for each row execute function uploads_guard();
