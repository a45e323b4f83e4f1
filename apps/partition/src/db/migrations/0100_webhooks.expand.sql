-- How far each webhook was told of this partition's events, and what is being tried.
create table webhook_cursors (
  webhook text collate "C" primary key,
  -- The last event that was delivered, given up, or not wanted.
  seq bigint not null,
  -- The batch under way: its id, last event and wanted kinds stay the same over all tries. Null: none.
  batch text,
  batch_to bigint,
  batch_kinds text[],
  tries int not null default 0,
  first_tried_at timestamptz,
  again_at timestamptz not null default now(),
  delivered_at timestamptz,
  failed_at timestamptz,
  reason text,
  claim_token bigint,
  claimed_until timestamptz
);

-- Batches that were given up: which events, not the events themselves.
create table webhook_dead_letters (
  id bigint generated always as identity primary key,
  webhook text collate "C" not null,
  batch text not null,
  -- The events behind after_seq, to to_seq.
  after_seq bigint not null,
  to_seq bigint not null,
  kinds text[] not null,
  tries int not null,
  reason text not null,
  first_tried_at timestamptz not null,
  died_at timestamptz not null default now(),
  -- When it is sent again; null: when somebody asks for it.
  again_at timestamptz,
  replay_tries int not null default 0
);
create index webhook_dead_letters_webhook on webhook_dead_letters (webhook, id);
