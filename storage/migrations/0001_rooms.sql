-- expand
-- Rooms, their events and their state. Writer: roomserver, the owner of the room's shard.

CREATE TABLE rooms (
	nid       BIGINT PRIMARY KEY,
	room_id   TEXT NOT NULL,
	version   TEXT NOT NULL,
	root      BIGINT NOT NULL, -- current state, resolved over the extremities
	next_slot BIGINT NOT NULL, -- never goes back
	next_node BIGINT NOT NULL, -- never goes back
	partial   BOOLEAN NOT NULL
);
CREATE UNIQUE INDEX rooms_room_id ON rooms (room_id);

CREATE TABLE events (
	nid         BIGINT PRIMARY KEY,
	room        BIGINT NOT NULL,
	event_id    TEXT NOT NULL,
	type        TEXT NOT NULL,
	state_key   TEXT,
	sender      TEXT NOT NULL,
	depth       BIGINT NOT NULL,
	ts          BIGINT NOT NULL,
	ord         BIGINT,           -- place in the room's history; NULL: not part of it
	status      SMALLINT NOT NULL, -- 0 accepted, 1 soft-failed, 2 rejected, 3 outlier: known, but not where it stands
	root_before BIGINT NOT NULL,
	root_after  BIGINT NOT NULL,
	notify      BOOLEAN NOT NULL, -- the default push rules notify of it
	redacted_by TEXT NOT NULL     -- the redaction that took effect, or ''
);
CREATE UNIQUE INDEX events_event_id ON events (event_id);
CREATE UNIQUE INDEX events_ord ON events (room, ord);
CREATE INDEX events_ts ON events (room, ts);

CREATE TABLE event_json (
	nid  BIGINT PRIMARY KEY,
	json TEXT NOT NULL
);

-- Auth events of state events, as numbers; those of other events are read from their JSON.
CREATE TABLE event_auth (
	event BIGINT NOT NULL,
	auth  BIGINT NOT NULL,
	PRIMARY KEY (event, auth)
);

-- Where events stand in their room's chain cover: from a place, every lower index of the same chain is in
-- the event's auth chain. Every event that others may cite as an auth event has one.
CREATE TABLE event_places (
	event BIGINT PRIMARY KEY,
	room  BIGINT NOT NULL,
	chain BIGINT NOT NULL,
	idx   BIGINT NOT NULL
);
CREATE UNIQUE INDEX event_places_chain ON event_places (room, chain, idx);

-- The event at (from_chain, from_idx) has (to_chain, to_idx), and all before it, in its auth chain.
CREATE TABLE chain_links (
	room       BIGINT NOT NULL,
	from_chain BIGINT NOT NULL,
	from_idx   BIGINT NOT NULL,
	to_chain   BIGINT NOT NULL,
	to_idx     BIGINT NOT NULL,
	PRIMARY KEY (room, from_chain, from_idx, to_chain, to_idx)
);
CREATE INDEX chain_links_to ON chain_links (room, to_chain, to_idx);

-- Prev events that are not here yet: each row is an open gap below the event.
CREATE TABLE missing_prev (
	room    BIGINT NOT NULL,
	event   BIGINT NOT NULL,
	prev_id TEXT NOT NULL,
	PRIMARY KEY (room, event, prev_id)
);
CREATE INDEX missing_prev_id ON missing_prev (prev_id);

CREATE TABLE extremities (
	room  BIGINT NOT NULL,
	event BIGINT NOT NULL,
	PRIMARY KEY (room, event)
);

CREATE TABLE state_slots (
	room      BIGINT NOT NULL,
	slot      BIGINT NOT NULL,
	type      TEXT NOT NULL,
	state_key TEXT NOT NULL,
	PRIMARY KEY (room, slot)
);
CREATE UNIQUE INDEX state_slots_key ON state_slots (room, type, state_key);

CREATE TABLE state_nodes (
	room BIGINT NOT NULL,
	node BIGINT NOT NULL,
	data BYTEA NOT NULL,
	PRIMARY KEY (room, node)
);

