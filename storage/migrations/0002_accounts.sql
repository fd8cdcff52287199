-- expand
-- Accounts, their devices and tokens. Writer: users.

CREATE TABLE accounts (
	user_id     TEXT PRIMARY KEY,
	password    TEXT NOT NULL,    -- PHC string; '': no password opens it
	created     BIGINT NOT NULL,
	admin       BOOLEAN NOT NULL,
	guest       BOOLEAN NOT NULL,
	deactivated BOOLEAN NOT NULL,
	erased      BOOLEAN NOT NULL, -- asked on deactivation: new members get this user's events redacted
	leaving     BOOLEAN NOT NULL, -- deactivated, and not out of all rooms yet
	locked      BOOLEAN NOT NULL,
	suspended   BOOLEAN NOT NULL,
	appservice  TEXT NOT NULL     -- the application service that made it, or ''
);

CREATE TABLE devices (
	user_id      TEXT NOT NULL,
	device_id    TEXT NOT NULL,
	display_name TEXT NOT NULL,
	created      BIGINT NOT NULL,
	last_seen_ts BIGINT NOT NULL,
	last_seen_ip TEXT NOT NULL,
	user_agent   TEXT NOT NULL,
	PRIMARY KEY (user_id, device_id)
);

-- Tokens are kept as hex of their SHA-256. All of these are trimmed by users: an access token a
-- month after it expired (until then its client is told to sign in again and keep its keys),
-- the others when they expire; those of a device go with it.
CREATE TABLE access_tokens (
	hash      TEXT PRIMARY KEY,
	user_id   TEXT NOT NULL,
	device_id TEXT NOT NULL,
	created   BIGINT NOT NULL,
	expires   BIGINT NOT NULL, -- 0: never
	replaces  TEXT NOT NULL    -- refresh token that is revoked when this one is first used, or ''
);
CREATE INDEX access_tokens_device ON access_tokens (user_id, device_id);
CREATE INDEX access_tokens_expires ON access_tokens (expires);
CREATE INDEX access_tokens_replaces ON access_tokens (replaces);

CREATE TABLE refresh_tokens (
	hash      TEXT PRIMARY KEY,
	user_id   TEXT NOT NULL,
	device_id TEXT NOT NULL,
	created   BIGINT NOT NULL,
	replaces  TEXT NOT NULL -- as above
);
CREATE INDEX refresh_tokens_device ON refresh_tokens (user_id, device_id);
CREATE INDEX refresh_tokens_replaces ON refresh_tokens (replaces);

-- For one login of another device of the user.
CREATE TABLE login_tokens (
	hash    TEXT PRIMARY KEY,
	user_id TEXT NOT NULL,
	expires BIGINT NOT NULL
);
CREATE INDEX login_tokens_expires ON login_tokens (expires);
CREATE INDEX login_tokens_user ON login_tokens (user_id);

-- By which a user proves to a third party who they are.
CREATE TABLE openid_tokens (
	hash    TEXT PRIMARY KEY,
	user_id TEXT NOT NULL,
	expires BIGINT NOT NULL
);
CREATE INDEX openid_tokens_expires ON openid_tokens (expires);
CREATE INDEX openid_tokens_user ON openid_tokens (user_id);
