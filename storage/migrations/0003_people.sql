-- expand
-- What belongs to a person beside accounts and keys. Writer: users.

-- Profiles of our users. Bounded: 64 KiB each.
CREATE TABLE profiles (
	user_id     TEXT PRIMARY KEY,
	fields      TEXT NOT NULL,   -- JSON object: all fields as the user gave them
	displayname TEXT NOT NULL,   -- copies of two of the fields, '' when absent
	avatar_url  TEXT NOT NULL,
	folded      TEXT NOT NULL,   -- what the user directory searches: display name and localpart, case folded
	spreading   BIGINT NOT NULL  -- not 0: rooms are still to be told; goes up with each change
);
CREATE INDEX profiles_spreading ON profiles (spreading);

-- Trimmed with the account; a type has one row, and types are limited per user.
CREATE TABLE account_data (
	user_id TEXT NOT NULL,
	room    BIGINT NOT NULL, -- 0: global
	type    TEXT NOT NULL,
	content TEXT NOT NULL,   -- JSON object
	PRIMARY KEY (user_id, room, type)
);

-- How a user's push rules differ from the default ones.
CREATE TABLE push_rules (
	user_id TEXT PRIMARY KEY,
	rules   TEXT NOT NULL -- JSON, see package pushrules
);

-- Where users have read up to; of other servers' users too, but never private ones. One row for each
-- thread that was read; goes with the room.
CREATE TABLE receipts (
	room     BIGINT NOT NULL,
	user_id  TEXT NOT NULL,
	type     TEXT NOT NULL,
	thread   TEXT NOT NULL,   -- '': unthreaded; main; or the root's event ID
	event_id TEXT NOT NULL,
	ord      BIGINT NOT NULL, -- the event's place in the room; 0: not known here
	ts       BIGINT NOT NULL,
	PRIMARY KEY (room, user_id, type, thread)
);
CREATE INDEX receipts_user ON receipts (user_id, room);

CREATE TABLE pushers (
	user_id  TEXT NOT NULL,
	app_id   TEXT NOT NULL,
	push_key TEXT NOT NULL,
	device   TEXT NOT NULL,   -- that set it; it goes with the device
	created  BIGINT NOT NULL,
	pusher   TEXT NOT NULL,   -- JSON as the client set it
	PRIMARY KEY (user_id, app_id, push_key)
);
CREATE INDEX pushers_key ON pushers (app_id, push_key);
CREATE INDEX pushers_device ON pushers (user_id, device);

-- Filters never change. A user that defines the same one again gets the same number; at most 1,000 each.
CREATE TABLE filters (
	user_id TEXT NOT NULL,
	id      BIGINT NOT NULL,
	hash    TEXT NOT NULL,
	filter  TEXT NOT NULL,
	PRIMARY KEY (user_id, id)
);
CREATE UNIQUE INDEX filters_hash ON filters (user_id, hash);
