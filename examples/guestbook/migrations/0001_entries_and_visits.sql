CREATE TABLE entries (
    id INTEGER PRIMARY KEY,
    author TEXT NOT NULL,
    message TEXT NOT NULL,
    written_at TEXT NOT NULL
);

CREATE TABLE visits (count INTEGER NOT NULL);
INSERT INTO visits (count) VALUES (0);
