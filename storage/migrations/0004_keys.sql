-- expand
-- Keys of devices and people, backups of room keys, to-device messages, device lists. Writer: users.

-- Identity keys of our devices. They go with the device.
CREATE TABLE device_keys (
	user_id   TEXT NOT NULL,
	device_id TEXT NOT NULL,
	json      TEXT NOT NULL,
	PRIMARY KEY (user_id, device_id)
);

-- One-time keys of our devices. A key goes when it is claimed, and with its device; users bounds
-- how many a device may have.
CREATE TABLE one_time_keys (
	user_id   TEXT NOT NULL,
	device_id TEXT NOT NULL,
	algorithm TEXT NOT NULL,
	key_id    TEXT NOT NULL,
	upload    BIGINT NOT NULL, -- which upload of the device brought it: they are given out in this order
	json      TEXT NOT NULL,
	PRIMARY KEY (user_id, device_id, algorithm, key_id)
);
CREATE INDEX one_time_keys_upload ON one_time_keys (user_id, device_id, algorithm, upload, key_id);

-- Fallback keys of our devices, one for an algorithm. They go with the device.
CREATE TABLE fallback_keys (
	user_id   TEXT NOT NULL,
	device_id TEXT NOT NULL,
	algorithm TEXT NOT NULL,
	key_id    TEXT NOT NULL,
	json      TEXT NOT NULL,
	used      BOOLEAN NOT NULL,
	PRIMARY KEY (user_id, device_id, algorithm)
);

-- Cross-signing keys: of our users, and what is cached of others'.
CREATE TABLE cross_signing_keys (
	user_id    TEXT NOT NULL,
	usage      TEXT NOT NULL, -- master, self_signing, user_signing (of our users only)
	public_key TEXT NOT NULL,
	json       TEXT NOT NULL,
	PRIMARY KEY (user_id, usage)
);

-- Signatures that our users put on keys, beside those that came with the keys. They go with what
-- they sign: bounded by the keys there are.
CREATE TABLE key_signatures (
	user_id    TEXT NOT NULL, -- whose key is signed
	target     TEXT NOT NULL, -- device ID, or public key of a cross-signing key
	signer     TEXT NOT NULL,
	signer_key TEXT NOT NULL, -- with its algorithm
	signature  TEXT NOT NULL,
	PRIMARY KEY (user_id, target, signer, signer_key)
);

-- The latest device list update of each of our users. One row a user.
CREATE TABLE device_list_streams (
	user_id   TEXT PRIMARY KEY,
	stream_id BIGINT NOT NULL,
	prev_id   BIGINT NOT NULL -- the one before, 0: none
);

-- Which servers were told of a user's devices when the user came into a room with them. A row goes
-- when they share none any more.
CREATE TABLE device_list_told (
	user_id TEXT NOT NULL,
	server  TEXT NOT NULL,
	PRIMARY KEY (user_id, server)
);

-- Device lists of other servers' users. A row goes when no room is shared any more.
CREATE TABLE remote_device_lists (
	user_id   TEXT PRIMARY KEY,
	server    TEXT NOT NULL,
	stream_id BIGINT NOT NULL,  -- of the newest update that is in the list
	stale     BOOLEAN NOT NULL, -- to be fetched again
	failures  BIGINT NOT NULL,  -- of fetching it
	retry_at  BIGINT NOT NULL   -- when to fetch it, if stale
);
CREATE INDEX remote_device_lists_stale ON remote_device_lists (retry_at) WHERE stale;

CREATE TABLE remote_devices (
	user_id      TEXT NOT NULL,
	device_id    TEXT NOT NULL,
	json         TEXT NOT NULL, -- its keys, or '' when it has none
	display_name TEXT NOT NULL,
	PRIMARY KEY (user_id, device_id)
);

-- To-device messages that wait for our devices. A message goes when the device has acknowledged
-- it, and with the device; users bounds how many wait.
CREATE TABLE to_device (
	user_id   TEXT NOT NULL,
	device_id TEXT NOT NULL,
	number    BIGINT NOT NULL, -- ascending in the order of commits, for each device
	sender    TEXT NOT NULL,
	type      TEXT NOT NULL,
	content   TEXT NOT NULL,
	PRIMARY KEY (user_id, device_id, number)
);

-- The number of each device's newest message. A row goes with its device.
CREATE TABLE to_device_inboxes (
	user_id   TEXT NOT NULL,
	device_id TEXT NOT NULL,
	last      BIGINT NOT NULL,
	PRIMARY KEY (user_id, device_id)
);

-- What was sent already: by our devices (origin '') and by other servers. Trimmed by time.
CREATE TABLE to_device_sent (
	origin  TEXT NOT NULL,
	sender  TEXT NOT NULL, -- user and device of ours, or ''
	sent_id TEXT NOT NULL, -- transaction or message ID
	ts      BIGINT NOT NULL,
	PRIMARY KEY (origin, sender, sent_id)
);
CREATE INDEX to_device_sent_ts ON to_device_sent (ts);

-- Backups of room keys. Users delete them; a deleted version leaves its number.
CREATE TABLE key_backups (
	user_id   TEXT NOT NULL,
	version   BIGINT NOT NULL,
	algorithm TEXT NOT NULL,
	auth_data TEXT NOT NULL,
	etag      BIGINT NOT NULL, -- goes up with every change of a key
	deleted   BOOLEAN NOT NULL,
	PRIMARY KEY (user_id, version)
);

CREATE TABLE key_backup_sessions (
	user_id             TEXT NOT NULL,
	version             BIGINT NOT NULL,
	room_id             TEXT NOT NULL,
	session_id          TEXT NOT NULL,
	first_message_index BIGINT NOT NULL,
	forwarded_count     BIGINT NOT NULL,
	is_verified         BOOLEAN NOT NULL,
	session_data        TEXT NOT NULL,
	PRIMARY KEY (user_id, version, room_id, session_id)
);
