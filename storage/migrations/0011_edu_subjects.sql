-- expand
-- Of EDUs with the same subject for the same server the latest is enough; '' is no subject. Writer and trim: as edus.
ALTER TABLE edus ADD COLUMN subject TEXT NOT NULL DEFAULT '';
