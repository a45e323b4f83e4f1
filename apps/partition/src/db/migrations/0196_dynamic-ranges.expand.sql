-- Addresses of a subnet that DHCP gives to anybody. A table of their own beside the reserved ranges: a replica of the release before, which describes
-- a subnet meanwhile, leaves them alone.
create table dynamic_ranges (
  subnet text collate "C" not null references subnets on delete cascade,
  first inet not null,
  last inet not null,
  note text not null,
  primary key (subnet, first)
);
