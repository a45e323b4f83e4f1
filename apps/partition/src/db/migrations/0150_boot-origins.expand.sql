-- Networks whose addresses another DHCP server gives, and in which a replica only says what to boot.
alter table network_services add column beside text[] not null default '{}';
