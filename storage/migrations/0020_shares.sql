-- expand
-- The answers kept for one server are bounded: the oldest of its own go.
CREATE INDEX received_transactions_origin ON received_transactions (origin, ts);
