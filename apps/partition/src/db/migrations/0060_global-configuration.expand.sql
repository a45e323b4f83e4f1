-- The partition's copy of the global configuration: whole, signed, and kept for ever. It only ever grows newer.
create table global_configuration (
  only_row boolean primary key default true check (only_row),
  generation bigint not null,
  payload text not null,
  signature text not null,
  signed_by text not null,
  taken_at timestamptz not null default now()
);
