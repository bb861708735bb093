"""Policy: a folder of Rego becomes decisions, and each decision says how far it reaches."""
