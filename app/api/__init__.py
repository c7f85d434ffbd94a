"""HTTP and websockets: parse, call a service, shape the answer. No decisions are made here."""
