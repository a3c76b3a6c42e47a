CREATE TABLE orders (
    id              BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    user_id         BIGINT NOT NULL CHECK (user_id > 0),
    number_of_items INTEGER NOT NULL CHECK (number_of_items > 0),
    total_amount    NUMERIC NOT NULL CHECK (total_amount >= 0),
    -- The id under which the gateway queued the order: what makes a second delivery harmless.
    message_id      UUID NOT NULL UNIQUE,
    created_at      TIMESTAMPTZ NOT NULL DEFAULT now()
);
