"""How much each concept matters."""
