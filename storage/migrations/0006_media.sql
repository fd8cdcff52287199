-- expand
-- Files, and the thumbnails made of them. The bytes are in the blob store, each content once, under its
-- hash. Writer: media.
-- Trim: an ID that was reserved and never filled goes when it expires; a file of another server, and its
-- thumbnails, a month after somebody last asked for it, since its own server still has it. Files of our
-- users stay.

CREATE TABLE media (
	origin         TEXT NOT NULL,    -- server name of the mxc URI
	media_id       TEXT NOT NULL,
	hash           TEXT NOT NULL,    -- content; '': reserved, not uploaded yet
	size           BIGINT NOT NULL,
	type           TEXT NOT NULL,    -- Content-Type as uploaded
	name           TEXT NOT NULL,    -- file name as uploaded, or ''
	user_id        TEXT NOT NULL,    -- who uploaded it; '': fetched from its server
	created        BIGINT NOT NULL,
	expires        BIGINT NOT NULL,  -- when a reserved ID is given up; 0: it is filled
	last_access    BIGINT NOT NULL,  -- to the hour
	public         BOOLEAN NOT NULL, -- from before the freeze of unauthenticated access, such as imported media
	quarantined_by TEXT NOT NULL,    -- user ID of the administrator who withdrew it, or ''
	PRIMARY KEY (origin, media_id)
);
CREATE INDEX media_user ON media (user_id, created);
CREATE INDEX media_hash ON media (hash);
CREATE INDEX media_expires ON media (expires);
CREATE INDEX media_access ON media (last_access);

CREATE TABLE media_thumbnails (
	source TEXT NOT NULL, -- hash of the content it was made of
	width  BIGINT NOT NULL,
	height BIGINT NOT NULL,
	method TEXT NOT NULL,
	hash   TEXT NOT NULL,
	size   BIGINT NOT NULL,
	type   TEXT NOT NULL,
	PRIMARY KEY (source, width, height, method)
);
CREATE INDEX media_thumbnails_hash ON media_thumbnails (hash);
