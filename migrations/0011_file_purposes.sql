-- Files of one purpose, newest first, without reading the others.

create index files_purpose on files (project_id, purpose, created_at desc, id desc);
