"""Cases: probes, judgements, notes, audited searches and watched vehicles, in a database; their export."""
