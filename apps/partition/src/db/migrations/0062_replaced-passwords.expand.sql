-- By this a password that a rotation has replaced is known again, where somebody brings it back: signed with the partition's key, not the password.
alter table credential_rotations add column replaced text;
