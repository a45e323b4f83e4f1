-- Who this partition is in its federation: the key it made, and what it was told when it was accepted.
create table membership (
  only_row boolean primary key default true check (only_row),
  -- The seed of its nkey, sealed.
  nats_seed bytea not null,
  nats_url text,
  config_keys text[] not null default '{}',
  accepted_at timestamptz
);
