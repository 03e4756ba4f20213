CREATE TABLE counts (
    post_id BIGINT PRIMARY KEY,
    words INTEGER,
    views BIGINT NOT NULL DEFAULT 0
);
