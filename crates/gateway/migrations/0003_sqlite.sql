-- On SQLite: each page that a request changes is written, so its rows stand in as few trees as possible. Holds are few, and counted by going through them;
-- charges of a key are found by its account.
CREATE TABLE lean_holds (
    id TEXT PRIMARY KEY,
    key_id TEXT NOT NULL REFERENCES keys (id),
    account TEXT NOT NULL,
    amount BIGINT NOT NULL CHECK (amount >= 0),
    request TEXT NOT NULL,
    day BIGINT NOT NULL,
    expires_ms BIGINT NOT NULL
) WITHOUT ROWID;
INSERT INTO lean_holds (id, key_id, account, amount, request, day, expires_ms)
    SELECT id, key_id, account, amount, request, day, expires_ms FROM holds;
DROP TABLE holds;
ALTER TABLE lean_holds RENAME TO holds;
CREATE TABLE lean_charges (
    id TEXT PRIMARY KEY,
    key_id TEXT NOT NULL REFERENCES keys (id),
    account TEXT NOT NULL,
    amount BIGINT NOT NULL CHECK (amount >= 0),
    request TEXT NOT NULL,
    at_ms BIGINT NOT NULL,
    receipt TEXT NOT NULL,
    provider TEXT NOT NULL,
    model TEXT NOT NULL,
    prompt_tokens BIGINT NOT NULL,
    completion_tokens BIGINT NOT NULL
) WITHOUT ROWID;
INSERT INTO lean_charges
    (id, key_id, account, amount, request, at_ms, receipt, provider, model, prompt_tokens, completion_tokens)
    SELECT id, key_id, account, amount, request, at_ms, receipt, provider, model, prompt_tokens, completion_tokens
    FROM charges;
DROP TABLE charges;
ALTER TABLE lean_charges RENAME TO charges;
CREATE INDEX charges_request ON charges (key_id, request);
CREATE INDEX charges_account ON charges (account, at_ms);
