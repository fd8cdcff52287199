-- expand
-- Rooms of which a part of the state is still to come, decision 0013. Writer: roomserver, the owner of the room's shard.
-- Trimmed: the rows of a room go when it is whole, or when the last of our users has left it.

CREATE TABLE partial_joins (
	room       BIGINT PRIMARY KEY,
	join_event BIGINT NOT NULL, -- the state before it is what is to come
	server     TEXT NOT NULL    -- that took the join: asked first
);

-- The servers in the room by the word of that server.
CREATE TABLE partial_servers (
	room   BIGINT NOT NULL,
	server TEXT NOT NULL,
	PRIMARY KEY (room, server)
);

-- Events that were judged by a part of the state, in the order in which they came.
CREATE TABLE partial_events (
	room    BIGINT NOT NULL,
	event   BIGINT NOT NULL,
	seq     BIGINT NOT NULL,
	history BOOLEAN NOT NULL, -- of the past when it came: the room's state at receipt is no matter
	PRIMARY KEY (room, event)
);
