-- expand
-- What other servers are owed, and what they sent us.

-- A row while a server is owed events, or does not answer; a server without a row has all that the outbox's
-- cursor has passed. Writer: federation's outbox, at most once a second. Trimmed: a row goes when nothing is owed.
CREATE TABLE destinations (
	name     TEXT PRIMARY KEY,
	behind   BOOLEAN NOT NULL, -- events after acked are owed
	acked    BIGINT NOT NULL,  -- position up to which the server has every event it is to get
	failures BIGINT NOT NULL,  -- requests that failed in a row
	retry_at BIGINT NOT NULL   -- milliseconds; not asked before
);

-- To-device messages and device list updates for other servers. Writer: users, in the transaction of what they
-- tell. Trimmed: the outbox deletes a row when its server has it, and rows of more than 30 days.
CREATE TABLE edus (
	destination TEXT NOT NULL,
	id          BIGINT NOT NULL, -- ascends with the clock: microseconds, and never twice in a process
	type        TEXT NOT NULL,
	content     TEXT NOT NULL,
	PRIMARY KEY (destination, id)
);
CREATE INDEX edus_id ON edus (id);

-- Transactions of other servers that we took, with our answer: a repetition gets the same one. Writer: federation.
-- Trimmed: a day old.
CREATE TABLE received_transactions (
	origin TEXT NOT NULL,
	txn_id TEXT NOT NULL,
	answer TEXT NOT NULL, -- JSON
	ts     BIGINT NOT NULL,
	PRIMARY KEY (origin, txn_id)
);
CREATE INDEX received_transactions_ts ON received_transactions (ts);
