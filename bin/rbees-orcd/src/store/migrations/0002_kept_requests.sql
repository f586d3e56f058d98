-- What an ended job asked for, where the configuration keeps it; goes with the job.
-- request NULL: it is large and lies in prompts/.
CREATE TABLE kept_requests (
    number  INTEGER PRIMARY KEY REFERENCES jobs (number) ON DELETE CASCADE,
    request BLOB
) STRICT;
