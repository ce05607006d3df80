-- What the demo asks: a line `-- title`, then one statement.

-- names that start with std
SELECT directory || name, size FROM files WHERE name >= 'std' AND name < 'ste' ORDER BY name, directory;

-- bytes by extension
SELECT extension, count(*), sum(size) FROM files GROUP BY extension ORDER BY sum(size) DESC, extension LIMIT 40;

-- directories by bytes
SELECT directory, count(*), sum(size) FROM files GROUP BY directory ORDER BY sum(size) DESC, directory LIMIT 40;

-- files by month of change
SELECT strftime('%Y-%m', modified, 'unixepoch') AS month, count(*), sum(size) FROM files GROUP BY month ORDER BY month;

-- headers that mention uint64_t
SELECT directory || name FROM files JOIN contents USING (id)
WHERE extension = 'h' AND instr(data, CAST('uint64_t' AS BLOB)) ORDER BY id;

-- lines of Python
SELECT count(*), sum(length(CAST(data AS TEXT)) - length(replace(CAST(data AS TEXT), char(10), '')))
FROM files JOIN contents USING (id) WHERE extension = 'py';

-- different places, same contents
SELECT a.directory || a.name, b.directory || b.name, a.size
FROM files AS a JOIN files AS b ON b.extension = a.extension AND b.size = a.size AND b.id > a.id
JOIN contents AS one ON one.id = a.id JOIN contents AS other ON other.id = b.id
WHERE a.extension IN ('png', 'so', 'a', 'js', 'css', 'txt', 'sh') AND a.size > 4096 AND one.data = other.data
ORDER BY a.id, b.id;
