-- Create device_roles table
CREATE TABLE device_roles (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    device_id VARCHAR(255) UNIQUE NOT NULL,
    role VARCHAR(50) NOT NULL DEFAULT 'client',
    priority INTEGER DEFAULT 0,
    last_seen DATETIME,
    is_active BOOLEAN DEFAULT TRUE,
    created_at DATETIME DEFAULT CURRENT_TIMESTAMP,
    updated_at DATETIME DEFAULT CURRENT_TIMESTAMP
);

-- Create sync_states table
CREATE TABLE sync_states (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    device_id VARCHAR(255) UNIQUE NOT NULL,
    sync_status VARCHAR(50) DEFAULT 'pending',
    pending_changes_count INTEGER DEFAULT 0,
    last_sync_timestamp DATETIME,
    last_error_message TEXT,
    created_at DATETIME DEFAULT CURRENT_TIMESTAMP,
    updated_at DATETIME DEFAULT CURRENT_TIMESTAMP
);

-- Create master_election_logs table
CREATE TABLE master_election_logs (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    previous_master_id VARCHAR(255),
    new_master_id VARCHAR(255) NOT NULL,
    election_reason VARCHAR(100) NOT NULL,
    election_timestamp DATETIME NOT NULL,
    devices_participating INTEGER DEFAULT 0,
    created_at DATETIME DEFAULT CURRENT_TIMESTAMP
);

-- Create sync_audit_logs table
CREATE TABLE sync_audit_logs (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    event_type VARCHAR(100) NOT NULL,
    operation VARCHAR(100) NOT NULL,
    status VARCHAR(50) NOT NULL,
    device_id VARCHAR(255),
    details TEXT,
    timestamp DATETIME DEFAULT CURRENT_TIMESTAMP
);

-- Create indexes for performance
CREATE INDEX idx_device_roles_device_id ON device_roles(device_id);
CREATE INDEX idx_device_roles_role ON device_roles(role);
CREATE INDEX idx_sync_states_device_id ON sync_states(device_id);
CREATE INDEX idx_sync_states_status ON sync_states(sync_status);
CREATE INDEX idx_master_election_logs_timestamp ON master_election_logs(election_timestamp);
CREATE INDEX idx_sync_audit_logs_device_id ON sync_audit_logs(device_id);
CREATE INDEX idx_sync_audit_logs_timestamp ON sync_audit_logs(timestamp);
