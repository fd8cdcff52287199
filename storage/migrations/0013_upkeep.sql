-- expand

-- How much of a room's state may be unused: nodes made for states that no event stands on are counted until the
-- next collection looks. Writer: roomserver, the owner of the room's shard. Trim: a row goes with its room.
CREATE TABLE state_upkeep (
	room  BIGINT PRIMARY KEY,
	loose BIGINT NOT NULL, -- nodes that may be unused, since the last collection
	kept  BIGINT NOT NULL  -- nodes that the last collection found in use
);
CREATE INDEX state_upkeep_loose ON state_upkeep (loose) WHERE loose > 1000;
