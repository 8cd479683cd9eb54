-- The last line of defence: one identity is committed at most once, whatever the code above does. Any
-- number of its rows may be replaced or retracted, so these carry their id; no id is 0. One index,
-- since keys in no order make each of them expensive: its first columns find all rows of an object.
CREATE UNIQUE INDEX weirgate_object_identity ON weirgate_object
    (feed, bucket, key, etag, (CASE state WHEN 'committed' THEN 0 ELSE id END));
DROP INDEX weirgate_object_committed;
DROP INDEX weirgate_object_key;
