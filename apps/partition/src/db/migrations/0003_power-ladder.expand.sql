-- Orders tell how to switch off and why they were given; which BMC a switch is behind, because several machines may share one.
alter table power_orders add column how text not null default 'hard';
alter table power_orders add column reason text not null default '';