-- The members of the current state, of every server.
CREATE TABLE members (
	room        BIGINT NOT NULL,
	user_id     TEXT NOT NULL,
	server      TEXT NOT NULL,
	membership  TEXT NOT NULL,
	event       BIGINT NOT NULL,
	displayname TEXT NOT NULL,
	avatar_url  TEXT NOT NULL,
	forgotten   BOOLEAN NOT NULL,
	PRIMARY KEY (room, user_id)
);
CREATE INDEX members_user ON members (user_id, membership);
CREATE INDEX members_server ON members (room, membership, server);

-- Invites and knocks of our users in rooms that we are not in.
CREATE TABLE invites (
	user_id    TEXT NOT NULL,
	room_id    TEXT NOT NULL,
	version    TEXT NOT NULL,
	membership TEXT NOT NULL, -- invite, knock, or leave when it ended
	sender     TEXT NOT NULL,
	event_id   TEXT NOT NULL,
	event      TEXT NOT NULL, -- JSON
	stripped   TEXT NOT NULL, -- JSON array of stripped state
	PRIMARY KEY (user_id, room_id)
);

-- Sets of servers that events are sent to: a fact names one.
CREATE TABLE server_sets (
	nid     BIGINT PRIMARY KEY,
	room    BIGINT NOT NULL,
	servers TEXT NOT NULL -- JSON array, sorted
);

CREATE TABLE transactions (
	room      BIGINT NOT NULL,
	user_id   TEXT NOT NULL,
	device_id TEXT NOT NULL,
	endpoint  TEXT NOT NULL, -- send or redact: an ID counts for one of them
	txn_id    TEXT NOT NULL,
	event_id  TEXT NOT NULL,
	event     BIGINT NOT NULL,
	ts        BIGINT NOT NULL,
	PRIMARY KEY (room, user_id, device_id, endpoint, txn_id)
);
CREATE INDEX transactions_event ON transactions (event);
CREATE INDEX transactions_ts ON transactions (ts);

-- Which event redacts which: a redaction may come before what it redacts.
CREATE TABLE redactions (
	redacts  TEXT NOT NULL,
	event_id TEXT NOT NULL,
	room     BIGINT NOT NULL,
	event    BIGINT NOT NULL,
	PRIMARY KEY (redacts, event_id)
);

CREATE TABLE relations (
	room     BIGINT NOT NULL,
	event    BIGINT NOT NULL,
	target   TEXT NOT NULL,
	rel_type TEXT NOT NULL,
	type     TEXT NOT NULL,
	sender   TEXT NOT NULL,
	agg_key  TEXT NOT NULL, -- of an annotation
	PRIMARY KEY (event)
);
CREATE INDEX relations_target ON relations (room, target, rel_type, event);

CREATE TABLE aliases (
	alias   TEXT PRIMARY KEY,
	room_id TEXT NOT NULL,
	creator TEXT NOT NULL
);
CREATE INDEX aliases_room ON aliases (room_id);

-- Rooms in the public directory.
CREATE TABLE published (
	room_id TEXT PRIMARY KEY
);

-- Events that make a mention or that a user's own push rules judge otherwise than the default rules.
CREATE TABLE notifications (
	user_id   TEXT NOT NULL,
	room      BIGINT NOT NULL,
	ord       BIGINT NOT NULL,
	event     BIGINT NOT NULL,
	notify    BOOLEAN NOT NULL,
	highlight BOOLEAN NOT NULL,
	thread    TEXT NOT NULL,
	PRIMARY KEY (user_id, room, ord)
);

-- How far each reader of the log has come.
CREATE TABLE cursors (
	name TEXT PRIMARY KEY,
	pos  BIGINT NOT NULL
);

-- Keys of other servers.
CREATE TABLE server_keys (
	server      TEXT NOT NULL,
	key_id      TEXT NOT NULL,
	key         TEXT NOT NULL,
	valid_until BIGINT NOT NULL,
	expired     BIGINT NOT NULL,
	PRIMARY KEY (server, key_id)
);
