-- Beside the documented tables: what the devices share.

-- The records that exist. `version` is the `seq` of the record's last change, `device_id` who made it.
CREATE TABLE records (
    table_name VARCHAR(100) NOT NULL,
    record_id INTEGER NOT NULL,
    version INTEGER NOT NULL,
    data TEXT NOT NULL,
    device_id VARCHAR(255) NOT NULL,
    timestamp DATETIME NOT NULL,
    PRIMARY KEY (table_name, record_id)
);

-- The changes that are kept, in the one order in which every device got them. `data` of a delete is {}.
CREATE TABLE changes (
    seq INTEGER PRIMARY KEY,
    device_id VARCHAR(255) NOT NULL,
    table_name VARCHAR(100) NOT NULL,
    record_id INTEGER NOT NULL,
    operation VARCHAR(50) NOT NULL,
    data TEXT NOT NULL,
    timestamp DATETIME NOT NULL
);
CREATE INDEX idx_changes_record ON changes(table_name, record_id);
