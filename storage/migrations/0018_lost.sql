-- expand

-- A database that was restored has lost events of ours that other servers have: each room asks them once in a new
-- epoch. The epoch in which it last did; 0: never, it was made in the first. Writer: roomserver, the owner of the
-- room's shard. Trim: goes with the room.
ALTER TABLE rooms ADD COLUMN asked BIGINT NOT NULL DEFAULT 0;
