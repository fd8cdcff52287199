-- expand
-- The engine's own tables. Writer: this package.

-- Facts are what clients and servers are told, in the order of their commits. Trimmed below
-- the slowest reader and 30 days; the last row stays, the next position is counted from it.
CREATE TABLE facts (
	pos       BIGINT PRIMARY KEY,
	kind      SMALLINT NOT NULL,
	room      BIGINT NOT NULL,
	event     BIGINT NOT NULL,
	ord       BIGINT NOT NULL,
	root      BIGINT NOT NULL,
	user_id   TEXT NOT NULL,
	device_id TEXT NOT NULL,
	extra     TEXT NOT NULL
);
CREATE INDEX facts_room ON facts (room, pos) WHERE room <> 0;
CREATE INDEX facts_user ON facts (user_id, pos) WHERE user_id <> '';

CREATE TABLE epochs (
	epoch    BIGINT PRIMARY KEY,
	id       TEXT NOT NULL,
	restored BIGINT NOT NULL, -- the highest position that was there
	jump     BIGINT NOT NULL, -- the position of the epoch's first fact
	system   TEXT NOT NULL,
	reason   TEXT NOT NULL
);

-- How far the blocks of numbers are given out: identities, never an order.
CREATE TABLE counters (
	name  TEXT PRIMARY KEY,
	value BIGINT NOT NULL
);

-- Fence and lease are two tables: the fence is shared by every commit of the shard, and a
-- renewal of the lease in the same row would starve.
CREATE TABLE fences (
	shard BIGINT PRIMARY KEY,
	fence BIGINT NOT NULL
);
CREATE TABLE leases (
	shard BIGINT PRIMARY KEY,
	owner TEXT NOT NULL,
	until BIGINT NOT NULL -- milliseconds, by the database's clock
);
