-- Public keys that may log in to the rescue system, while the machine is in it.
alter table machines add column rescue_keys text[] not null default '{}';
