-- What clients with keys were told, for as long as they may ask again: in hex, by the charge of the answer. Times in milliseconds since 1970.
CREATE TABLE told (
    charge TEXT PRIMARY KEY,
    at_ms BIGINT NOT NULL,
    answer TEXT NOT NULL
);
CREATE INDEX told_at ON told (at_ms);
