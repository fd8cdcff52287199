-- expand
-- How far the transaction under way to a server goes, so that a restart sends the same one again. Writer and trim: as
-- destinations.
ALTER TABLE destinations ADD COLUMN sent_pos BIGINT NOT NULL DEFAULT 0; -- position of its last event, 0: none
ALTER TABLE destinations ADD COLUMN sent_edu BIGINT NOT NULL DEFAULT 0; -- ID of its last row of edus, 0: none
