-- The whole state of a partition. Texts that lists sort by have the "C" collation: the same order in every partition and in the front.

create table partition_identity (
  only_row boolean primary key default true check (only_row),
  name text not null,
  -- A value sealed with the key file: tells at start whether the key is the right one.
  key_check bytea not null,
  created_at timestamptz not null default now()
);

create table machines (
  id text collate "C" primary key,
  hostname text collate "C" not null unique,
  state text collate "C" not null,
  state_since timestamptz not null default now(),
  -- Where rescue returns to.
  origin_state text,
  -- The last move a person asked for: a repeated request joins instead of failing.
  last_request text,
  last_request_by text,
  version bigint not null default 1,
  arch text not null,
  cpus integer not null,
  memory_mib integer not null,
  pool text collate "C" not null,
  zone text collate "C" not null,
  rack text collate "C" not null,
  tags text[] not null default '{}',
  interfaces jsonb not null default '[]',
  disks jsonb not null default '[]',
  owner text,
  allocation_id text,
  locked boolean not null default false,
  lock_reason text not null default '',
  note text not null default '',
  -- One commissioning or deployment; the machine's tokens die with it.
  run text,
  -- false: installed, the next boot is from disk.
  netboot boolean not null default true,
  deployment jsonb,
  -- Sealed: the user's user-data and SSH keys.
  deployment_secrets bytea,
  fault jsonb,
  -- Where the engine is within the state's work.
  step text not null default 'start',
  waiting_for text,
  progress real,
  deadline_at timestamptz,
  last_signal_at timestamptz,
  -- When the engine looks next; null: nothing to do.
  attention_at timestamptz,
  claim_token bigint not null default 0,
  claimed_until timestamptz,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now()
) with (fillfactor = 70);

create index machines_attention on machines (attention_at) where attention_at is not null;
create index machines_allocation on machines (allocation_id) where allocation_id is not null;
create index machines_state on machines (state);
create index machines_tags on machines using gin (tags);

create table macs (
  mac text primary key,
  machine_id text not null references machines on delete cascade
);
create index macs_machine on macs (machine_id);

create table inventories (
  machine_id text primary key references machines on delete cascade,
  facts jsonb not null,
  reported_at timestamptz not null default now()
);

create table machine_power (
  machine_id text primary key references machines on delete cascade,
  driver text,
  settings jsonb not null default '{}',
  -- Sealed: a JSON object of the driver's secret settings.
  secrets bytea,
  observed text not null default 'unknown',
  seen_at timestamptz,
  fault jsonb,
  failures integer not null default 0,
  check_at timestamptz not null default now(),
  -- One BMC, one caller: held by the worker or the monitor of one replica.
  claim_token bigint not null default 0,
  claimed_until timestamptz
) with (fillfactor = 70);
create index machine_power_check on machine_power (check_at) where driver is not null;

create table power_orders (
  id bigint generated always as identity primary key,
  machine_id text not null references machines on delete cascade,
  action text not null,
  -- network: set the one-time boot device first.
  boot text,
  asked_by text not null,
  asked_at timestamptz not null default now(),
  state text not null default 'queued',
  -- Written before the act: what the worker is about to do. A cycle is off, then on, so that every act may be repeated.
  phase text,
  started_at timestamptz,
  ended_at timestamptz,
  fault jsonb
);
create unique index power_orders_queued on power_orders (machine_id) where state = 'queued';
create unique index power_orders_running on power_orders (machine_id) where state = 'running';
create index power_orders_machine on power_orders (machine_id, id desc);

create sequence claim_tokens;

create table allocations (
  id text collate "C" primary key,
  owner text not null,
  state text not null,
  strategy text not null,
  -- Of the whole allocation; this partition may hold a part.
  count integer not null,
  note text not null,
  constraints jsonb not null,
  machine_ids text[] not null,
  created_at timestamptz not null,
  expires_at timestamptz
);
create index allocations_created on allocations (created_at, id);
create index allocations_held on allocations (expires_at) where state = 'held';

create table idempotency_keys (
  key text primary key,
  allocation_id text not null,
  record jsonb not null,
  created_at timestamptz not null default now()
);
create index idempotency_keys_created on idempotency_keys (created_at);

create table events (
  id bigint generated always as identity primary key,
  -- Given by the sequencer after commit: dense, so that a gap is a loss. Null for some milliseconds.
  seq bigint,
  at timestamptz not null default clock_timestamp(),
  kind text not null,
  machine_id text,
  actor text not null,
  data jsonb not null
) with (fillfactor = 80);
create unique index events_seq on events (seq);
create index events_unnumbered on events (id) where seq is null;
create index events_machine on events (machine_id, seq);

create table event_log (
  only_row boolean primary key default true check (only_row),
  last_seq bigint not null
);
insert into event_log (last_seq) values (0);

create table labels (
  kind text not null,
  name text collate "C" not null,
  description text not null,
  primary key (kind, name)
);

create sequence replica_epochs;
create table replicas (
  name text primary key,
  epoch bigint not null,
  version text not null,
  url text not null,
  seen_at timestamptz not null default now()
);
