-- The digest of every generation's payload, kept when the payload is forgotten: a partition that was away for long is shown by them that what is in
-- force follows from what it has. Generations that a front of an older release writes are not in here; a lineage begins anew behind them.
create table lineage (
  generation bigint primary key,
  digest text not null
);
