-- expand
-- Events that another server sent and that could not be judged yet: nobody could be asked for what they build on.
-- Their signatures hold. Writer: roomserver, the room's owner. Trimmed: a row goes when its event was judged, after a
-- day, and when a room, or all rooms, have more than the writer keeps.
CREATE TABLE unjudged (
	room     BIGINT NOT NULL,
	event_id TEXT NOT NULL,
	origin   TEXT NOT NULL, -- the server that sent it
	since    BIGINT NOT NULL, -- milliseconds
	json     TEXT NOT NULL,
	PRIMARY KEY (room, event_id)
);
CREATE INDEX unjudged_since ON unjudged (since);
