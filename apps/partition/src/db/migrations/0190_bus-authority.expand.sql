-- By whose certificates the bus is believed, PEM, as the front said that accepted this partition.
alter table membership add nats_ca text;
