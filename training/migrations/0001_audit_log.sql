-- Every change of stage, for good: each row's hash covers the row and the hash before it (training/rating/audit.py).
CREATE TABLE audit_log (
    seq bigint PRIMARY KEY,
    time timestamptz NOT NULL,
    market text NOT NULL,
    variant text NOT NULL,
    version integer NOT NULL,
    from_stage text NOT NULL,
    to_stage text NOT NULL,
    allocation double precision NOT NULL,
    actor text NOT NULL,
    reason text NOT NULL,
    evidence json NOT NULL, -- json, not jsonb, which would rewrite the numbers that were hashed
    change text NOT NULL,
    previous text NOT NULL UNIQUE, -- no two rows follow the same one
    hash text NOT NULL UNIQUE,
    UNIQUE (market, variant, change)
);

CREATE FUNCTION refuse_audit_log_edit() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'audit_log is append-only: % is refused', TG_OP;
END
$$;

CREATE TRIGGER audit_log_rows_stay BEFORE UPDATE OR DELETE ON audit_log
    FOR EACH ROW EXECUTE FUNCTION refuse_audit_log_edit();
CREATE TRIGGER audit_log_stays BEFORE TRUNCATE ON audit_log
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_audit_log_edit();
