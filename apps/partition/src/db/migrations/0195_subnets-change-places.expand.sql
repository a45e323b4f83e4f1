-- Several subnets may be described anew in one transaction: two that exchange their networks overlap only until the second one has moved.
alter table subnets drop constraint subnets_overlap,
  add constraint subnets_overlap exclude using gist (inet(cidr) inet_ops with &&, int4range(coalesce(vlan, 0), coalesce(vlan, 0) + 1) with &&)
    deferrable initially immediate;
