-- Who asked for which change, from where, and what came of it. An entry is opened before its change and closed after it; then it gets a number and a place in the chain.
create table audit (
  id bigint generated always as identity primary key,
  at timestamptz not null,
  actor text not null,
  role text not null,
  origin text not null,
  via text,
  call text not null,
  target text not null,
  fields text[] not null,
  request_id text not null,
  server text not null,
  ended_at timestamptz,
  outcome text,
  result text,
  seq bigint unique,
  hash bytea,
  signature text,
  signed_by text
);
create index audit_not_chained on audit (ended_at, id) where seq is null;
