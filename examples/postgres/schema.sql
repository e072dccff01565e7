-- The machines that SPIRE admits, by the EK hash of their TPM, and the accounts that may read and
-- change them. For PostgreSQL; run it in the database that holds the table, as its owner.

CREATE TABLE tpm_machines (
  ek_hash text PRIMARY KEY CHECK (ek_hash ~ '^[0-9a-f]{64}$'),
  name    varchar(250) UNIQUE,
  labels  jsonb CHECK (jsonb_typeof(labels) = 'array'),
  added   timestamptz NOT NULL DEFAULT now()
);

-- SPIRE servers, each with max_open_conns connections: they may read and nothing else.
CREATE ROLE spire_tpm LOGIN PASSWORD 'change-me' CONNECTION LIMIT 20;
ALTER ROLE spire_tpm SET search_path = public;
GRANT SELECT ON tpm_machines TO spire_tpm;

-- Whoever enrols machines.
CREATE ROLE tpm_enrol LOGIN PASSWORD 'change-me-too';
GRANT SELECT, INSERT, UPDATE, DELETE ON tpm_machines TO tpm_enrol;

-- Nobody puts another table of that name in front of it (the default from PostgreSQL 15 on).
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
