-- What the commissioning under way, or the last one, runs: names and parameters.
alter table machines add column scripts jsonb not null default '[]';

-- What came of each script on each part of a machine.
create table script_results (
  id bigint generated always as identity primary key,
  machine_id text collate "C" not null references machines (id) on delete cascade,
  -- The commissioning in which it ran: a repeated report adds nothing.
  run text collate "C" not null,
  script text collate "C" not null,
  kind text not null,
  -- The disk or interface; empty for the machine as a whole.
  part text not null,
  status text not null,
  exit_code integer,
  seconds integer not null,
  message text not null,
  output text not null,
  result jsonb,
  at timestamptz not null default now(),
  unique (machine_id, run, script, part)
);
create index on script_results (machine_id, id);
