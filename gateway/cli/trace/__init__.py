"""`csm trace`: spans collected, kept, found and drawn."""
