-- Money is in millionths of a dollar, times in milliseconds since 1970, hashes in hex.
CREATE TABLE accounts (
    name TEXT PRIMARY KEY,
    balance BIGINT NOT NULL CHECK (balance >= 0),
    created_ms BIGINT NOT NULL
);

-- What was paid in. The id is the payment's: the same payment counts once.
CREATE TABLE credits (
    id TEXT PRIMARY KEY,
    account TEXT NOT NULL REFERENCES accounts (name),
    amount BIGINT NOT NULL CHECK (amount > 0),
    note TEXT NOT NULL,
    at_ms BIGINT NOT NULL
);

-- Secrets are kept as hashes alone.
CREATE TABLE keys (
    id TEXT PRIMARY KEY,
    account TEXT NOT NULL REFERENCES accounts (name),
    name TEXT NOT NULL,
    secret_hash TEXT NOT NULL UNIQUE,
    hint TEXT NOT NULL,
    created_ms BIGINT NOT NULL,
    revoked_ms BIGINT,
    per_minute BIGINT,
    at_once BIGINT,
    per_day BIGINT,
    -- When the next request would be due at an even pace, for the limit per minute.
    due_ms BIGINT NOT NULL,
    -- What was held and charged on this day since 1970, for the limit per day.
    day BIGINT NOT NULL,
    day_spent BIGINT NOT NULL
);
CREATE INDEX keys_account ON keys (account);

-- Set aside for requests that are running. Not part of the balance.
CREATE TABLE holds (
    id TEXT PRIMARY KEY,
    key_id TEXT NOT NULL REFERENCES keys (id),
    account TEXT NOT NULL,
    amount BIGINT NOT NULL CHECK (amount >= 0),
    request TEXT NOT NULL,
    day BIGINT NOT NULL,
    expires_ms BIGINT NOT NULL
);
CREATE INDEX holds_key ON holds (key_id);
CREATE INDEX holds_expiry ON holds (expires_ms);

-- What answers cost. The id is that of the hold that it came out of.
CREATE TABLE charges (
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
);
CREATE INDEX charges_key ON charges (key_id, at_ms);
CREATE INDEX charges_request ON charges (key_id, request);
CREATE INDEX charges_account ON charges (account, at_ms);
