-- The home of the global configuration: a row per generation, whole and signed. The highest is in force.
create table generations (
  generation bigint primary key,
  payload text not null,
  signature text not null,
  signed_by text not null,
  changed_at timestamptz not null,
  changed_by text not null,
  note text not null
);
