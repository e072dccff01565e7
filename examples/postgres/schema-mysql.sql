-- The machines that SPIRE admits, by the EK hash of their TPM, and the accounts that may read and
-- change them. For MySQL 8 and MariaDB 10.5 or later; run it in the database spire.

CREATE TABLE tpm_machines (
  ek_hash char(64) CHARACTER SET ascii COLLATE ascii_bin PRIMARY KEY CHECK (ek_hash REGEXP '^[0-9a-f]{64}$'),
  name    varchar(250) UNIQUE,
  labels  json CHECK (json_type(labels) = 'ARRAY'),
  added   timestamp NOT NULL DEFAULT current_timestamp
) CHARACTER SET utf8mb4;

-- SPIRE servers, each with max_open_conns connections: they may read and nothing else.
CREATE USER 'spire_tpm'@'%' IDENTIFIED BY 'change-me' REQUIRE SSL WITH MAX_USER_CONNECTIONS 20;
GRANT SELECT ON spire.tpm_machines TO 'spire_tpm'@'%';

-- Whoever enrols machines.
CREATE USER 'tpm_enrol'@'%' IDENTIFIED BY 'change-me-too' REQUIRE SSL;
GRANT SELECT, INSERT, UPDATE, DELETE ON spire.tpm_machines TO 'tpm_enrol'@'%';
