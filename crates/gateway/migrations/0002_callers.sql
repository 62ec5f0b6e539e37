-- Payments by signature, of callers without an account. Amounts are in millionths of a dollar, times in milliseconds since 1970, hashes in hex.
-- running: its request is under way, or was when its gateway died. answered: the answer is there, and is to be settled. settled: the tokens were moved,
-- or nothing had to be. failed: they could not be, by the payer's doing. lapsed: they could not be, by nobody's or the gateway's.
CREATE TABLE caller_payments (
    id TEXT PRIMARY KEY,
    payer TEXT NOT NULL,
    receiver TEXT NOT NULL,
    request TEXT NOT NULL,
    state TEXT NOT NULL,
    most BIGINT NOT NULL CHECK (most >= 0),
    signed TEXT NOT NULL,
    from_block BIGINT NOT NULL,
    began_ms BIGINT NOT NULL,
    -- Of an answer.
    amount BIGINT NOT NULL,
    receipt TEXT NOT NULL,
    provider TEXT NOT NULL,
    model TEXT NOT NULL,
    prompt_tokens BIGINT NOT NULL,
    completion_tokens BIGINT NOT NULL,
    -- What the caller was told, for as long as it may ask again.
    told TEXT,
    -- Of its end.
    hash TEXT NOT NULL,
    ended_ms BIGINT NOT NULL
);
CREATE INDEX caller_payments_payer ON caller_payments (payer, state);
CREATE INDEX caller_payments_receiver ON caller_payments (receiver, state);
CREATE INDEX caller_payments_request ON caller_payments (payer, request);
CREATE INDEX caller_payments_ended ON caller_payments (ended_ms);
