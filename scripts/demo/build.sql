-- A database of files of /usr: what each is, and beside that its contents. `list.csv` has PATH and SIZE of the candidates; as
-- many of them as fit into :budget bytes are taken, spread over all of /usr.
.bail on
.mode csv
PRAGMA journal_mode = off;
PRAGMA synchronous = off;
CREATE TEMP TABLE candidates(path TEXT PRIMARY KEY, size INTEGER) WITHOUT ROWID;
.import list.csv candidates
CREATE TEMP TABLE chosen AS
  SELECT path, size FROM (
    SELECT path, size, sum(size + 200) OVER (ORDER BY (length(path) * 7919 + size * 104729) % 65537, path) AS so_far FROM candidates)
  WHERE so_far <= CAST(:budget AS INTEGER)
  ORDER BY path;
CREATE TABLE files(
  id INTEGER PRIMARY KEY,
  directory TEXT NOT NULL,  -- with its last slash
  name TEXT NOT NULL,
  extension TEXT NOT NULL,
  size INTEGER NOT NULL,
  mode TEXT NOT NULL,
  modified INTEGER NOT NULL);
CREATE TABLE contents(id INTEGER PRIMARY KEY REFERENCES files, data BLOB NOT NULL);

WITH placed AS (SELECT path AS whole, rtrim(path, replace(path, '/', '')) AS directory, size FROM chosen),
named AS (SELECT whole, directory, substr(whole, length(directory) + 1) AS base, size FROM placed)
INSERT INTO files(directory, name, extension, size, mode, modified)
  SELECT directory, base,
         CASE WHEN base GLOB '?*.*' THEN substr(base, length(rtrim(base, replace(base, '.', ''))) + 1) ELSE '' END,
         size, lsmode(file.mode), mtime
  FROM named, fsdir(whole) AS file;
INSERT INTO contents(id, data)
  SELECT id, coalesce(file.data, x'') FROM files, fsdir(directory || files.name) AS file;
CREATE INDEX by_name ON files(name);
CREATE INDEX by_directory ON files(directory, size);
CREATE INDEX by_extension ON files(extension, size);
ANALYZE;
