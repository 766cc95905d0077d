-- One row a day, market, strategy, feature ('*': not about a feature) and signal.
CREATE TABLE drift_metrics (
    day date NOT NULL,
    market text NOT NULL,
    strategy text NOT NULL,
    feature text NOT NULL,
    signal text NOT NULL,
    value double precision,
    calibrated double precision,
    severity text NOT NULL,
    action text NOT NULL,
    why text NOT NULL,
    cycle_id text NOT NULL,
    written_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (day, market, strategy, feature, signal)
);
