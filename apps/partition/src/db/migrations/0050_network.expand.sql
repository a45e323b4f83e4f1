-- How a machine's network is to be: what an operator set for it, and what its deployment was given, which goes with the deployment.
alter table machines add column network jsonb, add column deployment_network jsonb;
