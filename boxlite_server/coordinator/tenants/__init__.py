"""Who the caller is and what it may do: API keys, tokens, scopes and prefixes."""
