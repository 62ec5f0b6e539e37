-- What clients with keys were told, for as long as they may ask again: in hex, by the charge of the answer and its time, in milliseconds since 1970. In order
-- of time, so that what is new stands beside each other, and what is old goes from the other end.
CREATE TABLE told (
    charge TEXT NOT NULL,
    at_ms BIGINT NOT NULL,
    answer TEXT NOT NULL
);
CREATE INDEX told_at ON told (at_ms, charge);
