CREATE TABLE books (id INTEGER PRIMARY KEY, title TEXT NOT NULL);
INSERT INTO books (id, title) VALUES (1, 'Momo'), (2, 'Ronja');
