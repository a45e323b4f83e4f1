-- Changes of the password that the partition logs in to a BMC with. Both values stand here before the BMC hears of the new one, and until a login
-- has shown which is true; a process may die at any moment in between.
create table credential_rotations (
  id bigint generated always as identity primary key,
  -- Whose rotation was asked for.
  machine_id text collate "C" not null references machines on delete cascade,
  asked_by text not null,
  asked_at timestamptz not null default now(),
  -- queued, running (the BMC may know either password), done, failed.
  state text not null default 'queued',
  -- All switches that log in with the same account of the same BMC, once it runs.
  machine_ids text[] collate "C" not null default '{}',
  -- Sealed: the old and the new password. Forgotten when it ends.
  candidates bytea,
  tries integer not null default 0,
  again_at timestamptz not null default now(),
  started_at timestamptz,
  ended_at timestamptz,
  fault jsonb
);
create unique index credential_rotations_open on credential_rotations (machine_id) where state in ('queued', 'running');
create index credential_rotations_machine on credential_rotations (machine_id, id desc);
