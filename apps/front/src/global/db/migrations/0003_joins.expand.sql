-- Partitions that have asked to take part. A row is a hint for whoever accepts: losing it costs the time until the partition asks again.
create table joins (
  name text primary key,
  join_id text not null,
  nats_key text not null,
  version text not null,
  url text not null,
  operating_systems text[] not null,
  origin text not null,
  asked_at timestamptz not null default now(),
  seen_at timestamptz not null default now()
);
