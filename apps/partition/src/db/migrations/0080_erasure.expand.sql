-- Whether somebody's data may be on the disks, and what is still to be done about it: quick or full, while the machine is given back.
alter table machines add column disks_used boolean not null default false, add column erase text;
update machines set disks_used = true where owner is not null and (deployment is not null or state in ('deployed', 'rescue'));

-- What agents told of each disk, signed. Outlives the machine's row: it is asked for when the disk has long left the house.
create table erasures (
  id bigint generated always as identity primary key,
  machine_id text collate "C" not null,
  -- The run in which it was erased: a repeated report adds nothing.
  run text not null,
  disk text not null,
  at timestamptz not null default now(),
  payload text not null,
  signature text not null,
  key text not null,
  unique (machine_id, run, disk)
);
