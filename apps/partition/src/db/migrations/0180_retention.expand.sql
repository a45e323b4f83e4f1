-- What is kept for a time only. Events up to removed_to are gone: whoever would read on behind a lower number is told so.
create table event_retention (
  only_row boolean primary key default true check (only_row),
  removed_to bigint not null
);
insert into event_retention (removed_to) values (0);
create index power_orders_ended on power_orders (ended_at) where ended_at is not null;
-- Written by house keeping within a minute of the release; null: not yet.
alter table allocations add column ended_at timestamptz;
create index allocations_released on allocations (ended_at) where state = 'released';
create index audit_cuts on audit (seq) where call = 'audit.cut';
