-- The writes of each view, numbered in the order in which they were committed: a write takes the next number under the
-- view's lock. So an export that has all rows up to a number finds what came after. The id tells this write from one
-- that had its number in a database of which this is no continuation.
CREATE TABLE feature_writes (
    view text COLLATE "C" NOT NULL,
    feature_version integer NOT NULL,
    number bigint NOT NULL,
    id uuid NOT NULL DEFAULT gen_random_uuid(),
    PRIMARY KEY (view, feature_version, number)
);

-- Rows from before are write 0 of their views.
ALTER TABLE feature_rows ADD COLUMN write_number bigint NOT NULL DEFAULT 0;
INSERT INTO feature_writes SELECT DISTINCT view, feature_version, 0 FROM feature_names;
