-- Complete feature rows in two times. Rows are added and never changed or deleted.
--
-- features: every feature of the view as known at ingest_time (of this event_time); JSON null: withdrawn or not computable.
-- stated: the features that this row's producer said; null: all of them. The others were completed from earlier rows.
-- revision: 0, or more where later writes dated at or before ingest_time completed the row. The highest counts.
-- restates: the ingest_time whose value this row contradicts, for a restatement that became known by being written.
CREATE FUNCTION perennial_has_timescaledb() RETURNS boolean LANGUAGE sql STABLE AS $$
    -- Available is not enough: a server that does not preload the library can't create the extension.
    SELECT EXISTS (SELECT FROM pg_extension WHERE extname = 'timescaledb')
        OR (EXISTS (SELECT FROM pg_available_extensions WHERE name = 'timescaledb')
            AND EXISTS (SELECT FROM pg_settings
                        WHERE name = 'shared_preload_libraries' AND setting LIKE '%timescaledb%'))
$$;

DO $$
DECLARE
    has_timescaledb CONSTANT boolean := perennial_has_timescaledb();
BEGIN
    EXECUTE $sql$
        CREATE TABLE feature_rows (
            view text COLLATE "C" NOT NULL,
            feature_version integer NOT NULL,
            entity_key text COLLATE "C" NOT NULL,
            event_time timestamptz NOT NULL,
            ingest_time timestamptz NOT NULL,
            revision smallint NOT NULL,
            features jsonb NOT NULL CHECK (jsonb_typeof(features) = 'object'),
            stated text[],
            restates timestamptz,
            written_at timestamptz NOT NULL,
            producer text NOT NULL,
            producer_version text NOT NULL,
            run_id text NOT NULL,
            -- Read backwards, its index serves the latest reads.
            PRIMARY KEY (view, feature_version, entity_key, event_time, ingest_time, revision)
        )
    $sql$ || CASE WHEN has_timescaledb THEN '' ELSE 'PARTITION BY RANGE (event_time)' END;
    -- Restatements are few; a bulk write asks which events have any.
    CREATE INDEX feature_rows_restated ON feature_rows (view, feature_version, entity_key, event_time)
        WHERE restates IS NOT NULL;
    IF has_timescaledb THEN
        IF NOT EXISTS (SELECT FROM pg_extension WHERE extname = 'timescaledb') THEN
            CREATE EXTENSION timescaledb;
        END IF;
        PERFORM create_hypertable(
            'feature_rows', by_range('event_time', INTERVAL '1 month'), create_default_indexes => false
        );
        ALTER TABLE feature_rows SET (
            timescaledb.compress,
            timescaledb.compress_segmentby = 'view, feature_version, entity_key',
            timescaledb.compress_orderby = 'event_time DESC, ingest_time DESC, revision DESC'
        );
        PERFORM add_compression_policy('feature_rows', compress_after => INTERVAL '7 days');
    END IF;
END
$$;

DROP FUNCTION perennial_has_timescaledb();

-- Which features a view has ever had.
CREATE TABLE feature_names (
    view text COLLATE "C" NOT NULL,
    feature_version integer NOT NULL,
    name text COLLATE "C" NOT NULL,
    PRIMARY KEY (view, feature_version, name)
);

-- The long form: one row a feature and statement about it, without what was only completed.
CREATE VIEW feature_events AS
    SELECT view, entity_key, feature.name AS feature, feature_version, event_time, ingest_time, feature.value,
           restates, written_at, producer, producer_version, run_id
    FROM feature_rows CROSS JOIN LATERAL jsonb_each(features) AS feature (name, value)
    WHERE stated IS NULL OR feature.name = ANY (stated);
