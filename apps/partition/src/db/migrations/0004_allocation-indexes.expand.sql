-- House keeping looks at these every minute, and people list their own.
create index allocations_dropped on allocations (created_at) where state = 'dropped';
create index allocations_confirmed on allocations (id) where state = 'confirmed';
create index allocations_owner on allocations (owner, created_at, id);
