-- expand
-- Who was away for long asks whose devices changed since: these facts are few among all.
CREATE INDEX facts_device_lists ON facts (pos) WHERE kind = 10;
