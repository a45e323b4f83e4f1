-- What somebody has is counted at each of its allocations, where a quota binds it.
create index machines_owner on machines (owner) where owner is not null;
