-- expand
-- One-time keys of our devices that were given out lately: one that its device uploads again, since it heard no answer
-- the first time, is not given out again. Writer: users, with the claim. Trimmed: a day old, and with the device.
CREATE TABLE claimed_keys (
	user_id   TEXT NOT NULL,
	device_id TEXT NOT NULL,
	algorithm TEXT NOT NULL,
	key_id    TEXT NOT NULL,
	json      TEXT NOT NULL,
	ts        BIGINT NOT NULL,
	PRIMARY KEY (user_id, device_id, algorithm, key_id)
);
CREATE INDEX claimed_keys_ts ON claimed_keys (ts);
