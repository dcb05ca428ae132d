-- idle_at is when a tunnel was last noted as having no terminal, which its replica does twice a second; wanted_at is when another
-- tunnel asked for its place. Neither is indexed: an endpoint carries few tunnels.
ALTER TABLE termgw.tunnels ADD COLUMN idle_at timestamptz, ADD COLUMN wanted_at timestamptz;
