-- How a deployment asked for its disks to be, where its image is a root tarball; goes with the deployment.
alter table machines add column deployment_storage jsonb;
