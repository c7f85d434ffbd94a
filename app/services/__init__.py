"""What the service does: use cases (runs), the state machine (lifecycle), one loop (supervisor), journal, hub."""
