-- What a webhook that is limited to pools is told: the numbers of these events, chosen once. Machines change their pools, and a batch stays the same over all tries.
-- Null: all events of the wanted kinds, as before.
alter table webhook_cursors add column batch_seqs bigint[];
alter table webhook_dead_letters add column seqs bigint[];
