-- expand
-- Several servers may invite the same user into a room that we are not in, and nothing here says who of them may. Each
-- invite can be taken back by its own server and by those whose invites it stood on.
ALTER TABLE invites ADD COLUMN inviters TEXT NOT NULL DEFAULT '[]'; -- JSON array of servers, beside the sender's
ALTER TABLE invites ADD COLUMN beneath TEXT NOT NULL DEFAULT '[]'; -- JSON array of what is pending besides, newest first; bounded by the writer
