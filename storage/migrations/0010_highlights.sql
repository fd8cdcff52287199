-- expand
-- Unread highlights are counted however far back they are: without a look at what is none.
CREATE INDEX notifications_highlight ON notifications (user_id, room, ord) WHERE highlight;
