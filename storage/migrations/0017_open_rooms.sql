-- expand
-- Rooms whose members everybody may find, since anybody may join or read. Writer: roomserver, the owner of the room's
-- shard, whenever the room's state changes. Trim: none, at most one row for each room. looked_at is FALSE for rooms
-- that are older than this table; they are looked at when the server starts.
CREATE TABLE open_rooms (
	room      BIGINT PRIMARY KEY,
	looked_at BOOLEAN NOT NULL
);
INSERT INTO open_rooms (room, looked_at) SELECT nid, FALSE FROM rooms;
