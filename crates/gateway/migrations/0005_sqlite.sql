-- What clients were told, as it is and not in hex. Who asks again for what was answered before this is answered anew.
DROP TABLE told;
CREATE TABLE told (
    charge TEXT NOT NULL,
    at_ms BIGINT NOT NULL,
    answer BLOB NOT NULL
);
CREATE INDEX told_at ON told (at_ms, charge);
