"""What Redis keeps: the only wing that knows keys, Lua steps and their replies."""
