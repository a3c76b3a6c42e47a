CREATE TABLE movies (
    id          BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    title       TEXT NOT NULL CHECK (char_length(title) BETWEEN 1 AND 255),
    description TEXT NOT NULL CHECK (char_length(description) <= 10000)
);
