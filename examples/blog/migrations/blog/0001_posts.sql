CREATE TABLE authors (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name TEXT NOT NULL,
    token_sha256 BYTEA NOT NULL UNIQUE
);

CREATE TABLE posts (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    author_id BIGINT NOT NULL REFERENCES authors,
    title TEXT NOT NULL,
    body TEXT NOT NULL
);

CREATE TABLE tags (
    post_id BIGINT NOT NULL REFERENCES posts,
    tag TEXT NOT NULL,
    PRIMARY KEY (post_id, tag)
);

CREATE VIEW articles AS
SELECT posts.id, authors.name AS author, title, body,
    ARRAY(SELECT tag FROM tags WHERE post_id = posts.id ORDER BY tag) AS tags
FROM posts JOIN authors ON authors.id = author_id;
