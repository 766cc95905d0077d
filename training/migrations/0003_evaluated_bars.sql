-- Every bar that a live model forecast by itself (training/latency.py): how long it took, and for how many entities.
CREATE TABLE evaluated_bars (
    market text NOT NULL,
    variant text NOT NULL,
    model_version text NOT NULL,
    event_time timestamptz NOT NULL,
    measured_at timestamptz NOT NULL,
    latency_ms double precision NOT NULL CHECK (latency_ms >= 0),
    num_signals integer NOT NULL CHECK (num_signals >= 0), -- 0: the model had nothing to say of the bar
    PRIMARY KEY (market, variant, model_version, event_time)
);
