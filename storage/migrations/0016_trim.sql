-- expand
-- What trimming needs to know.

-- Where the positions stood at a time: they count facts and do not follow the clock. Writer: the trim, once an hour.
-- Trimmed: those below the facts that are left, but for the newest of them.
CREATE TABLE fact_marks (
	ts  BIGINT PRIMARY KEY, -- milliseconds
	pos BIGINT NOT NULL     -- of the newest fact
);

-- When another set of servers took a set's place in its room (milliseconds, 0: none did): no later fact names it.
-- Writer: roomserver, the owner of the room's shard. Trimmed: a set goes with the last fact that may name it.
ALTER TABLE server_sets ADD COLUMN superseded BIGINT NOT NULL DEFAULT 0;
CREATE INDEX server_sets_room ON server_sets (room) WHERE superseded = 0;
CREATE INDEX server_sets_superseded ON server_sets (superseded) WHERE superseded > 0;
