-- What every gate said of every variant in every cycle; a null value is one that could not be computed.
CREATE TABLE gate_verdicts (
    market text NOT NULL,
    variant text NOT NULL,
    cycle_id text NOT NULL,
    gate text NOT NULL,
    judged_at timestamptz NOT NULL,
    ok boolean NOT NULL,
    veto boolean NOT NULL,
    value double precision,
    threshold double precision,
    why text NOT NULL,
    PRIMARY KEY (market, variant, cycle_id, gate)
);
