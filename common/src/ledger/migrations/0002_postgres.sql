-- The last line of defence: one identity is committed at most once, whatever the code above does. Any
-- number of its rows may be replaced or retracted, so these carry their id; no id is 0. One index,
-- since keys in no order make each of them expensive: its first columns find all rows of an object.
CREATE UNIQUE INDEX object_identity ON weirgate.object
    (feed, bucket, key, etag, (CASE state WHEN 'committed' THEN 0 ELSE id END));
DROP INDEX weirgate.object_committed;
DROP INDEX weirgate.object_key;

-- What an import asks first, in one round trip and with plans that stay: whether it gets each of the
-- locks; then, once nobody alters the table any more, what the ledger says of each object (a row for
-- each of its rows, or one of nulls), and in the first row the columns of the table as [name, type,
-- nullable]. Every statement sees what was committed before it began, so nobody comes between the locks
-- and the ledger. The inner query goes by the index whatever the planner believes of a ledger that grew
-- since it last looked.
CREATE FUNCTION weirgate.admission
    (of_feed text, locks bigint[], buckets text[], keys text[], of_table regclass)
RETURNS TABLE (n bigint, locked boolean, id bigint, etag text, sequencer text, state text,
               event_at_ms bigint, columns text)
LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    taken boolean[];
BEGIN
    taken := array(SELECT pg_try_advisory_xact_lock(l.key)
                   FROM unnest(locks) WITH ORDINALITY AS l(key, n) ORDER BY l.n);
    -- Reading a table locks it until the transaction ends. Whoever has to wait for that holds the
    -- objects' locks meanwhile: newer versions must not pass.
    IF of_table IS NOT NULL THEN
        EXECUTE format('SELECT FROM %s WHERE false', of_table);
    END IF;
    RETURN QUERY
        SELECT m.n, coalesce(taken[m.n], false), o.*, CASE m.n WHEN 1 THEN
            (SELECT json_agg(json_build_array(a.attname, format_type(a.atttypid, a.atttypmod),
                                              NOT a.attnotnull) ORDER BY a.attnum)::text
             FROM pg_attribute AS a
             WHERE a.attrelid = of_table AND a.attnum > 0 AND NOT a.attisdropped) END
        FROM unnest(buckets, keys) WITH ORDINALITY AS m(bucket, key, n)
        LEFT JOIN LATERAL (
            SELECT q.id, q.etag, q.sequencer, q.state, (1000 * extract(epoch FROM q.event_at))::bigint
            FROM weirgate.object AS q
            WHERE q.feed = of_feed AND q.bucket = m.bucket AND q.key = m.key OFFSET 0) AS o ON true;
END $$;
