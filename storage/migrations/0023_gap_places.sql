-- expand
-- Where an open gap is, so that the highest one is found however many a room has. Writer: whoever places the event.

ALTER TABLE missing_prev ADD COLUMN ord BIGINT; -- the event's; NULL: it has no place
UPDATE missing_prev SET ord = (SELECT ord FROM events e WHERE e.nid = missing_prev.event);
CREATE INDEX missing_prev_ord ON missing_prev (room, ord);
