-- expand
-- Whose database this is: one row. Writer: the first start. Trim: never.
CREATE TABLE server (
	one  BIGINT PRIMARY KEY CHECK (one = 1),
	name TEXT NOT NULL
);
