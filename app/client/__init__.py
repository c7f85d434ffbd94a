"""The client for people: `cognate runs ...`. It knows the service by its REST API and its websocket only."""
