INSERT INTO authors (name, token_sha256) VALUES ('Ada', sha256('ada-s-token'));
