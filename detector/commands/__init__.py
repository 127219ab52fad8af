"""The work of each command, after its configuration was composed and checked."""
