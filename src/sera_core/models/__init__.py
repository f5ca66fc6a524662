"""Everything that touches a language model: loading, scoring, generating."""
