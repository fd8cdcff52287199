-- expand
-- What users report of rooms, events and users. Writer: roomserver.Report. Trim: the latest 100,000 are kept.
CREATE TABLE reports (
	id       BIGINT PRIMARY KEY,
	reporter TEXT NOT NULL,
	room_id  TEXT NOT NULL,
	event_id TEXT NOT NULL,
	user_id  TEXT NOT NULL,
	reason   TEXT NOT NULL,
	score    BIGINT NOT NULL,
	ts       BIGINT NOT NULL
);
