-- Networks whose addresses another DHCP server gives, and in which a replica only says what to boot.
alter table network_services add column beside text[] not null default '{}';

-- Where a machine's boot script was given to, with its token: one address at a time for each of its tasks.
create table boots (
  machine_id text primary key references machines on delete cascade,
  run text not null,
  -- When the machine's state began: a run may have two tasks (an installation, a rescue later).
  since timestamptz not null,
  address text not null
);

-- What replicas that share a network's addresses have given, each for the others to know.
create table dhcp_leases (
  mac text not null,
  address text not null,
  until timestamptz not null,
  primary key (mac, address)
);
