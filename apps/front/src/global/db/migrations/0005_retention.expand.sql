-- Where entries of the audit log were cut off for their age: an entry of its own.
create index audit_cuts on audit (seq) where call = 'audit.cut';
create index joins_seen on joins (seen_at);
