-- expand
-- How many members a room has, and of which servers, so that nobody counts them. Writer: whoever writes members, in the
-- same transaction.

ALTER TABLE rooms ADD COLUMN joined BIGINT NOT NULL DEFAULT 0;
ALTER TABLE rooms ADD COLUMN invited BIGINT NOT NULL DEFAULT 0;
UPDATE rooms SET joined = (SELECT count(*) FROM members m WHERE m.room = rooms.nid AND m.membership = 'join'),
	invited = (SELECT count(*) FROM members m WHERE m.room = rooms.nid AND m.membership = 'invite');

-- Servers with joined members. Trimmed: a row goes with the last of them.
CREATE TABLE member_servers (
	room   BIGINT NOT NULL,
	server TEXT NOT NULL,
	joined BIGINT NOT NULL,
	PRIMARY KEY (room, server)
);
INSERT INTO member_servers (room, server, joined)
	SELECT room, server, count(*) FROM members WHERE membership = 'join' GROUP BY room, server;

-- The event by which the room first heard of the user: members stand in this order.
ALTER TABLE members ADD COLUMN first_event BIGINT NOT NULL DEFAULT 0;
UPDATE members SET first_event = event;
CREATE INDEX members_first ON members (room, membership, first_event);

-- Accounts that are looked for when the server starts.
CREATE INDEX accounts_leaving ON accounts (user_id) WHERE leaving;
CREATE INDEX accounts_guest ON accounts (user_id) WHERE guest;
