-- The networks of a partition and who has which of their addresses.

create table subnets (
  name text collate "C" primary key,
  cidr cidr not null,
  -- Null: untagged.
  vlan integer,
  gateway inet,
  nameservers text[] not null,
  description text not null,
  created_at timestamptz not null default now(),
  -- One VLAN is one wire: an address on it must lead to one subnet. A range of one number, because GiST has no equality without an extension.
  constraint subnets_overlap exclude using gist (inet(cidr) inet_ops with &&, int4range(coalesce(vlan, 0), coalesce(vlan, 0) + 1) with &&)
);

-- Addresses that are not given out.
create table subnet_ranges (
  subnet text collate "C" not null references subnets on delete cascade,
  first inet not null,
  last inet not null,
  note text not null,
  primary key (subnet, first)
);

create table addresses (
  id bigint generated always as identity primary key,
  subnet text collate "C" not null references subnets,
  address inet not null,
  -- How lists sort: the version of IP, then the address in hexadecimal.
  place text collate "C" not null generated always as (family(address) || '-' || substr(encode(inet_send(address), 'hex'), 9)) stored,
  -- reserved: somebody asked for it; document: the network document of the machine, or of its deployment, has it.
  source text not null,
  machine_id text collate "C" references machines on delete cascade,
  mac text,
  note text not null default '',
  actor text not null,
  created_at timestamptz not null default now(),
  constraint addresses_once unique (subnet, address)
);
create unique index addresses_mac on addresses (subnet, mac) where source = 'reserved';
create index addresses_machine on addresses (machine_id) where machine_id is not null;
create index addresses_place on addresses (place, id);

-- Names in the partition's DNS zone that lead to an address: the first, then its aliases.
create table dns_names (
  name text collate "C" primary key,
  address_id bigint not null references addresses on delete cascade,
  place integer not null
);
create index dns_names_address on dns_names (address_id);

-- What DHCP a replica serves, as it was told at its start.
create table network_services (
  replica text primary key,
  -- Its own addresses on the interfaces that it serves: by them its offers are known.
  addresses text[] not null,
  ranges jsonb not null,
  zone text
);
