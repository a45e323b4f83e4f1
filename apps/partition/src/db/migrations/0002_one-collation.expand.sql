-- Ids are compared in the collation of machines.id and allocations.id wherever they stand. A join between two collations finds no index: every
-- look at a machine read the whole table of switches, and every confirm the machines of all allocations.
alter table machines alter column allocation_id type text collate "C";
alter table macs alter column machine_id type text collate "C";
alter table inventories alter column machine_id type text collate "C";
alter table machine_power alter column machine_id type text collate "C";
alter table power_orders alter column machine_id type text collate "C";
alter table events alter column machine_id type text collate "C";
